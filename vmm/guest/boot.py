"""A machine's first state.

Image, tables and registers, so that KVM enters long mode at the entry point. Pure: what they are,
not where they go.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

from vmm.errors import GuestImageError
from vmm.guest import abi, x86
from vmm.guest.image import Image, Room
from vmm.guest.x86 import PageTables, Range
from vmm.kvm import kvm_regs, kvm_segment, kvm_sregs
from vmm.memory.region import Region

# CR0: PE MP ET NE WP AM PG; CR4: PAE, SSE with its exceptions (SDM 2.5); EFER: LME LMA NXE (SDM
# 2.2.1).
_CR0 = 0x80050033
_CR4 = 0x620
_EFER = 0xD00
# IF is set, as for any program, though no machine ever gets an interrupt. With it clear, the host's
# own interrupts have to stop the guest all the same; in Bochs 2.7 they do not, and an endless loop
# never ends.
_RFLAGS = 0x202
# At the least this lies below every stack, not mapped: more than a frame of a megabyte, since a
# function that does not probe its frame (a guest's own objects may not) touches it anywhere.
GUARD = 3 << 19
_IOPL3 = 0x3000  # ring 3 may use I/O ports, where the host keeps IOPL


@dataclasses.dataclass(frozen=True, slots=True)
class Layout:
    """Where things lie in one machine.

    private   its private memory, from address 0
    guard     within it, from the image to the stack, not mapped: GUARD bytes or more
    stack     within it, at the top
    window    where its transferable pages appear
    tables    page tables for all of it
    """

    private: Region
    guard: Region
    stack: Region
    window: Region
    tables: PageTables


def plan(image: Image, private: int, stack: int, window: int, user: bool) -> Layout:
    """Lay a machine out. All sizes in bytes, multiples of the page size; `window` one of 2 MiB.

    private   memory for the image and the stack. Where there is no room in it for a guard area
              between them it is made larger: that is addresses only, as nothing touches them
    user      whether it runs in ring 3

    Raises GuestImageError if the image and its stack do not fit into private memory.
    """
    room = Room(private, stack)
    room.check(image.name, image.end)
    whole = Region(0, max(private, image.end + GUARD + stack))
    if whole.end > abi.DOORBELL_GPA:
        raise room.too_small(image.name, image.end)
    stack_region = Region(whole.end - stack, stack)
    guard = Region(image.end, stack_region.base - image.end)
    window_region = Region(abi.WINDOW_GPA, window)
    ranges = [
        Range(s.first_page, s.end_page, write=s.write, execute=s.execute, user=user)
        for s in image.segments
    ]
    ranges.append(Range(stack_region.base, stack_region.end, write=True, user=user))
    all_ranges = (*x86.system_ranges(user), *ranges)
    try:
        tables = x86.page_tables(all_ranges, window_region, user)
    except ValueError as error:
        raise GuestImageError(f"{image.name}: {error}") from error
    return Layout(whole, guard, stack_region, window_region, tables)


def contents(image: Image, layout: Layout) -> Iterator[tuple[int, bytes]]:
    """Yield what is in private memory at first, as (guest-physical address, bytes): the tables and
    the image. The rest is zeros.
    """
    yield from x86.system_area()
    yield x86.PAGE_TABLES, layout.tables.data
    for segment in image.segments:
        yield segment.gpa, segment.data


def sregs(reset: kvm_sregs, image: Image, layout: Layout, user: bool) -> kvm_sregs:
    """Return the system registers to enter with, in ring 3 if `user`, else in ring 0.

    reset     those of a vCPU that has just been made
    """
    made = flat(reset, layout.tables.root, user)
    made.fs.base = image.thread  # in ring 3 a guest could not set it everywhere
    return made


def flat(reset: kvm_sregs, root: int, user: bool) -> kvm_sregs:
    """Return the system registers of any program, in ring 3 if `user`, with its page tables at
    `root`.
    """
    made = kvm_sregs.from_buffer_copy(reset)
    code = _segment(made.cs, x86.CODE3 if user else x86.CODE0, 0xB, user)
    code.l, code.db = 1, 0
    data = x86.DATA3 if user else x86.DATA0
    for segment in (made.ss, made.ds, made.es, made.fs, made.gs):
        _segment(segment, data, 0x3, user)
    task = made.tr
    task.base, task.limit, task.selector = x86.TSS, 0x67, x86.TASK
    task.type, task.s, task.present, task.dpl, task.g, task.unusable = 0xB, 0, 1, 0, 0, 0
    made.gdt.base, made.gdt.limit = x86.GDT, 7 * 8 - 1
    made.idt.base, made.idt.limit = x86.IDT, x86.VECTORS * 16 - 1
    made.cr0, made.cr4, made.efer, made.cr3 = _CR0, _CR4, _EFER, root
    return made


def regs(image: Image, layout: Layout, user: bool) -> kvm_regs:
    """Return the general registers to enter with: zeros but for three."""
    # As if called: the ABI wants the stack pointer 8 below a multiple of 16 at a function's first
    # instruction.
    return kvm_regs(
        rip=image.entry, rsp=layout.stack.end - 8, rflags=_RFLAGS | (_IOPL3 if user else 0)
    )


def _segment(segment: kvm_segment, selector: int, kind: int, user: bool) -> kvm_segment:
    """Fill in a flat 4 GiB segment (SDM 3.4.5)."""
    fields = {
        "base": 0, "limit": 0xFFFFFFFF, "selector": selector, "type": kind, "present": 1,
        "dpl": 3 if user else 0, "db": 1, "s": 1, "l": 0, "g": 1, "avl": 0, "unusable": 0,
    }  # fmt: skip
    for name, value in fields.items():
        setattr(segment, name, value)
    return segment
