"""Text that a guest has chosen, as people get to see it."""

from __future__ import annotations

import io
import sys
from pathlib import Path

import hypothesis.strategies as st
import pytest
from click.testing import CliRunner
from hypothesis import given

from vmm.command.cli import main
from vmm.command.failure import Failure
from vmm.errors import GuestImageError
from vmm.guest.image import load_image
from vmm.guest.text import decoded, lines, printable
from vmm.monitor import print_line

MARK = "\N{REPLACEMENT CHARACTER}"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("", ""),
        ("héllo\twörld 日本 🚀", "héllo\twörld 日本 🚀"),
        ("\x1b[2J", f"{MARK}[2J"),
        ("a\nb\r\nc", f"a{MARK}b{MARK}{MARK}c"),
        ("\x7f\x80\x9b31m\0\b", f"{MARK * 3}31m{MARK * 2}"),
        ("\u202egnp.exe\u2066\u200f\u2028", f"{MARK}gnp.exe{MARK * 3}"),
        ("\ud800\udcff", MARK * 2),
        ("\ufeff\u200b\ue000\U000e0041", MARK * 4),
    ],
)
def test_what_steers_is_replaced_and_the_rest_is_kept(text: str, shown: str) -> None:
    assert printable(text) == shown


def test_a_text_that_is_too_long_ends_with_an_ellipsis() -> None:
    assert printable("x" * 10, 10) == "x" * 10
    assert printable("x" * 11, 10) == "x" * 9 + "…"


def test_what_is_no_utf_8_is_replaced() -> None:
    assert decoded(b"ok \xff\xfe \xc3") == f"ok {MARK * 2} {MARK}"


@given(st.text())
def test_printable_text_is_one_line_and_stays_as_it_is(text: str) -> None:
    shown = printable(text)
    assert shown.replace("\t", "").isprintable()
    assert len(shown) == len(text)
    assert printable(shown) == shown


@given(st.binary(max_size=4096))
def test_every_line_of_a_log_is_printable(raw: bytes) -> None:
    found = lines(raw)
    assert len(found) == len(raw.decode(errors="replace").splitlines())
    assert all(line.replace("\t", "").isprintable() for line in found)


def test_the_lines_of_a_log_are_in_order_and_empty_ones_count() -> None:
    assert lines(b"one\n\ntwo\r\nthree\x1b\n") == ["one", "", "two", f"three{MARK}"]
    assert lines(b"\n" * 4096) == [""] * 4096


# ---- The default console ----


class Stream(io.TextIOWrapper):
    """A standard output with an encoding of its own."""

    def __init__(self, encoding: str) -> None:
        super().__init__(io.BytesIO(), encoding=encoding, newline="")

    def written(self) -> bytes:
        assert isinstance(self.buffer, io.BytesIO)
        return self.buffer.getvalue()


@pytest.mark.parametrize(
    ("encoding", "bytes_"),
    [
        ("ascii", rb"a: caf\xe9 \u65e5"),
        ("latin-1", b"a: caf\xe9 \\u65e5"),
        ("iso8859-15", b"a: caf\xe9 \\u65e5"),
        ("utf-8", "a: café 日".encode()),
    ],
)
def test_a_line_that_the_output_cannot_encode_is_escaped(
    encoding: str, bytes_: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    stream = Stream(encoding)
    monkeypatch.setattr(sys, "stdout", stream)
    print_line("a", "café 日")
    print_line("b", "on")
    assert stream.written() == bytes_ + b"\nb: on\n"


def test_without_a_standard_output_nothing_is_printed(monkeypatch: pytest.MonkeyPatch) -> None:
    closed = Stream("utf-8")
    closed.close()
    for stream in (None, closed):
        monkeypatch.setattr(sys, "stdout", stream)
        print_line("a", "line")


# ---- Errors that name files ----

EVIL = "\x1b[31mred\npageferry: all is well\u202e.elf"
TAMED = f"{MARK}[31mred{MARK}pageferry: all is well{MARK}.elf"


def test_an_error_is_one_printable_line_whatever_the_file_is_called(tmp_path: Path) -> None:
    path = tmp_path / EVIL
    path.write_bytes(b"no guest")
    for name in (path, tmp_path / "missing" / EVIL):
        with pytest.raises(GuestImageError) as caught:
            load_image(name)
        assert str(caught.value).isprintable()
        assert TAMED in str(caught.value)


def test_what_the_command_ends_with_is_printable_too(capsys: pytest.CaptureFixture[str]) -> None:
    Failure(f"{EVIL}: no such file", 1, f"x.c:1: error\n\t{EVIL}").show()
    shown = capsys.readouterr().err.splitlines()
    assert shown[0] == f"pageferry: {TAMED.replace(f'red{MARK}', 'red ')}: no such file"
    assert shown[1:] == ["x.c:1: error", f"\t{MARK}[31mred", f"pageferry: all is well{MARK}.elf"]


@pytest.mark.parametrize(
    "arguments",
    [
        ["run", f"--{EVIL}"],
        ["run", "x.elf", "--window", EVIL],
        ["run", "x.elf", "--connect", f"x:{EVIL}"],
        ["build", EVIL],
        [EVIL],
    ],
)
def test_what_is_wrong_with_the_command_line_is_said_printably(arguments: list[str]) -> None:
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 2
    assert all(line.isprintable() for line in result.output.splitlines())
    assert not any(line.startswith("pageferry: all") for line in result.output.splitlines())
