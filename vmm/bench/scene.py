"""The scene: what the floor (scripts/bench/floor.c, floor_calls.c) starts from, the same machines
as ours.

A snapshot of machines that have been spawned and have not run: their private memory, registers and
windows, as they are when KVM enters them first. Or of one that waits for calls.
"""

from __future__ import annotations

import ctypes
import struct
from collections.abc import Iterator, Sequence

from vmm.engine.machine import Machine
from vmm.guest.abi import PAGE_SIZE
from vmm.kvm import CpuidEntry, cpuid
from vmm.kvm.structs import kvm_cpuid2
from vmm.linux.boot import GATE, MSR_LSTAR, MSR_SFMASK, MSR_STAR
from vmm.linux.machine import LinuxMachine
from vmm.memory.movers import RemapMover

_MAGIC, _CALLS_MAGIC = b"PFSCENE1", b"PFCALLS1"
_HEAD = struct.Struct("<8s5I")
_IMAGE = struct.Struct("<4Q")
_CHUNK = struct.Struct("<2Q")
_CALLS_HEAD = struct.Struct("<8s2I2Q6Q")
_SLOT = struct.Struct("<3Q")
_NEVER = (1 << 32) - 1
MOVERS = {"memfd": 0, "remap": 1}  # those that the floor knows
_ZERO = bytes(PAGE_SIZE)


def scene(machines: Sequence[Machine], doorbell: int, mover: str, others: int = 0) -> bytes:
    """Return the scene of fresh machines: of the sender, the receiver, and one that exits.

    others   how many there are besides, that never run
    """
    leaves = machines[0].guest.vcpu.get_cpuid()
    many = RemapMover.many if mover == RemapMover.name else _NEVER
    parts = [
        _HEAD.pack(_MAGIC, doorbell, MOVERS[mover], len(leaves), others, many),
        _packed(leaves),
    ]
    for machine in machines:
        parts += _image(machine)
    return b"".join(parts)


def waiting_scene(machine: LinuxMachine) -> bytes:
    """Return the scene of a program that waits for a message. Its machine is not to be run on."""
    machine.guest.vcpu.complete_pending_io()  # the doorbell that it has rung
    return calls_scene(machine)


def calls_scene(machine: LinuxMachine) -> bytes:
    """Return the scene of a program's machine, that has not run."""
    vcpu = machine.guest.vcpu
    leaves = vcpu.get_cpuid()
    msrs = vcpu.get_msrs((MSR_STAR, MSR_LSTAR, MSR_SFMASK))
    pairs = [number for pair in msrs.items() for number in pair]
    xcr0 = vcpu.get_xcrs().get(0, 0)
    khz = vcpu.get_tsc_khz()
    parts = [_CALLS_HEAD.pack(_CALLS_MAGIC, len(leaves), khz, GATE, xcr0, *pairs)]
    parts += [bytes(vcpu.get_sregs()), bytes(vcpu.get_regs()), _packed(leaves)]
    for _, base, size, address in machine.guest.process.memory.slots:
        chunks = list(_chunks(ctypes.string_at(address, size)))
        parts.append(_SLOT.pack(base, size, len(chunks)))
        for offset, data in chunks:
            parts += [_CHUNK.pack(offset, len(data)), data]
    return b"".join(parts)


def _packed(leaves: Sequence[CpuidEntry]) -> bytes:
    return bytes(cpuid.pack(leaves))[ctypes.sizeof(kvm_cpuid2) :]


def _image(machine: Machine) -> Iterator[bytes]:
    """Yield one machine: sizes, registers, and the pages of its memory that are not zero."""
    guest = machine.guest
    size, window = guest.memory.region.size, machine.window
    chunks = list(_chunks(guest.memory.read(0, size)))
    yield _IMAGE.pack(size, window.base, window.size, len(chunks))
    yield bytes(guest.vcpu.get_sregs())
    yield bytes(guest.vcpu.get_regs())
    for address, data in chunks:
        yield _CHUNK.pack(address, len(data))
        yield data


def _chunks(memory: bytes) -> Iterator[tuple[int, bytes]]:
    for address in range(0, len(memory), PAGE_SIZE):
        page = memory[address : address + PAGE_SIZE]
        if page != _ZERO[: len(page)]:
            yield address, page
