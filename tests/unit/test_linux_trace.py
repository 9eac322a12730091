"""System calls as text."""

from __future__ import annotations

import errno

import pytest

from vmm.linux.calls import CALLS
from vmm.linux.numbers import NUMBERS
from vmm.linux.trace import described

MINUS_1 = (1 << 64) - 1


@pytest.mark.parametrize(
    ("name", "words", "answer", "text"),
    [
        ("read", (3, 0x1000, 10), 10, "read(3, 0x1000, 10) = 10"),
        ("read", (MINUS_1, 0, 10), -errno.EBADF, "read(-1, NULL, 10) = -1 EBADF"),
        ("lseek", (3, MINUS_1 - 4, 1), 7, "lseek(3, -5, 1) = 7"),
        ("kill", (1000, 15), None, "kill(1000, 15) = ?"),
        (
            "mmap",
            (0, 4096, 3, 34, MINUS_1, 0),
            1 << 32,
            "mmap(NULL, 4096, 3, 34, -1, 0) = 0x100000000",
        ),
    ],
)
def test_a_call_reads_as_in_strace(
    name: str, words: tuple[int, ...], answer: int | None, text: str
) -> None:
    padded = (*words, *[0] * (6 - len(words)))
    assert described((NUMBERS[name], padded, answer)) == text


def test_a_path_is_shown_and_can_do_no_harm() -> None:
    record = (NUMBERS["openat"], (MINUS_1 - 99, b'/in/"\\\x1b\n', 0, 0, 0, 0), 3)
    mark = "\N{REPLACEMENT CHARACTER}"
    assert described(record) == f'openat(AT_FDCWD, "/in/\\"\\\\{mark}{mark}", 0, 0) = 3'
    long = described((NUMBERS["chdir"], (b"/" * 4000, 0, 0, 0, 0, 0), 0))
    assert len(long) < 150


def test_no_call_has_more_arguments_than_there_are_registers() -> None:
    assert max(len(call.arguments) for call in CALLS.values()) == 6
