"""How a running vCPU is stopped, and what is pending when it is."""

import signal
import threading
import time
from collections.abc import Iterator

import pytest
from kvm.guest_code import (
    CODE,
    DATA_PAGE,
    HLT,
    PATIENCE,
    SPIN,
    Machine,
    Runner,
    machine,
    real_mode,
    user_mode,
)

from vmm.kvm import Hlt, Intr, IoIn, IoOut
from vmm.kvm.uapi import VcpuIoctl

KICK = signal.SIGRTMIN + 3


@pytest.fixture
def made() -> Iterator[Machine]:
    with machine() as one:
        yield one


def test_immediate_exit_stays_until_it_is_cleared(made: Machine) -> None:
    real_mode(made, HLT)
    made.vcpu.immediate_exit = True
    assert made.vcpu.immediate_exit
    assert [made.vcpu.run(), made.vcpu.run()] == [Intr(), Intr()]
    assert made.vcpu.get_regs().rip == CODE
    made.vcpu.immediate_exit = False
    assert not made.vcpu.immediate_exit
    assert made.vcpu.run() == Hlt()


def kick_while_running(made: Machine) -> set[int]:
    """Run in a thread that blocks KICK, kick it, and return what was pending there afterwards."""
    made.vcpu.set_signal_mask(signal.pthread_sigmask(signal.SIG_BLOCK, ()) - {KICK})
    pending: set[int] = set()
    ready = threading.Event()

    class Kickable(Runner):
        def run(self) -> None:
            signal.pthread_sigmask(signal.SIG_BLOCK, {KICK})
            ready.set()
            super().run()
            while (info := signal.sigtimedwait({KICK}, 0)) is not None:
                pending.add(info.si_signo)

    runner = Kickable(made.vcpu)
    runner.start()
    assert ready.wait(PATIENCE)
    time.sleep(0.02)  # let it get into the guest; too early must do as well
    assert runner.is_alive()
    signal.pthread_kill(runner.ident or 0, KICK)
    runner.join(PATIENCE)
    assert not runner.is_alive()
    assert runner.exit == Intr()
    return pending


def test_a_kick_gets_an_endless_ring_3_loop_back(made: Machine) -> None:
    user_mode(made, SPIN)
    assert kick_while_running(made) == {KICK}
    assert made.vcpu.get_regs().rip == CODE


def test_a_kick_gets_an_endless_ring_0_loop_back(made: Machine) -> None:
    real_mode(made, SPIN)
    assert kick_while_running(made) == {KICK}
    assert made.vcpu.get_regs().rip == CODE


def test_a_kick_that_comes_too_early_ends_the_next_run(made: Machine) -> None:
    user_mode(made, SPIN)
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {KICK})
    try:
        made.vcpu.set_signal_mask(before)
        signal.pthread_kill(threading.get_ident(), KICK)
        assert made.vcpu.run() == Intr()
        assert made.vcpu.run() == Intr()  # it is still pending
        assert signal.sigtimedwait({KICK}, 0) is not None
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def test_a_signal_that_stays_blocked_does_not_stop_the_guest(made: Machine) -> None:
    real_mode(made, HLT)
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {KICK})
    try:
        made.vcpu.set_signal_mask(before)
        signal.pthread_kill(threading.get_ident(), KICK)
        assert made.vcpu.run() == Intr()
        made.vcpu.set_signal_mask(None)  # the thread's own mask again, which blocks it
        assert made.vcpu.run() == Hlt()
        made.go(CODE)
        made.vcpu.set_signal_mask({KICK})
        assert made.vcpu.run() == Hlt()
    finally:
        assert signal.sigtimedwait({KICK}, 0) is not None
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def test_the_interpreter_goes_on_while_a_guest_runs(made: Machine) -> None:
    user_mode(made, SPIN)
    counted = 0
    runner = Runner(made.vcpu)
    made.vcpu.set_signal_mask(None)
    before = signal.signal(KICK, lambda _number, _frame: None)
    try:
        runner.start()
        until = time.monotonic() + 0.05
        while time.monotonic() < until:
            counted += 1
        assert runner.is_alive()
        signal.pthread_kill(runner.ident or 0, KICK)
        runner.join(PATIENCE)
        assert runner.exit == Intr()
    finally:
        signal.signal(KICK, before)
    assert counted > 100


def test_requests_other_than_a_run_are_made_again_after_a_signal(made: Machine) -> None:
    # The guest waits for a byte that only the signal's handler writes. So the request can come
    # back only if it was interrupted, the handler ran, and the request was made again.
    flag = DATA_PAGE
    real_mode(made, b"\x80\x3e\x00\x00\x00\x74\xf9" + HLT, ds_base=flag)  # cmp [0], 0; je -7
    before = signal.signal(KICK, lambda _number, _frame: made.ram.write(flag, b"\x01"))
    timer = threading.Timer(0.05, signal.pthread_kill, (threading.get_ident(), KICK))
    try:
        timer.start()
        assert made.vcpu._ioctl(VcpuIoctl.KVM_RUN) == 0
    finally:
        timer.join()
        signal.signal(KICK, before)
    assert made.ram.read(flag, 1) == b"\x01"


# ---- pending instructions ----


def test_a_pending_read_is_completed_and_nothing_more(made: Machine) -> None:
    real_mode(made, b"\xe4\x42" + HLT)  # in al, 0x42
    assert made.vcpu.run() == IoIn(0x42, 1, 1)
    made.vcpu.set_io_data(b"\x7f")
    assert made.vcpu.complete_pending_io() == Intr()
    regs = made.vcpu.get_regs()
    assert (regs.rax, regs.rip) == (0x7F, CODE + 2)
    assert not made.vcpu.immediate_exit
    assert made.vcpu.run() == Hlt()


def test_new_registers_after_completion_are_what_the_guest_gets(made: Machine) -> None:
    real_mode(made, b"\xe6\x42" + HLT)
    made.ram.write(CODE + 0x100, b"\xe6\x43" + HLT)
    assert made.vcpu.run() == IoOut(0x42, 1, 1, b"\x00")
    made.vcpu.complete_pending_io()
    made.go(CODE + 0x100, rax=5)
    assert made.vcpu.run() == IoOut(0x43, 1, 1, b"\x05")
    assert made.vcpu.run() == Hlt()


def test_completion_leaves_an_asked_for_immediate_exit(made: Machine) -> None:
    real_mode(made, b"\xe6\x42" + HLT)
    assert isinstance(made.vcpu.run(), IoOut)
    made.vcpu.immediate_exit = True
    made.vcpu.complete_pending_io()
    assert made.vcpu.immediate_exit


def test_the_last_exit_can_be_seen_again_until_it_is_forgotten(made: Machine) -> None:
    """For who has been interrupted as KVM_RUN returned."""
    assert made.vcpu.last_exit() is None
    real_mode(made, HLT)
    assert made.vcpu.run() == Hlt()
    assert made.vcpu.last_exit() == Hlt() == made.vcpu.last_exit()
    made.vcpu.forget_exit()
    assert made.vcpu.last_exit() is None
