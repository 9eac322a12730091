"""A Linux program's memory, and what its calls do to it.

Contents are in two mappings of this process: private memory from address 0 on, which the image is
in, and the arena, with the page tables behind it. Rights are in the page tables only. A change is a
plan (`vmm.linux.areas`), which is kept until it has been carried out: if it is cut off, by whatever
may be raised at any line, it is made good before anything else is done (`finish`).

**What CPUs remember.** The tables are changed while the program does not run. Where there have been
rights, the host addresses of the data are invalidated as well: by giving the pages back, where the
contents go, or by protecting them for a moment. KVM then forgets what it knows of them, and flushes
translations, on every kind of host. A page that nobody could reach needs nothing. Pages of the
window, which are shown at other addresses as well, are others' to invalidate: when they are not to
be reached there any more, KVM is made to forget all that it knows.
"""

from __future__ import annotations

import errno
import threading
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from vmm.guest.abi import PAGE_SIZE
from vmm.guest.x86 import LARGE_PAGE
from vmm.kvm import Vm
from vmm.linux.address_map import Map
from vmm.linux.areas import Areas
from vmm.linux.backing import Backing
from vmm.linux.errors import SysError
from vmm.linux.memslots import Memslots, Slot
from vmm.linux.plans import PROT_WRITE, Drop, Lent, Move, Plan, Rights
from vmm.linux.pointers import Pointers
from vmm.linux.rewind import Rewind
from vmm.linux.tables import Filled, Tables, tables_size
from vmm.memory.private import PrivateMemory
from vmm.memory.region import Region

_HEAP_HUGE = 4 << 20  # a heap that has grown so large gets huge pages

# madvise(2): what is not written here is EINVAL
_DONTNEED, _FREE = 4, 8
_WITHOUT_EFFECT = frozenset({0, 1, 2, 3, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20, 21})


class _Pending(NamedTuple):
    """What a call has still to do.

    answers   of all changes of this call, when that has been done
    stage     of the first plan's move: 0 not begun, 1 tried, 2 done, but for what stays behind
    """

    plans: Sequence[Plan]
    answers: tuple[int, ...]
    stage: int = 0


