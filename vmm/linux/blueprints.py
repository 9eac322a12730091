"""What the programs of one monitor have in common, worked out once: their processor, and, those of
one image, the memory that they begin with.
"""

from __future__ import annotations

import collections
import functools
import threading
from typing import NamedTuple

from vmm.guest.blueprint import Shape
from vmm.kvm import Kvm
from vmm.kvm.given import Given, give_back, noted
from vmm.linux import boot
from vmm.linux.boot import Processor
from vmm.linux.loader import Program, Segment
from vmm.linux.outset import Outset
from vmm.memory.mapping import Mapping
from vmm.memory.template import Template

_MOST = 32  # templates that are kept, each with a descriptor
_MOST_BYTES = 512 << 20  # and what they take together
# A machine's own until then: a template is as long as the addresses that it has contents at.
_LAID_OUT = 64 << 20
_MOST_OUTSETS = 8  # of one program
_MOST_OUTSET = 256 << 10  # bytes; that of a machine with so large a window is made each time

_Size = tuple[int, Shape, int]  # memory, shape, and what is lent: see `boot.layout`


def laid_out(program: Program) -> tuple[Segment, ...]:
    """Return the segments that are in the program's template."""
    return program.segments if program.end <= _LAID_OUT else ()


class _Kept(NamedTuple):
    """Of one program."""

    template: Template
    outsets: collections.OrderedDict[_Size, Outset]


class Beginning:
    """What one program's private memory begins with: a template that is there when it is mapped,
    and may be let go of, and made again, at any other time. Thread-safe.
    """

    __slots__ = ("_blueprints", "_program")

    def __init__(self, blueprints: Blueprints, program: Program) -> None:
        self._blueprints = blueprints
        self._program = program

    @property
    def given(self) -> tuple[tuple[int, int], ...]:
        """Where there is anything but zeros. Raises OSError."""
        with self._blueprints.lock:
            return self._blueprints.template(self._program).given

    def map(self, size: int, *, aligned: bool = False) -> Mapping:
        """Map a copy, as `Template.map` does. Raises OSError, ResourceError."""
        with self._blueprints.lock:
            return self._blueprints.template(self._program).map(size, aligned=aligned)


class Blueprints:
    """Of programs, in one monitor. Thread-safe. A program is known by its object, as `load` keeps
    it.

    lock    held by whoever uses a `template`
    """

    def __init__(self, kvm: Kvm) -> None:
        self._kvm = kvm
        self._kept: collections.OrderedDict[Program, _Kept] = collections.OrderedDict()
        self.lock = threading.RLock()

    @functools.cached_property
    def processor(self) -> Processor:
        """What their CPUs are like. Raises OSError."""
        return Processor.of(self._kvm.supported_cpuid())

    def template(self, program: Program) -> Template:
        """Return what a program's private memory begins with. It may be closed as soon as the lock
        is not held any more. Raises OSError.
        """
        kept = self._kept.get(program) or self._make(program)
        self._kept.move_to_end(program)
        return kept.template

    def outset(
        self, program: Program, interpreter: Program | None, memory: int, shape: Shape, lent: int
    ) -> Outset:
        """Return the address space that a program begins with; the others are as for `layout`.

        Raises ConfigError, SysError, OSError.
        """
        if interpreter is not None:  # a file of its machine's own: another each time
            where = boot.layout(program, memory, shape, lent)
            return Outset.of(where, memory, shape, (program, interpreter))
        size = memory, shape, lent
        with self.lock:
            kept = self._kept.get(program) or self._make(program)
            found = kept.outsets.get(size)
            if found is None:
                where = boot.layout(program, memory, shape, lent)
                found = Outset.of(where, memory, shape, (program,))
                if found.held <= _MOST_OUTSET:
                    kept.outsets[size] = found
                    while len(kept.outsets) > _MOST_OUTSETS:
                        kept.outsets.popitem(last=False)
            return found

    def _make(self, program: Program) -> _Kept:
        made: list[Given] = []  # these, and not the machine's that it is made for
        try:
            with noted(made):
                parts = [(segment.start, segment.data) for segment in laid_out(program)]
                template = Template([*boot.contents(), *parts])
                self._kept[program] = _Kept(template, collections.OrderedDict())
        except BaseException:
            self._kept.pop(program, None)
            give_back(made)
            raise
        kept = list(self._kept.items())
        held = sum(template.size for _, (template, _) in kept)
        for count, (other, (template, _)) in zip(range(len(kept), 1, -1), kept, strict=False):
            if count <= _MOST and held <= _MOST_BYTES:
                break
            template.close()
            self._kept.pop(other, None)
            held -= template.size
        return self._kept[program]

    def close(self) -> None:
        """Close them all. Further calls do nothing."""
        for kept in self._kept.values():
            kept.template.close()
        self._kept.clear()
