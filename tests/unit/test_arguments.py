"""Arguments: what is taken, and the one line that says why something is not."""

from __future__ import annotations

import ctypes
import errno
import math
import pickle
import threading
from decimal import Decimal
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from vmm.endpoint import arguments
from vmm.errors import ArgumentTypeError, ConfigError, LimitError, PageferryError, ResourceError
from vmm.host import reported
from vmm.sizes import integer, parse_size, shown


class Numeral:
    """A number of somebody's own."""

    def __index__(self) -> int:
        return 7


class Broken:
    """What raises something of its own when it is asked for a number."""

    def __index__(self) -> int:
        raise RuntimeError("out of order")

    def __float__(self) -> float:
        raise RuntimeError("out of order")


@pytest.mark.parametrize("value", [7, Numeral(), np.int8(7), np.uint64(7)])
def test_whole_numbers_are_what_has_an_index(value: Any) -> None:
    number = integer(value, "tag", 0, 7)
    assert (number, type(number)) == (7, int)
    assert parse_size(value) == 7


@pytest.mark.parametrize("value", [True, 7.0, "7", None, Decimal(7), [7], np.float64(7), 7j])
def test_nothing_else_is_a_whole_number(value: Any) -> None:
    with pytest.raises(TypeError, match=r"^tag must be an int, not \w+$"):
        integer(value, "tag")
    if not isinstance(value, str):
        with pytest.raises(TypeError, match=r"^pool of type \w+ is not a size: give bytes, or"):
            parse_size(value, "pool")


def test_a_whole_number_has_bounds() -> None:
    for value, low, words in ((0, 1, "not a positive number"), (-1, 0, "less than 0")):
        with pytest.raises(ConfigError, match=f"^queue {value} is {words}$"):
            integer(value, "queue", low, 9)
    with pytest.raises(ConfigError, match=r"^queue 10 is more than 9, which is the limit$"):
        integer(10, "queue", 1, 9)


def test_a_very_long_number_is_not_written_out() -> None:
    assert (shown(-5), shown(255, "#x"), shown(1 << 20000)) == ("-5", "0xff", "of 20001 bits")
    for check in (lambda n: integer(n, "tag", 0, 9), lambda n: parse_size(n, "tag")):
        with pytest.raises(ConfigError, match="tag of 20001 bits is more than"):
            check(1 << 20000)


def test_what_a_number_raises_of_its_own_is_not_hidden() -> None:
    with pytest.raises(RuntimeError, match="out of order"):
        integer(Broken(), "tag")
    with pytest.raises(RuntimeError, match="out of order"):
        arguments.seconds(Broken(), "timeout")


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        *((None, None), (math.inf, None), (1e300, None), (10**400, None), (0, 0.0), (-0.0, 0.0)),
        *((2, 2.0), (Fraction(1, 4), 0.25), (Decimal("0.5"), 0.5), (np.float32(0.5), 0.5)),
        (threading.TIMEOUT_MAX, threading.TIMEOUT_MAX),
    ],
    ids=lambda value: f"{value!r:.12}",
)
def test_seconds_are_any_number_and_for_ever_is_none(value: Any, seconds: float | None) -> None:
    assert arguments.seconds(value, "timeout") == seconds


@pytest.mark.parametrize(
    "value",
    [math.nan, -1, -1e-9, -math.inf, -(10**400), Decimal("sNaN")],
    ids=lambda value: f"{value!r:.12}",
)
def test_seconds_are_not_negative_and_not_nan(value: Any) -> None:
    with pytest.raises(ConfigError, match=r"^timeout \S+ is not a number of seconds: give 0"):
        arguments.seconds(value, "timeout")


@pytest.mark.parametrize("value", ["1", b"1", bytearray(b"1"), True, [], 1j, object()])
def test_seconds_are_numbers_only(value: Any) -> None:
    with pytest.raises(TypeError, match=r"^timeout must be a number of seconds or None, not \w+$"):
        arguments.seconds(value, "timeout")


