"""Kicks: a pending signal on one thread, and nothing left of it afterwards."""

from __future__ import annotations

import signal
import threading
import time

import pytest
from cut_off import Tracer

from vmm.engine import kick
from vmm.engine.kick import KICK, deadline, drain, kickable, masked_while_running

LONG = 20.0  # seconds: over only if a kick got lost


def me() -> int:
    return threading.get_ident()


def blocked() -> set[int]:
    return {int(number) for number in signal.pthread_sigmask(signal.SIG_BLOCK, ())}


def pending() -> bool:
    return KICK in signal.sigpending()


def wait_for_kick(seconds: float = LONG) -> bool:
    """As KVM_RUN does: return at once if a kick is pending, or when one comes."""
    return signal.sigtimedwait({KICK}, seconds) is not None


def test_a_kick_before_the_wait_stays_pending_and_ends_it_at_once() -> None:
    with kickable():
        kick.kick(me())
        assert pending()
        assert wait_for_kick()
        assert not pending()


def test_a_kick_that_comes_too_late_is_drained() -> None:
    with kickable():
        kick.kick(me())
        kick.kick(me())
        drain()
        assert not pending()
        assert not wait_for_kick(0)


def test_draining_without_a_kick_does_not_wait() -> None:
    with kickable():
        start = time.monotonic()
        drain()
        assert time.monotonic() - start < LONG / 2


def test_what_cuts_off_the_beginning_or_the_end_of_a_block_leaves_the_signal_mask() -> None:
    before, line = blocked(), 0
    while True:
        line += 1
        with Tracer(line, under="engine/kick.py") as tracer, kickable():
            assert KICK in blocked()
        assert blocked() == before, tracer.where
        if tracer.where is None:
            break
    assert line > 5


def test_the_signal_mask_is_restored_and_a_pending_kick_with_it() -> None:
    before = blocked()
    assert KICK not in before
    with kickable():
        assert blocked() == before | {KICK}
        kick.kick(me())
    assert blocked() == before
    assert not pending()


def test_the_mask_is_restored_after_an_error_too() -> None:
    before = blocked()
    with pytest.raises(KeyError), kickable():
        kick.kick(me())
        raise KeyError
    assert blocked() == before
    assert not pending()


def test_a_thread_that_was_kickable_stays_so_after_an_inner_block() -> None:
    with kickable():
        with kickable():
            pass
        assert KICK in blocked()
        kick.kick(me())
        assert wait_for_kick()


def test_no_handler_is_installed() -> None:
    with kickable():
        kick.kick(me())
        assert signal.getsignal(KICK) is signal.SIG_DFL
    assert signal.getsignal(KICK) is signal.SIG_DFL


def test_a_vcpu_runs_with_the_threads_mask_except_for_the_kick() -> None:
    with kickable():
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1})
        try:
            assert masked_while_running() == blocked() - {KICK}
            assert signal.SIGUSR1 in masked_while_running()
        finally:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGUSR1})


def test_only_the_thread_that_is_meant_is_kicked() -> None:
    ready, results = threading.Barrier(3), {}

    def work(name: str, seconds: float) -> None:
        with kickable():
            ready.wait(LONG)
            results[name] = wait_for_kick(seconds)

    threads = [
        threading.Thread(target=work, args=("meant", LONG)),
        threading.Thread(target=work, args=("other", 0.2)),
    ]
    for thread in threads:
        thread.start()
    ready.wait(LONG)
    ident = threads[0].ident
    assert ident is not None
    kick.kick(ident)
    for thread in threads:
        thread.join()
    assert results == {"meant": True, "other": False}


def test_a_deadline_kicks_a_block_that_takes_longer() -> None:
    with deadline(0.01):
        assert wait_for_kick()


def test_a_deadline_that_was_kept_leaves_no_kick_and_no_thread() -> None:
    before, threads = blocked(), threading.active_count()
    with deadline(LONG):
        assert threading.active_count() == threads + 1
    assert (blocked(), threading.active_count()) == (before, threads)
    assert not pending()


def test_a_deadline_missed_without_a_wait_leaves_no_kick_behind() -> None:
    with deadline(0.001):
        while not pending():
            time.sleep(0.001)
    assert not pending()
