"""The rules by which a Linux program's address space changes. Pure.

Each call says what it would do, as a plan. Rules and error numbers are those of Linux 6.x (mmap(2),
mremap(2), brk(2), and mm/mmap.c, mm/mremap.c, mm/mprotect.c for their order); where an address
space of ours differs is said at the call.
"""

from __future__ import annotations

import errno

from vmm.guest.abi import PAGE_SIZE
from vmm.linux.address_map import ALL, MIN_ADDRESS, TASK_SIZE, AddressMap, rounded, without
from vmm.linux.errors import SysError
from vmm.linux.plans import (
    MAP_32BIT,
    MAP_ANONYMOUS,
    MAP_FIXED,
    MAP_FIXED_NOREPLACE,
    MAP_HUGETLB,
    MAP_PRIVATE,
    MAP_SHARED,
    MAP_SHARED_VALIDATE,
    MAP_TYPE,
    MREMAP_FIXED,
    MREMAP_MAYMOVE,
    PROT_EXEC,
    PROT_GROWSDOWN,
    PROT_GROWSUP,
    PROT_READ,
    PROT_SEM,
    PROT_WRITE,
    Drop,
    Lent,
    Move,
    Plan,
    Rights,
)
from vmm.linux.spans import Area

_RIGHTS = PROT_READ | PROT_WRITE | PROT_EXEC


