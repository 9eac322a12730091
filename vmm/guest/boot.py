"""A machine's first state.

Image, tables and registers, so that KVM enters long mode at the entry point.
"""

from __future__ import annotations

import dataclasses

from vmm.errors import GuestImageError
from vmm.guest import abi, x86
from vmm.guest.image import Image
from vmm.guest.x86 import PAGE, PageTables, Range
from vmm.kvm import Kvm, Vcpu
from vmm.kvm.structs import kvm_segment
from vmm.memory.private import PrivateMemory
from vmm.memory.region import Region
from vmm.sizes import format_size

# CR0: PE MP ET NE WP AM PG; CR4: PAE, SSE with its exceptions (SDM 2.5); EFER: LME LMA NXE (SDM
# 2.2.1).
_CR0 = 0x80050033
_CR4 = 0x620
_EFER = 0xD00
# IF is set, as for any program, though no machine ever gets an interrupt. With it clear, the host's
# own interrupts have to stop the guest all the same; in Bochs 2.7 they do not, and an endless loop
# never ends.
_RFLAGS = 0x202
_IOPL3 = 0x3000  # ring 3 may use I/O ports, where the host keeps IOPL


@dataclasses.dataclass(frozen=True, slots=True)
class Layout:
    """Where things lie in one machine.

    private   its private memory, from address 0
    stack     within it, at the top; the page below is not mapped
    window    where its transferable pages appear
    tables    page tables for all of it
    """

    private: Region
    stack: Region
    window: Region
    tables: PageTables


def plan(image: Image, private: int, stack: int, window: int, user: bool) -> Layout:
    """Lay a machine out. All sizes in bytes, multiples of the page size; `window` one of 2 MiB.

    user      whether it runs in ring 3

    Raises GuestImageError if the image, its stack and a guard page do not fit into private memory.
    """
    stack_region = Region(private - stack, stack)
    if image.end > stack_region.base - PAGE:
        raise GuestImageError(
            f"{image.name}: the image ends at {image.end:#x}: {format_size(private)} of private "
            f"memory with a stack of {format_size(stack)} is too small: give more "
            "(memory=, --memory)"
        )
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
    return Layout(Region(0, private), stack_region, window_region, tables)


def load(memory: PrivateMemory, image: Image, layout: Layout) -> None:
    """Write the tables and the image into fresh private memory."""
    for gpa, data in x86.system_area():
        memory.write(gpa, data)
    memory.write(x86.PAGE_TABLES, layout.tables.data)
    for segment in image.segments:
        memory.write(segment.gpa, segment.data)


def enter(kvm: Kvm, vcpu: Vcpu, image: Image, layout: Layout, user: bool) -> None:
    """Set a fresh vCPU's registers to the image's entry point, in ring 3 if `user`, else ring 0."""
    vcpu.set_cpuid(kvm.supported_cpuid())
    sregs = vcpu.get_sregs()
    code = _segment(sregs.cs, x86.CODE3 if user else x86.CODE0, 0xB, user)
    code.l, code.db = 1, 0
    data = x86.DATA3 if user else x86.DATA0
    for segment in (sregs.ss, sregs.ds, sregs.es, sregs.fs, sregs.gs):
        _segment(segment, data, 0x3, user)
    task = sregs.tr
    task.base, task.limit, task.selector = x86.TSS, 0x67, x86.TASK
    task.type, task.s, task.present, task.dpl, task.g, task.unusable = 0xB, 0, 1, 0, 0, 0
    sregs.gdt.base, sregs.gdt.limit = x86.GDT, 7 * 8 - 1
    sregs.idt.base, sregs.idt.limit = x86.IDT, x86.VECTORS * 16 - 1
    sregs.cr0, sregs.cr4, sregs.efer, sregs.cr3 = _CR0, _CR4, _EFER, layout.tables.root
    vcpu.set_sregs(sregs)

    regs = vcpu.get_regs()
    # As if called: the ABI wants the stack pointer 8 below a multiple of 16 at a function's first
    # instruction.
    regs.rip, regs.rsp = image.entry, layout.stack.end - 8
    regs.rflags = _RFLAGS | (_IOPL3 if user else 0)
    vcpu.set_regs(regs)


def _segment(segment: kvm_segment, selector: int, kind: int, user: bool) -> kvm_segment:
    """Fill in a flat 4 GiB segment (SDM 3.4.5)."""
    fields = {
        "base": 0, "limit": 0xFFFFFFFF, "selector": selector, "type": kind, "present": 1,
        "dpl": 3 if user else 0, "db": 1, "s": 1, "l": 0, "g": 1, "avl": 0, "unusable": 0,
    }  # fmt: skip
    for name, value in fields.items():
        setattr(segment, name, value)
    return segment
