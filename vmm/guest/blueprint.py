"""What all guests of one image and one shape have in common, worked out once.

Layout, first memory and first registers. A guest made after a blueprint costs little more than the
kernel takes for it.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
from collections.abc import Iterator

from vmm.guest import abi, boot
from vmm.guest.image import Image
from vmm.kvm import CpuidTable, Kvm, Vcpu, kvm_sregs
from vmm.memory.template import Template

_MOST = 32  # blueprints kept for guests to come, each with a descriptor,
_MOST_BYTES = 512 << 20  # and what they and their images take together


@dataclasses.dataclass(frozen=True, slots=True)
class Shape:
    """How a guest is made.

    privilege     the ring it runs in, 0 or 3
    doorbell      how it rings
    private, stack, window    sizes in bytes
    """

    privilege: int
    doorbell: abi.Doorbell
    private: int
    stack: int
    window: int


class Blueprint:
    """One image in one shape. Not thread-safe. Guests that were made after it outlive `close`.

    layout      where things lie
    template    the private memory that they begin with
    """

    __slots__ = ("_cpuid", "_regs", "_sregs", "_user", "image", "layout", "shape", "template")

    def __init__(self, image: Image, shape: Shape, cpuid: CpuidTable) -> None:
        """Lay it out. Raises GuestImageError, OSError."""
        self._user = shape.privilege == 3
        self._cpuid = cpuid
        self.image = image
        self.shape = shape
        self.layout = boot.plan(image, shape.private, shape.stack, shape.window, self._user)
        self._regs = boot.regs(image, self.layout, self._user)
        self._sregs: kvm_sregs | None = None
        self.template = Template(boot.contents(image, self.layout))

    def enter(self, vcpu: Vcpu) -> None:
        """Set a fresh vCPU's registers to the image's entry point."""
        vcpu.set_cpuid(self._cpuid)
        if self._sregs is None:  # every vCPU is the same after its reset
            self._sregs = boot.sregs(vcpu.get_sregs(), self.image, self.layout, self._user)
        vcpu.set_sregs(self._sregs)
        vcpu.set_regs(self._regs)

    @property
    def held(self) -> int:
        """How many bytes of memory it and its image take."""
        return self.template.size + self.image.held

    def close(self) -> None:
        """Let go of the template. Further calls do nothing."""
        self.template.close()


class Blueprints:
    """The blueprints of one monitor: those used last are kept.

    Thread-safety: none, but for `prepared`.

    An image is known by its object: `load_image` gives the same one for as long as the file is the
    same.
    """

    def __init__(self, kvm: Kvm) -> None:
        self._cpuid = CpuidTable.of(kvm.supported_cpuid())
        self._kept: collections.OrderedDict[tuple[Image, Shape], Blueprint] = (
            collections.OrderedDict()
        )
        self._ready: dict[tuple[Image, Shape], Blueprint] = {}  # made beforehand, for `get`

    @contextlib.contextmanager
    def prepared(self, image: Image, shape: Shape) -> Iterator[None]:
        """Have what takes time done for a `get` in the block, outside of any lock.

        Raises GuestImageError, OSError.
        """
        key = (image, shape)
        made = key not in self._kept and key not in self._ready
        if made:
            self._ready[key] = Blueprint(image, shape, self._cpuid)
        try:
            yield
        finally:
            left = self._ready.pop(key, None) if made else None
            if left is not None:
                left.close()

    def get(self, image: Image, shape: Shape) -> Blueprint:
        """Return the blueprint of an image in a shape. Raises GuestImageError, OSError."""
        key = (image, shape)
        found = self._kept.get(key)
        if found is None:
            found = self._ready.pop(key, None) or Blueprint(image, shape, self._cpuid)
            self._kept[key] = found
            self._make_room()
        else:
            self._kept.move_to_end(key)
        return found

    def _make_room(self) -> None:
        """Let go of those used longest ago, but not of the last one."""
        held = sum(kept.held for kept in self._kept.values())
        while len(self._kept) > _MOST or (held > _MOST_BYTES and len(self._kept) > 1):
            _, oldest = self._kept.popitem(last=False)
            held -= oldest.held
            oldest.close()

    def close(self) -> None:
        """Close them all. Further calls do nothing."""
        while self._kept:
            self._kept.popitem()[1].close()