class Areas(AddressMap):
    """An address space, and what its calls would do. All raise SysError. Not thread-safe."""

    def mmap(
        self,
        address: int,
        length: int,
        prot: int,
        flags: int,
        lent: Lent | None = None,
        live: int = 0,
    ) -> Plan:
        """Map zeros, readable as `prot` says. The result is where.

        Without MAP_ANONYMOUS the area shows a file, whose contents and refusals are the caller's
        business. With `lent`, it shows these pages, and zeros beyond them. Sharing and private
        memory are the same here but for that: there is one process. `live` is of Area.

        MAP_FIXED below MIN_ADDRESS is EPERM, and ENOMEM where nothing is to be had; with
        MAP_FIXED_NOREPLACE, EEXIST. MAP_32BIT maps in the low region. MAP_HUGETLB is ENOMEM, as
        where no huge pages are set aside.
        """
        if length == 0:
            raise SysError(errno.EINVAL)
        size = rounded(length)
        if not 0 < size <= TASK_SIZE or flags & MAP_HUGETLB:
            raise SysError(errno.ENOMEM)
        if flags & (MAP_FIXED | MAP_FIXED_NOREPLACE):
            place = self._fixed(address, size, replace=not flags & MAP_FIXED_NOREPLACE)
        else:
            place = self._found(address, size, low=bool(flags & MAP_32BIT))
        kind = flags & MAP_TYPE
        if kind not in (MAP_SHARED, MAP_PRIVATE) and (
            kind != MAP_SHARED_VALIDATE or flags & MAP_ANONYMOUS
        ):
            raise SysError(errno.EINVAL)
        area = Area(place, place + size, prot & _RIGHTS, not flags & MAP_ANONYMOUS, live=live)
        if lent is None:
            return self._mapped(place, [area], self.brk)
        middle = place + min(rounded(lent.size), size)
        write = None if kind == MAP_PRIVATE else lent.write
        shown = area._replace(end=middle, delta=lent.address - place, write=write)
        parts = [shown, area._replace(start=middle)]
        return self._mapped(place, [a for a in parts if a.start < a.end], self.brk)

    def munmap(self, address: int, length: int) -> Plan:
        """Unmap what there is of a range."""
        size = rounded(length)
        if address % PAGE_SIZE or size == 0 or address + size > TASK_SIZE:
            raise SysError(errno.EINVAL)
        return self._checked(self._unmapped(self._plan(0), address, address + size))

    def mprotect(self, address: int, length: int, prot: int) -> Plan:
        """Give a range other rights. Up to the first hole in it, if it has one: then the result is
        -ENOMEM. Of PROT_GROWSDOWN only the stack knows. EACCES for what is shared and lent to be
        read only; what is private and to be written is the range's own from then on, and the
        caller has copied it (`borrowed`).
        """
        grows = prot & (PROT_GROWSDOWN | PROT_GROWSUP)
        prot &= ~grows
        if grows == PROT_GROWSDOWN | PROT_GROWSUP or address % PAGE_SIZE:
            raise SysError(errno.EINVAL)
        if length == 0:
            return self._plan(0)
        end = (address + rounded(length)) % ALL
        if end <= address:
            raise SysError(errno.ENOMEM)
        if prot & ~(_RIGHTS | PROT_SEM):
            raise SysError(errno.EINVAL)
        if grows == PROT_GROWSDOWN:
            address = self._grown_down(address, end)
        return self._protected(address, end, prot & _RIGHTS)

    def move_brk(self, address: int) -> Plan:
        """Move the heap's end. The result is where it is then: where it was, if that cannot be."""
        refused = self._plan(self.brk)
        if not self.heap <= address <= self.low.end:
            return refused
        try:
            return self._brk_moved(address)._replace(brk=address)
        except SysError:
            return refused

    def mremap(self, old: int, old_size: int, new_size: int, flags: int, new: int) -> list[Plan]:
        """Move or resize an area. The plans are to be carried out in order; the last has the
        result.

        MREMAP_DONTUNMAP is EINVAL, as on kernels that do not know it; so is an old size of 0, which
        only duplicates what is shared. Pages of the window, and a file's own bytes, can be
        unmapped by it, and no more: ENOMEM.
        """
        if flags & ~(MREMAP_MAYMOVE | MREMAP_FIXED) or flags & 3 == MREMAP_FIXED:
            raise SysError(errno.EINVAL)
        old_size, new_size = rounded(old_size), rounded(new_size)
        if old % PAGE_SIZE or new_size == 0 or new_size > TASK_SIZE:
            raise SysError(errno.EINVAL)
        if flags & MREMAP_FIXED and (
            new % PAGE_SIZE
            or new > TASK_SIZE - new_size
            or (old < new + new_size and new < old + old_size)
        ):
            raise SysError(errno.EINVAL)
        area = self.spans.at(old)
        if area is None:
            raise SysError(errno.EFAULT)
        if old_size == 0:
            raise SysError(errno.EINVAL)
        if (area.delta or area.live) and (flags & MREMAP_FIXED or new_size > old_size):
            raise SysError(errno.ENOMEM)
        if flags & MREMAP_FIXED:
            return self._moved_to(area, old, old_size, new_size, new)
        if new_size < old_size and old + old_size > TASK_SIZE:
            raise SysError(errno.EINVAL)
        if new_size <= old_size:
            return [self._checked(self._unmapped(self._plan(old), old + new_size, old + old_size))]
        if old + old_size > area.end:
            raise SysError(errno.EFAULT)
        grown = self._grown(area, old, old_size, new_size)
        if grown is not None:
            return [grown]
        if not flags & MREMAP_MAYMOVE:
            raise SysError(errno.ENOMEM)
        target = self._found(0, new_size, low=False)
        return [self._moved(self._plan(target), area, old, old_size, new_size)]

    def borrowed(self, start: int, end: int) -> list[Area]:
        """Return the areas in a range that are private, and have no memory of their own yet."""
        areas = [area.clip(start, end) for area in self.spans.within(start, end)]
        return [area for area in areas if area.delta and area.write is None]

    # ---- what they are made of ----

    def _brk_moved(self, address: int) -> Plan:
        old, new = rounded(self.brk), rounded(address)
        if new <= old:
            return self._checked(self._unmapped(self._plan(address), new, old))
        # A page beyond it has to be free, too.
        if next(self.spans.within(old, new + PAGE_SIZE), None):
            raise SysError(errno.ENOMEM)
        return self._mapped(address, [Area(old, new, PROT_READ | PROT_WRITE)], address)

    def _grown_down(self, address: int, end: int) -> int:
        """Return where a range begins that is to reach down to where its stack ends."""
        area = self.spans.next(address)
        if area is None or area.start >= end:
            raise SysError(errno.ENOMEM)
        if area.end != self.arena.end:
            raise SysError(errno.EINVAL)
        return area.start

    def _protected(self, start: int, end: int, prot: int) -> Plan:
        areas: list[Area] = []
        steps: list[Rights] = []
        hidden, reached = self.hidden, start
        for whole in self.spans.within(start, end):
            if whole.start > reached:
                break
            area = whole.clip(start, end)
            delta, write = area.delta, area.write
            if delta and prot & PROT_WRITE:
                if write is False:
                    raise SysError(errno.EACCES)
                delta = delta if write else 0
            areas.append(area._replace(prot=prot, delta=delta))
            if (area.prot, area.delta) != (prot, delta):
                steps.append(Rights(area.start, area.end, prot, area.prot != 0, delta))
                if not prot and not area.file:
                    hidden = hidden.replaced(area.start, area.end, [area])
            reached = area.end
        if not areas:
            raise SysError(errno.ENOMEM)
        if prot:
            hidden = without(hidden, start, reached)
        result = 0 if reached == end else -errno.ENOMEM
        spans = self.spans.replaced(start, reached, areas)
        return self._checked(Plan(result, tuple(steps), spans, hidden, self.brk))

    def _grown(self, area: Area, old: int, old_size: int, new_size: int) -> Plan | None:
        """Return how an area grows where it is; None if it cannot."""
        end = old + new_size
        if old + old_size != area.end or not self._inside(old, new_size):
            return None
        if next(self.spans.within(area.end, end), None):
            return None
        spans = self.spans.replaced(area.start, end, [area._replace(end=end)])
        steps = (Rights(area.end, end, area.prot),) if area.prot else ()
        return self._checked(Plan(old, steps, spans, self.hidden, self.brk))

    def _moved_to(self, area: Area, old: int, old_size: int, new_size: int, new: int) -> list[Plan]:
        """Return how a part of an area is moved to where somebody wants it."""
        kept = min(old_size, new_size)
        if kept < old_size and old + old_size > TASK_SIZE:
            raise SysError(errno.EINVAL)
        if new < MIN_ADDRESS:
            raise SysError(errno.EPERM)
        if not self._inside(new, new_size):
            raise SysError(errno.ENOMEM)
        if old + kept > area.end:
            raise SysError(errno.EFAULT)
        cleared = self._unmapped(self._plan(new), new, new + new_size)
        cut = self._unmapped(cleared, old + kept, old + old_size)
        moved = self._moved(cut, area, old, kept, new_size)
        return [cleared, cut, moved]

    def _moved(self, plan: Plan, area: Area, old: int, size: int, new_size: int) -> Plan:
        """Return what moves a part of an area to a plan's result, when that has been made."""
        target = plan.result
        end = target + new_size
        spans = plan.spans.replaced(old, old + size, ())
        spans = spans.replaced(target, end, [area._replace(start=target, end=end)])
        hidden = plan.hidden
        for part in [part.clip(old, old + size) for part in hidden.within(old, old + size)]:
            start, stop = part.start - old + target, part.end - old + target
            hidden = hidden.replaced(start, stop, [part._replace(start=start, end=stop)])
        hidden = without(hidden, old, old + size)
        steps: list[Drop | Rights | Move] = [Move(old, target, size), Drop(old, old + size)]
        if area.prot:
            steps.append(Rights(target, end, area.prot))
        return self._checked(Plan(target, tuple(steps), spans, hidden, self.brk))
