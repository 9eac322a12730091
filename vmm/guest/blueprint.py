"""What all guests of one image and one shape have in common, worked out once.

Layout, first memory and first registers. A guest made after a blueprint costs little more than the
kernel takes for it.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import threading
from collections.abc import Iterator

from vmm.guest import abi, boot
from vmm.guest.executable import page_end
from vmm.guest.image import Image
from vmm.kvm import CpuidTable, Kvm, Vcpu, kvm_sregs
from vmm.kvm.given import Given, give_back, noted
from vmm.memory.template import Template

_MOST = 32  # blueprints kept for guests to come, each with a descriptor,
_MOST_BYTES = 512 << 20  # and what they and their images take together
_WHOLE = 16 << 20  # bytes of private memory, which the template may come to take
_MOST_OWN = 8  # pages of an image that each guest gets as its own at once


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
    written     those of its pages that a guest may write to, as address and bytes; nothing of an
                image that has many
    """

    __slots__ = (
        *("_cpuid", "_regs", "_sregs", "_user"),
        *("image", "layout", "shape", "template", "written"),
    )

    def __init__(self, image: Image, shape: Shape, cpuid: CpuidTable) -> None:
        """Lay it out. Raises GuestImageError, OSError."""
        self._user = shape.privilege == 3
        self._cpuid = cpuid
        self.image = image
        self.shape = shape
        self.layout = boot.plan(image, shape.private, shape.stack, shape.window, self._user)
        self._regs = boot.regs(image, self.layout, self._user)
        self._sregs: kvm_sregs | None = None
        # All of it in one mapping, where that is small: the more there are, the longer it takes the
        # kernel to make another VM.
        private = self.layout.private.size
        whole = private if private <= _WHOLE else 0
        self.template = Template(boot.contents(image, self.layout), whole)
        self.written = _written(image)

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


_Key = tuple[Image, Shape]


def _written(image: Image) -> tuple[tuple[int, int], ...]:
    found = [
        (segment.first_page, page_end(segment.gpa + len(segment.data)) - segment.first_page)
        for segment in image.segments
        if segment.write and segment.data
    ]
    return tuple(found) if sum(size for _, size in found) <= _MOST_OWN * abi.PAGE_SIZE else ()


class Blueprints:
    """The blueprints of one monitor: those used last are kept.

    Thread-safety: none, but for `prepared`.

    An image is known by its object: `load_image` gives the same one for as long as the file is the
    same.
    """

    def __init__(self, kvm: Kvm) -> None:
        self._cpuid = CpuidTable.of(kvm.supported_cpuid())
        self._kept: collections.OrderedDict[_Key, Blueprint] = collections.OrderedDict()
        self._ready: dict[_Key, Blueprint] = {}  # made beforehand, for `get`
        self._old: list[Blueprint] = []  # to be closed
        self._lock = threading.RLock()  # whoever takes one out of `_ready` holds it

    @contextlib.contextmanager
    def prepared(self, image: Image, shape: Shape) -> Iterator[None]:
        """Have what takes time done for a `get` in the block, outside of any lock.

        Raises GuestImageError, OSError.
        """
        key = (image, shape)
        made = key not in self._kept and key not in self._ready
        if made:
            self._make(key)
        try:
            yield
        finally:
            if made:
                self._drop(key)

    def _make(self, key: _Key) -> None:
        made: list[Given] = []
        try:
            with noted(made):
                self._ready[key] = Blueprint(*key, self._cpuid)
        except BaseException:
            self._ready.pop(key, None)
            give_back(made)
            raise

    def _drop(self, key: _Key) -> None:
        """Close what has been made for nothing."""
        with self._lock:
            if self._kept.get(key) is self._ready.get(key):
                self._ready.pop(key, None)
            _move(self._ready, key, self._old)
        self._close_old()

    def get(self, image: Image, shape: Shape) -> Blueprint:
        """Return the blueprint of an image in a shape. Raises GuestImageError, OSError."""
        key = (image, shape)
        found = self._kept.get(key)
        if found is None:
            with self._lock:
                if key not in self._ready:
                    self._make(key)
                found = self._kept[key] = self._ready[key]
                self._ready.pop(key, None)
            self._make_room()
        else:
            self._kept.move_to_end(key)
        return found

    def _make_room(self) -> None:
        """Let go of those used longest ago, but not of the last one."""
        held = sum(kept.held for kept in self._kept.values())
        while len(self._kept) > _MOST or (held > _MOST_BYTES and len(self._kept) > 1):
            key = next(iter(self._kept))
            held -= self._kept[key].held
            self._ready.pop(key, None)  # a `get` may have been cut off before it could
            _move(self._kept, key, self._old)
        self._close_old()

    def _close_old(self) -> None:
        with contextlib.suppress(IndexError):  # another thread is at it as well
            while self._old:
                self._old[-1].close()
                self._old.pop()

    def close(self) -> None:
        """Close them all. Further calls do nothing."""
        for blueprint in (*self._kept.values(), *self._ready.values(), *self._old):
            blueprint.close()
        self._kept.clear()
        self._ready.clear()
        self._old.clear()


def _move(blueprints: dict[_Key, Blueprint], key: _Key, to: list[Blueprint]) -> None:
    """Move a blueprint, if it is there, so that it is in one of both whatever is raised (given)."""
    with contextlib.suppress(KeyError):
        to.extend(map(blueprints.pop, (key,)))
