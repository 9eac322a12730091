"""The kernel's KVM structures, as ctypes, x86-64 only. Data, no behaviour.

Every class named ``kvm_*`` has the C structure's tag for its name, and its fields have the C
fields' names; every class named ``_anon_*`` is a member that has no tag in C. A field whose name
starts with an underscore is padding, which C headers rename from one kernel version to the next.
A layout is typed once, as annotations: ``layout`` derives ``_fields_`` from them, so the type
checker and ctypes read the same line.

Source: ``include/uapi/linux/kvm.h`` and ``arch/x86/include/uapi/asm/kvm.h``. The tests compare
all of it, field by field, with the installed headers.
"""

from ctypes import Array, Structure, Union, c_char, c_int32, c_uint8, c_uint16, c_uint32, c_uint64
from functools import lru_cache
from typing import Annotated, Any, TypeVar, get_type_hints

U8 = Annotated[int, c_uint8]
U16 = Annotated[int, c_uint16]
U32 = Annotated[int, c_uint32]
U64 = Annotated[int, c_uint64]
S32 = Annotated[int, c_int32]

_Layout = TypeVar("_Layout", bound="Struct | Union")


class Struct(Structure):
    """A structure that compares by content and prints its fields. Unhashable: it is mutable."""

    __hash__ = None  # type: ignore[assignment]

    def __eq__(self, other: object) -> bool:
        if type(other) is not type(self):
            return NotImplemented
        return bytes(self) == bytes(other)

    def __repr__(self) -> str:
        names = [field[0] for field in self._fields_ if not field[0].startswith("_")]
        fields = ", ".join(f"{name}={_show(getattr(self, name))}" for name in names)
        return f"{type(self).__name__}({fields})"


def _show(value: object) -> str:
    if isinstance(value, int):
        return hex(value)
    return repr(list(value)) if isinstance(value, Array) else repr(value)


def layout(cls: type[_Layout]) -> type[_Layout]:
    """Class decorator: make ctypes' ``_fields_`` from the annotations, in their order."""
    hints = get_type_hints(cls, include_extras=True)
    cls._fields_ = [
        (name, getattr(hint, "__metadata__", (hint,))[0]) for name, hint in hints.items()
    ]
    return cls


# ---- registers ----


@layout
class kvm_regs(Struct):
    """General registers, all 64 bit."""

    rax: U64
    rbx: U64
    rcx: U64
    rdx: U64
    rsi: U64
    rdi: U64
    rsp: U64
    rbp: U64
    r8: U64
    r9: U64
    r10: U64
    r11: U64
    r12: U64
    r13: U64
    r14: U64
    r15: U64
    rip: U64
    rflags: U64


@layout
class kvm_segment(Struct):
    """A segment register with its hidden part. ``limit`` is in bytes whatever ``g`` says."""

    base: U64
    limit: U32
    selector: U16
    type: U8
    present: U8
    dpl: U8
    db: U8
    s: U8
    l: U8  # noqa: E741 - the kernel's name
    g: U8
    avl: U8
    unusable: U8
    _padding: U8


@layout
class kvm_dtable(Struct):
    """GDTR or IDTR."""

    base: U64
    limit: U16
    _padding: Annotated[Array[c_uint16], c_uint16 * 3]


@layout
class kvm_sregs(Struct):
    """Special registers: segments, descriptor tables, control registers, EFER."""

    cs: kvm_segment
    ds: kvm_segment
    es: kvm_segment
    fs: kvm_segment
    gs: kvm_segment
    ss: kvm_segment
    tr: kvm_segment
    ldt: kvm_segment
    gdt: kvm_dtable
    idt: kvm_dtable
    cr0: U64
    cr2: U64
    cr3: U64
    cr4: U64
    cr8: U64
    efer: U64
    apic_base: U64
    interrupt_bitmap: Annotated[Array[c_uint64], c_uint64 * 4]


@layout
class kvm_fpu(Struct):
    """x87 and SSE state."""

    fpr: Annotated[Array[Array[c_uint8]], (c_uint8 * 16) * 8]
    fcw: U16
    fsw: U16
    ftwx: U8
    _pad1: U8
    last_opcode: U16
    last_ip: U64
    last_dp: U64
    xmm: Annotated[Array[Array[c_uint8]], (c_uint8 * 16) * 16]
    mxcsr: U32
    _pad2: U32


@layout
class kvm_debugregs(Struct):
    """DR0 to DR3, DR6, DR7."""

    db: Annotated[Array[c_uint64], c_uint64 * 4]
    dr6: U64
    dr7: U64
    flags: U64
    _reserved: Annotated[Array[c_uint64], c_uint64 * 9]


