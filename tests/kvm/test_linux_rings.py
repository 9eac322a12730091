"""A program for Linux is in ring 3; SYSCALL takes it to ring 0 and back, where there is one."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from guest_elfs import FOR_LINUX
from kvm.linux_scene import ANONYMOUS, PAGE, Scene
from tests_support import IN_LANE

from vmm import Monitor, host
from vmm.guest import x86
from vmm.kvm import Hlt, MmioWrite
from vmm.linux import boot
from vmm.linux.boot import GATE
from vmm.linux.gate import RAX, RDI, RSI

# mov edi, cs; mov eax, 39; syscall; mov esi, cs; mov eax, 60; syscall; mov rax, cr3
_CODE = bytes.fromhex("8ccf b827000000 0f05 8cce b83c000000 0f05 0f20d8 f4")
_GENERAL_PROTECTION = 13


def ring_of_calls() -> int:
    """Return which ring SYSCALL must lead to: with EPT and NPT, which the lanes have, it is 0."""
    return 0 if IN_LANE else host.inspect().ring


def test_a_call_goes_to_ring_0_and_back_to_ring_3() -> None:
    with Scene() as scene:
        place = scene.memory.mmap(0, PAGE, 5, ANONYMOUS)
        scene.memory.fill(place, _CODE)
        scene.vcpu.set_regs(boot.regs(place, scene.stack))
        for call, register in ((39, RDI), (60, RSI)):
            exit_ = scene.gate.run()
            assert isinstance(exit_, MmioWrite)
            assert scene.gate.called(exit_)
            assert (exit_.gpa, scene.gate.registers[RAX]) == (GATE, call)
            # Where the call has led to: what the code there has stored, and what KVM says.
            sregs = scene.vcpu.get_sregs()
            ring = ring_of_calls()
            assert exit_.data[0] & 3 == ring
            assert (sregs.cs.selector & 3, sregs.ss.dpl) == (ring, ring)
            # Where it has come from: ring 3, the second time as well.
            assert scene.gate.registers[register] & 3 == 3
            scene.gate.answer(0)
        assert scene.vcpu.run() == Hlt()
        assert x86.trap_vector(scene.vcpu.get_regs().rip) == _GENERAL_PROTECTION


@pytest.mark.parametrize("ring", [None, 3], ids=["the usual ring", "ring 3"])
@pytest.mark.parametrize("first", ["a program", "a guest"])
def test_programs_and_guests_of_either_ring_are_peers(
    open_monitor: Callable[..., Monitor],
    test_guest: Callable[[str], Path],
    ring: int | None,
    first: str,
) -> None:
    monitor = open_monitor(ring=ring, pool="4M")
    folders = (FOR_LINUX, test_guest("x").parent)
    names = ("forward_to_b", "increment_to_host")
    a, b = (
        monitor.spawn(folder / f"{name}.elf", name=letter, window="2M")
        for folder, name, letter in zip(
            folders if first == "a program" else folders[::-1], names, "ab", strict=True
        )
    )
    monitor.connect(a, b)
    buffer = monitor.host.alloc(PAGE)
    buffer.write(b"hello")
    monitor.host.send(a, buffer, tag=7)
    monitor.run(20)
    received = monitor.host.receive()
    assert (a.exit_code, b.exit_code) == (0, 0), (a.fault, b.fault)
    assert received is not None
    assert received.buffers[0].read()[:5] == b"iello"
    assert received.tag == 7
