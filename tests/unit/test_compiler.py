"""What runs a compiler: Ctrl-C comes between its steps, not in their midst."""

from __future__ import annotations

import signal
import threading

import pytest

from vmm.guest.compiler import uninterrupted
from vmm.guest.inputs import dependencies


def test_ctrl_c_waits_for_the_end_of_a_block_whichever_thread_is_given_it() -> None:
    handler, before = signal.getsignal(signal.SIGINT), signal.pthread_sigmask(signal.SIG_BLOCK, ())
    begun, steps = threading.Event(), list[str]()

    def be_given_it() -> None:
        begun.wait()
        signal.pthread_kill(threading.get_ident(), signal.SIGINT)

    thread = threading.Thread(target=be_given_it)  # started before: it does not block the signal
    thread.start()
    with pytest.raises(KeyboardInterrupt), uninterrupted():
        begun.set()
        thread.join()
        steps.append("done")
    assert steps == ["done"]
    assert signal.getsignal(signal.SIGINT) is handler
    assert signal.pthread_sigmask(signal.SIG_BLOCK, ()) == before


@pytest.mark.parametrize(
    ("rule", "files"),
    [
        ("x.o: x.c\n", ["x.c"]),
        (
            "x.o: x.c \\\n /usr/include/a.h \\\n  b\\ c.h\n\n/usr/include/a.h:\n",
            ["x.c", "/usr/include/a.h", "b c.h"],
        ),
        ("x.o: a$$b.h c\\#d.h", ["a$b.h", "c#d.h"]),
        ("x.o:\n", []),
        ("", []),
    ],
)
def test_the_files_of_a_rule_of_makes_are_found(rule: str, files: list[str]) -> None:
    assert dependencies(rule) == files