@layout
class kvm_xcr(Struct):
    """One extended control register."""

    xcr: U32
    _reserved: U32
    value: U64


@layout
class kvm_xcrs(Struct):
    """All extended control registers; ``nr_xcrs`` says how many entries count."""

    nr_xcrs: U32
    flags: U32
    xcrs: Annotated[Array[kvm_xcr], kvm_xcr * 16]
    _padding: Annotated[Array[c_uint64], c_uint64 * 16]


@layout
class kvm_msr_entry(Struct):
    """One model-specific register."""

    index: U32
    _reserved: U32
    data: U64


@layout
class kvm_xsave(Struct):
    """What XSAVE stores of a vCPU, x87, SSE and AVX included."""

    region: Annotated[Array[c_uint32], c_uint32 * 1024]


@layout
class kvm_msrs(Struct):
    """Head of a list of kvm_msr_entry."""

    nmsrs: U32
    _pad: U32


@layout
class kvm_msr_list(Struct):
    """Head of a list of MSR numbers."""

    nmsrs: U32


@layout
class kvm_cpuid_entry2(Struct):
    """One CPUID leaf."""

    function: U32
    index: U32
    flags: U32
    eax: U32
    ebx: U32
    ecx: U32
    edx: U32
    _padding: Annotated[Array[c_uint32], c_uint32 * 3]


@layout
class kvm_cpuid2(Struct):
    """Head of a list of kvm_cpuid_entry2."""

    nent: U32
    _padding: U32


# ---- vCPU: events, debugging, the run page ----


@layout
class _anon_event_exception(Struct):
    injected: U8
    nr: U8
    has_error_code: U8
    pending: U8
    error_code: U32


@layout
class _anon_event_interrupt(Struct):
    injected: U8
    nr: U8
    soft: U8
    shadow: U8


@layout
class _anon_event_nmi(Struct):
    injected: U8
    pending: U8
    masked: U8
    _pad: U8


@layout
class _anon_event_smi(Struct):
    smm: U8
    pending: U8
    smm_inside_nmi: U8
    latched_init: U8


@layout
class _anon_event_triple_fault(Struct):
    pending: U8


@layout
class kvm_vcpu_events(Struct):
    """Exceptions, interrupts, NMI and SMI that are pending or being injected."""

    exception: _anon_event_exception
    interrupt: _anon_event_interrupt
    nmi: _anon_event_nmi
    sipi_vector: U32
    flags: U32
    smi: _anon_event_smi
    triple_fault: _anon_event_triple_fault
    _reserved: Annotated[Array[c_uint8], c_uint8 * 26]
    exception_has_payload: U8
    exception_payload: U64


@layout
class kvm_mp_state(Struct):
    """Multiprocessor state, KVM_MP_STATE_*."""

    mp_state: U32


@layout
class kvm_guest_debug_arch(Struct):
    """Debug registers for KVM_SET_GUEST_DEBUG."""

    debugreg: Annotated[Array[c_uint64], c_uint64 * 8]


@layout
class kvm_guest_debug(Struct):
    """KVM_GUESTDBG_* and the debug registers."""

    control: U32
    _pad: U32
    arch: kvm_guest_debug_arch


@layout
class kvm_debug_exit_arch(Struct):
    """What stopped the guest, for KVM_EXIT_DEBUG."""

    exception: U32
    _pad: U32
    pc: U64
    dr6: U64
    dr7: U64


@layout
class kvm_translation(Struct):
    """Linear to guest-physical address."""

    linear_address: U64
    physical_address: U64
    valid: U8
    writeable: U8
    usermode: U8
    _pad: Annotated[Array[c_uint8], c_uint8 * 5]


@layout
class kvm_interrupt(Struct):
    """A vector to inject."""

    irq: U32


@layout
class kvm_signal_mask(Struct):
    """Head of a kernel signal set, ``len`` bytes long."""

    len: U32


@layout
class kvm_sync_regs(Struct):
    """Registers mirrored in the run page."""

    regs: kvm_regs
    sregs: kvm_sregs
    events: kvm_vcpu_events


@layout
class _anon_run_hw(Struct):
    hardware_exit_reason: U64


@layout
class _anon_run_fail_entry(Struct):
    hardware_entry_failure_reason: U64
    cpu: U32


@layout
class _anon_run_io(Struct):
    direction: U8
    size: U8
    port: U16
    count: U32
    data_offset: U64


@layout
class _anon_run_debug(Struct):
    arch: kvm_debug_exit_arch


@layout
class _anon_run_mmio(Struct):
    phys_addr: U64
    data: Annotated[Array[c_uint8], c_uint8 * 8]
    len: U32
    is_write: U8