def test_a_view_of_bytes_is_of_the_object_itself_where_it_can_be() -> None:
    data = bytearray(b"before")
    view = arguments.contiguous(data, "data")
    data[:] = b"after!"
    assert (bytes(view), view.format, view.ndim) == (b"after!", "B", 1)
    records = np.zeros(2, dtype=[("a", ">u2"), ("b", "f8")])
    assert arguments.contiguous(records, "data") == bytes(20)


def test_a_view_with_gaps_is_not_copied_in_silence() -> None:
    for data in (memoryview(b"abcd")[::2], np.zeros((2, 3)).T, memoryview(b"ab")[::-1]):
        with pytest.raises(BufferError, match=r"^payload is not contiguous: copy it first"):
            arguments.contiguous(data, "payload")


def test_text_is_to_be_encoded() -> None:
    with pytest.raises(ArgumentTypeError, match=r"^payload is text.*encode it \(payload.encode"):
        arguments.contiguous("text", "payload")


def test_one_line_is_made_of_any_text() -> None:
    text = "a\tb\r\nc\x1b[1m\u202ed\udcff"
    assert arguments.one_line(text, "reason") == "a b c\ufffd[1m\ufffdd\ufffd"
    with pytest.raises(TypeError, match=r"^reason must be text, not bytes$"):
        arguments.one_line(b"x", "reason")


def test_paths_are_text_bytes_or_path_objects() -> None:
    for value in ("/dev/kvm", b"/dev/kvm", Path("/dev/kvm")):
        assert arguments.file_path(value, "device", plain=True) == "/dev/kvm"
    for wrong in (3, None, ["x"]):
        with pytest.raises(TypeError, match=r"^path must be a path, not"):
            arguments.file_path(wrong, "path")
    with pytest.raises(ConfigError, match=r"^path is empty"):
        arguments.file_path("", "path")
    with pytest.raises(ConfigError, match="cannot be the path of one"):
        arguments.file_path("a\nb", "device", plain=True)


def test_an_error_of_type_is_every_kind_that_it_may_be_caught_as() -> None:
    assert issubclass(ArgumentTypeError, TypeError)
    assert issubclass(ArgumentTypeError, ConfigError)
    assert issubclass(ConfigError, ValueError)


# ---- The kernel's limits ----


@pytest.mark.parametrize(
    ("code", "advice"),
    [
        (errno.EMFILE, "ulimit -n"),
        (errno.ENFILE, "fs.file-max"),
        (errno.ENOMEM, "free some memory"),
        (errno.EAGAIN, "ulimit -u.*pids.max"),
        (errno.EFBIG, "ulimit -f"),
    ],
)
def test_a_limit_of_the_kernels_says_what_to_do(code: int, advice: str) -> None:
    with pytest.raises(ResourceError, match=advice) as caught, reported("no machine can be made"):
        raise OSError(code, "KVM_CREATE_VM on kvm fd 5: no\nmore")
    error = caught.value
    assert isinstance(error, LimitError)
    assert isinstance(error, OSError)
    assert error.errno == code
    again = pickle.loads(pickle.dumps(error))
    assert (type(again), str(again), again.errno) == (type(error), str(error), code)
    assert str(error).startswith("no machine can be made: KVM_CREATE_VM on kvm fd 5: no more: ")


def test_no_threads_are_a_limit_too() -> None:
    with pytest.raises(ResourceError, match="no thread can be started"), reported("no"):
        raise RuntimeError("can't start new thread")


@pytest.mark.parametrize(
    "error",
    [OSError(errno.EINVAL, "no"), RuntimeError("no"), PageferryError("no"), ResourceError("no")],
)
def test_other_errors_stay_what_they_are(error: Exception) -> None:
    with pytest.raises(type(error)) as caught, reported("no machine can be made"):
        raise error
    assert caught.value is error


def test_what_holds_pointers_is_refused() -> None:
    """Their bytes are addresses of this process, which are no guest's business."""
    pointers = (ctypes.py_object * 2)("a", None)
    with pytest.raises(BufferError, match="references of this process"):
        arguments.contiguous(pointers, "data")