class Memory(Pointers):
    """One program's memory. Not thread-safe: used by whoever has the machine, while it is stopped.

    What reads and writes it is said in `Pointers`. The calls that change the map are those of
    Linux, and answer as they do, or raise SysError. Each is done whole, even if it is cut off: then
    it has been done when `begin` or `finish` has been called again, which must be before the
    program runs on.

    low       private memory; closed with this
    tables    the page tables: `tables.root` is for CR3
    """

    def __init__(
        self, low: PrivateMemory, areas: Areas, window: Region, tables: Filled | None = None
    ) -> None:
        """Map the arena, and lay out the tables: those of the stack, or `tables`, which say what
        `areas` does. Raises OSError, ResourceError.
        """
        size = tables_size(window, areas.arena)
        super().__init__(areas, Backing(low, areas.arena, size))
        self.low = low
        self._view = self._backing.view(areas.arena.end, size)
        self.tables = Tables(self._view, areas.arena.end, window, areas.arena, tables)
        if tables is None:
            for area in areas.spans:
                self.tables.set(area.start, area.end, area.prot)
        self._pending: _Pending | None = None
        self._serial = -1
        self._answers: tuple[int, ...] = ()
        self._asked = 0
        self._heap_is_huge = False
        self._slots: Memslots | None = None
        self._forget_all = self._lends = self._closed = False
        self._guard: Any = (
            threading.RLock()
        )  # a debugger may raise as a `with` ends: it is held then

    def attach(self, vm: Vm, numbers: Sequence[int]) -> None:
        """Make the memslots of what is mapped; `numbers` of four are for it. Raises OSError."""
        low, arena = self.low.region, self._backing.arena
        used, first = low.base, arena.end
        for area in self.areas.spans:
            if area.start >= arena.base:
                first = area.start
                break
            used = area.end
        addresses = self.low.address, self._backing.address
        self._slots = Memslots(vm, numbers, (low, used, addresses[0]), (arena, first, addresses[1]))

    @property
    def slots(self) -> tuple[Slot, ...]:
        """Its memslots so far."""
        return () if self._slots is None else self._slots.made

    def begin(self, serial: int) -> None:
        """Begin to serve a system call, or begin again with one that was cut off.

        serial    its number among the program's calls: the same one if it is tried again. What it
                  has changed by then is not done twice, and answers as it did
        """
        if self._pending is not None or self._forget_all or self.tables.mixed:
            self.finish()
        if serial != self._serial:
            self._answers = ()
            self._serial = serial
        self._asked = 0

    def finish(self) -> None:
        """Do what has been left undone by a call that was cut off. Raises OSError."""
        while (pending := self._pending) is not None:
            if pending.plans:
                self._carry_out(pending.plans[0], pending)
            else:
                self._answers = pending.answers
                self._pending = None
        if self._forget_all or self.tables.mixed:
            # What KVM knows of a memslot it forgets when that is deleted.
            if self._slots is not None:
                self._slots.make_again()
            self._forget_all = self.tables.mixed = False

    # ---- what it was ----

    def keep(self) -> tuple[Map, Rewind]:
        """Return what there is, to be put back; the second is to be closed. Raises OSError."""
        self.finish()
        low, spans = self.low.region, self.areas.spans
        writable = [(area.start, area.end) for area in spans if area.prot & PROT_WRITE]
        contents = Rewind(self._backing, [(low.base, self.areas.low.base), *writable])
        self.strayed = False
        return self.areas.map, contents

    def put_back(self, kept: Map, contents: Rewind) -> None:
        """Let it be what it was. Again is fine, and must be if it was cut off. Raises OSError."""
        self.finish()  # what a call was cut off in
        if self.strayed and self.areas.map != kept:  # it changes in no other way
            self._pending = _Pending([self.areas.back_to(kept)], ())
            self.finish()
        contents.put_back(everywhere=self.strayed)
        self.strayed = False
        self._serial = -1

    # ---- calls ----

    def mmap(
        self,
        address: int,
        length: int,
        prot: int,
        flags: int,
        lent: Lent | None = None,
        live: int = 0,
    ) -> int:
        """Return where zeros have been mapped, or pages of the window. What a file shows is to be
        `fill`ed in.
        """
        self._lends = self._lends or lent is not None
        return self._change(lambda: [self.areas.mmap(address, length, prot, flags, lent, live)])

    def munmap(self, address: int, length: int) -> int:
        return self._change(lambda: [self.areas.munmap(address, length)])

    def mprotect(self, address: int, length: int, prot: int) -> int:
        return self._change(lambda: self._mprotect(address, length, prot))

    def _mprotect(self, address: int, length: int, prot: int) -> Sequence[Plan]:
        """Plan it. What is to have memory of its own gets its contents now: nobody sees them there
        yet, whatever becomes of the plan.
        """
        plan = self.areas.mprotect(address, length, prot)
        if self._lends and prot & PROT_WRITE:
            for step in plan.steps:
                assert isinstance(step, Rights)
                for area in self.areas.borrowed(step.start, step.end):
                    for start, size, delta in self._parts(area.start, area.end - area.start):
                        self._backing.view(start, size)[:] = self._read_window(start + delta, size)
        return [plan]

    def _shows(self, start: int, end: int) -> bool:
        """Whether anything in a range is pages of the window."""
        return self._lends and any(area.delta for area in self.areas.spans.within(start, end))

    def mremap(self, old: int, old_size: int, new_size: int, flags: int, new: int = 0) -> int:
        return self._change(lambda: self.areas.mremap(old, old_size, new_size, flags, new))

    def brk(self, address: int) -> int:
        """Return where the heap ends now."""
        areas = self.areas
        if not areas.heap <= address <= areas.low.end:  # only asked: nothing to be carried out
            return areas.brk
        return self._change(lambda: [self.areas.move_brk(address)])

    def madvise(self, address: int, length: int, advice: int) -> int:
        """Give pages back, for DONTNEED and FREE: zeros from now on, but for a file's, which stay
        what they are. Nothing else has an effect.
        """
        if advice not in (_DONTNEED, _FREE) and advice not in _WITHOUT_EFFECT:
            raise SysError(errno.EINVAL)
        end = address + -(-length // PAGE_SIZE) * PAGE_SIZE
        if address % PAGE_SIZE or end > 1 << 64:
            raise SysError(errno.EINVAL)
        reached, hole = address, False
        first = last = 0  # what is to be given back; holes are zeros anyway
        for area in self.areas.spans.within(address, end):
            part = area.clip(address, end)
            hole, reached = hole or part.start > reached, part.end
            if not area.file:
                first, last = first or part.start, part.end
            elif first:
                self._give_back(first, last, advice)
                first = 0
        if first:
            self._give_back(first, last, advice)
        if hole or reached < end:
            raise SysError(errno.ENOMEM)
        return 0

    def _give_back(self, start: int, end: int, advice: int) -> None:
        if advice not in (_DONTNEED, _FREE):
            return
        self.strayed = True
        for low, high in self.areas.parts(start, end):
            self._backing.zero(low, high)

    # ---- what they are made of ----

    def _change(self, plan: Callable[[], Sequence[Plan]]) -> int:
        """Do what a call plans, or, if it has done so before it was cut off, answer again."""
        asked = self._asked
        if asked >= len(self._answers):
            self.strayed = True
            try:
                plans = plan()
            except SysError as error:
                self._answers = (*self._answers, -error.number)
                self._asked = asked + 1
                raise
            self._pending = _Pending(plans, (*self._answers, plans[-1].result))
            self.finish()
        self._asked = asked + 1
        result = self._answers[asked]
        if result < 0:
            raise SysError(-result)
        return result

    def _carry_out(self, plan: Plan, pending: _Pending) -> None:
        for step in plan.steps:
            if isinstance(step, Drop):
                self._forget_all = self._forget_all or self._shows(step.start, step.end)
                self.tables.set(step.start, step.end, 0)
                self._backing.zero(step.start, step.end)
            elif isinstance(step, Rights):
                self._give(step, plan)
            else:
                self._move(step, pending)
        self.areas.put(plan)
        self._pending = _Pending(pending.plans[1:], pending.answers)

    def _give(self, step: Rights, plan: Plan) -> None:
        start, end, prot, stale, delta = step
        shown = delta != 0 or self._shows(start, end)
        if self._slots is not None and self._slots.rest and not delta:
            self._slots.show(start, end)
        if not (stale or shown):
            self._advise(start, end, plan.brk)
        self.tables.set(start, end, prot, delta)
        if stale and shown:
            self._forget_all = True
        elif stale:
            try:
                self._backing.invalidate(start, end)
            except OSError:  # too many mappings
                self._forget_all = True

    def _advise(self, start: int, end: int, brk: int) -> None:
        """Ask for huge pages behind what is large, or has become so."""
        heap = self.areas.heap
        if heap <= start and end <= self.low.region.end:
            if not self._heap_is_huge and brk - heap >= _HEAP_HUGE:
                self._backing.advise_huge(heap, self.low.region.end)
                self._heap_is_huge = True
        elif end - start >= LARGE_PAGE:
            self._backing.advise_huge(start, end)

    def advise_huge(self, start: int, end: int) -> None:
        """Ask for huge pages behind a range."""
        self._backing.advise_huge(start, end)

    def _move(self, step: Move, pending: _Pending) -> None:
        source, target, size = step
        if pending.stage == 2:
            return
        self._pending = pending._replace(stage=1)
        if not self._backing.move(source, target, size, again=pending.stage == 1):
            self._backing.copy(source, target, size)
        self._pending = pending._replace(stage=2)

    def take_lent(self) -> None:
        """Let no page of the window that has gone be reached at another address any more; the
        program has ended, and is to show at which it could not go on.
        """
        for area in self.areas.spans:
            size = area.end - area.start
            if area.delta and not self._window_ready(area.start + area.delta, size, write=False):
                self.tables.set(area.start, area.end, 0)

    def peek(self, address: int, size: int) -> bytes | None:
        """Return what is in an area, whatever its rights are; None when all has been unmapped. May
        be called from any thread.
        """
        with self._guard:
            return None if self._closed else bytes(self._backing.view(address, size))

    def live(self, address: int) -> int:
        """Return the number of the mapping of a file's own bytes that is there, or 0."""
        area = self.areas.spans.at(address)
        return 0 if area is None else area.live

    def close(self) -> None:
        """Unmap it all; its VM has been closed before. Further calls do nothing."""
        with self._guard:
            self._closed = True
        self.tables.release()
        self._view.release()
        self._backing.close()
        self.low.close()
