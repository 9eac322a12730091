"""What a program prints is kept within a limit, or handed on."""

from __future__ import annotations

import errno

import pytest

from vmm.linux.errors import SysError
from vmm.linux.files.changes import Changes
from vmm.linux.output import Output, Tail


def test_what_is_beyond_the_limit_is_no_space() -> None:
    output = Output(Changes(), 5)
    assert (output.write(b"abc"), output.write(b"defg")) == (3, 2)
    with pytest.raises(SysError) as caught:
        output.write(b"h")
    assert caught.value.number == errno.ENOSPC
    assert output.contents() == b"abcde"


def test_to_write_nothing_is_well_with_room_and_without() -> None:
    output = Output(Changes(), 1)
    assert output.write(b"") == 0
    assert output.write(b"a") == 1
    assert output.write(b"") == 0
    assert output.contents() == b"a"


def test_the_last_lines_of_both_outputs_are_remembered_wherever_they_go() -> None:
    tail, gone = Tail(), [b""]
    kept, handed = Output(Changes(), 100, None, tail), Output(Changes(), 0, gone.append, tail)
    assert tail.lines() == []
    kept.write(b"one\ntw")
    handed.write(b"o\n\x1b[2J\n")
    assert tail.lines() == ["one", "two", "\N{REPLACEMENT CHARACTER}[2J"]
    handed.write(b"".join(b"line %d\n" % n for n in range(1000)))
    assert tail.lines() == [f"line {n}" for n in range(992, 1000)]
    assert len(tail.text) <= 1024


def test_what_a_call_that_is_cut_off_has_printed_was_not_printed() -> None:
    changes, tail = Changes(), Tail()
    output = Output(changes, 100, None, tail)
    with pytest.raises(KeyboardInterrupt), changes:
        output.write(b"text")
        raise KeyboardInterrupt
    assert (output.contents(), tail.lines()) == (b"", [])
