"""What a program prints is kept within a limit, or handed on."""

from __future__ import annotations

import errno

import pytest

from vmm.linux.errors import SysError
from vmm.linux.files.changes import Changes
from vmm.linux.output import Output


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