@layout
class _anon_run_hypercall(Struct):
    nr: U64
    args: Annotated[Array[c_uint64], c_uint64 * 6]
    ret: U64
    longmode: U32  # 64 bits of flags since Linux 6.4, of which this is bit 0


@layout
class _anon_run_internal(Struct):
    suberror: U32
    ndata: U32
    data: Annotated[Array[c_uint64], c_uint64 * 16]


@layout
class _anon_run_system_event(Struct):
    type: U32
    ndata: U32
    data: Annotated[Array[c_uint64], c_uint64 * 16]


@layout
class _anon_run_msr(Struct):
    error: U8
    _pad: Annotated[Array[c_uint8], c_uint8 * 7]
    reason: U32
    index: U32
    data: U64


@layout
class _anon_run_memory_fault(Struct):
    flags: U64
    gpa: U64
    size: U64


@layout
class _anon_run_exit(Union):
    hw: _anon_run_hw
    fail_entry: _anon_run_fail_entry
    io: _anon_run_io
    debug: _anon_run_debug
    mmio: _anon_run_mmio
    hypercall: _anon_run_hypercall
    internal: _anon_run_internal
    system_event: _anon_run_system_event
    msr: _anon_run_msr
    memory_fault: _anon_run_memory_fault
    _size: Annotated[Array[c_char], c_char * 256]


@layout
class _anon_run_sync(Union):
    regs: kvm_sync_regs
    _size: Annotated[Array[c_char], c_char * 2048]


@layout
class kvm_run(Struct):
    """What a vCPU and its monitor share: the start of the mapping of the vCPU's descriptor."""

    _anonymous_ = ("exit",)

    request_interrupt_window: U8
    immediate_exit: U8
    _padding1: Annotated[Array[c_uint8], c_uint8 * 6]
    exit_reason: U32
    ready_for_interrupt_injection: U8
    if_flag: U8
    flags: U16
    cr8: U64
    apic_base: U64
    exit: _anon_run_exit
    kvm_valid_regs: U64
    kvm_dirty_regs: U64
    s: _anon_run_sync


# ---- VM ----


@layout
class kvm_userspace_memory_region(Struct):
    """A memory slot: guest-physical range and the host addresses behind it. Sizes in bytes."""

    slot: U32
    flags: U32
    guest_phys_addr: U64
    memory_size: U64
    userspace_addr: U64


@layout
class kvm_dirty_log(Struct):
    """Where to put the bitmap of one slot's dirty pages."""

    slot: U32
    _padding1: U32
    dirty_bitmap: U64  # a pointer in C


@layout
class kvm_enable_cap(Struct):
    """A capability to turn on, and its arguments."""

    cap: U32
    flags: U32
    args: Annotated[Array[c_uint64], c_uint64 * 4]
    _pad: Annotated[Array[c_uint8], c_uint8 * 64]


@layout
class kvm_irq_level(Struct):
    """An interrupt line and its level."""

    irq: U32
    level: U32


@layout
class kvm_pit_config(Struct):
    """Flags of the timer."""

    flags: U32
    _pad: Annotated[Array[c_uint32], c_uint32 * 15]


@layout
class kvm_irqfd(Struct):
    """An eventfd that raises an interrupt line."""

    fd: U32
    gsi: U32
    flags: U32
    resamplefd: U32
    _pad: Annotated[Array[c_uint8], c_uint8 * 16]


@layout
class kvm_ioeventfd(Struct):
    """A guest address whose writes signal an eventfd."""

    datamatch: U64
    addr: U64
    len: U32
    fd: S32
    flags: U32
    _pad: Annotated[Array[c_uint8], c_uint8 * 36]


@layout
class kvm_clock_data(Struct):
    """The paravirtual clock, in nanoseconds."""

    clock: U64
    flags: U32
    _pad0: U32
    realtime: U64
    host_tsc: U64
    _pad: Annotated[Array[c_uint32], c_uint32 * 4]


# ---- structures that end in an array of any length ----

FLEXIBLE: dict[type[Struct], tuple[str, Any]] = {
    kvm_msrs: ("entries", kvm_msr_entry),
    kvm_msr_list: ("indices", c_uint32),
    kvm_cpuid2: ("entries", kvm_cpuid_entry2),
    kvm_signal_mask: ("sigset", c_uint8),
}
"""Head of a list -> (name of its C flexible array member, type of an element)."""


@lru_cache(maxsize=64)
def flexible(head: type[Struct], count: int) -> Any:
    """Return a structure type: ``head`` followed by its array, ``count`` elements long."""
    name, element = FLEXIBLE[head]
    return type(f"{head.__name__}_{count}", (head,), {"_fields_": [(name, element * count)]})
