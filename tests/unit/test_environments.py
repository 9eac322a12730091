"""The command where streams, variables and limits are not what they should be; no KVM is needed."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import click
import pytest
from command import command, environment, one_line, pageferry
from environments import ENVIRONMENTS, check, through_a_pipe_that_does_not_block, within
from unit.bench_scene import results

from vmm.bench.results import Results
from vmm.command.cli import main
from vmm.command.failure import EXIT_USAGE
from vmm.errors import ConfigError
from vmm.host.cache import cache_root


@pytest.fixture
def measured(tmp_path: Path) -> Path:
    """The file of an earlier bench, in a folder that everybody may write to."""
    for path in tmp_path.parents[:2]:  # pytest's own; what is above is open to everybody
        path.chmod(0o755)
    tmp_path.chmod(0o777)
    file = tmp_path / "earlier.json"
    file.write_text(json.dumps(results().as_json()))
    return file


@pytest.mark.parametrize("name", ENVIRONMENTS)
def test_what_is_printed_is_printed_or_it_is_said_why_not(measured: Path, name: str) -> None:
    check(name, within(name, measured.parent, "bench", "--from", measured))


@pytest.mark.parametrize("name", ["no streams", "no standard output", "full standard output"])
def test_help_is_like_everything_else(tmp_path: Path, name: str) -> None:
    check(name, within(name, tmp_path, "--help"))


@pytest.mark.parametrize(
    "name",
    [
        "no streams",
        "C locale",
        "empty environment",
        "no cache, no temporary directory",
        "no name, no home",
    ],
)
def test_a_guest_is_built_wherever_that_is_possible(measured: Path, name: str) -> None:
    folder = measured.parent
    (folder / "guest.c").write_text("int main(void) { return 0; }\n")
    ended = within(name, folder, "build", folder / "guest.c")
    if "no temporary directory" not in name or ended.code == 0:  # there is mostly another
        check(name, ended)
        assert (folder / "guest.elf").read_bytes().startswith(b"\x7fELF")


def test_a_failure_has_its_code_also_where_it_cannot_be_told(tmp_path: Path) -> None:
    for name in ("no standard error", "full standard error", "no streams"):
        assert within(name, tmp_path, "bench", "--from", tmp_path / "none") == (1, "", "")
        assert within(name, tmp_path, "bench", "--nonsense") == (2, "", "")


def test_a_directory_that_is_gone_is_named(tmp_path: Path) -> None:
    said = "the current directory: No such file or directory: change to one that is there"
    ended = within("no directory", tmp_path, "nested", "--lane", "npt", "true")
    assert (ended.code, one_line(ended.err)) == (1, said)


def test_few_descriptors_are_not_taken_for_a_missing_compiler(tmp_path: Path) -> None:
    (tmp_path / "guest.c").write_text("int main(void) { return 0; }\n")
    words = command("build", tmp_path / "guest.c")
    done = subprocess.run(
        ["sh", "-c", 'ulimit -n 6; "$@"', "sh", *words],
        env=environment(),
        capture_output=True,
        text=True,
    )
    said = "Too many open files: close some files, or raise the limit on open files (ulimit -n)"
    assert (done.returncode, one_line(done.stderr)) == (1, said)


def test_output_that_does_not_block_is_waited_for(measured: Path) -> None:
    ended = through_a_pipe_that_does_not_block(
        "bench", "--from", measured, "--json", "-", stream="stdout"
    )
    assert (ended.code, ended.err) == (0, "")
    assert Results.from_json(json.loads(ended.out)) == results()


def test_names_that_are_no_text_are_files_like_others(tmp_path: Path) -> None:
    source = tmp_path / os.fsdecode(b"caf\xe9\xff.c")
    source.write_bytes(
        b'#include "pf.h"\n/* \xe9 */ int main(void) { pf_log("\xff"); return 0; }\n'
    )
    ended = pageferry("build", source)
    assert (ended.code, ended.err) == (0, "")
    assert os.fsencode(ended.out) == os.fsencode(source.with_suffix(".elf")) + b"\n"
    assert source.with_suffix(".elf").is_file()
    source.write_bytes(b"int main(void) { return \xe9\xff; }\n")
    ended = pageferry("build", source)
    assert (ended.code, "Traceback" in ended.err) == (1, False)
    assert "cannot compile" in ended.err.splitlines()[0]
    name = b"\xff.json"
    for arguments in (["bench", "--from", name], ["build", name], ["nested", "--lane", name, "x"]):
        ended = pageferry(*arguments)
        assert (ended.code in (1, 2), "Traceback" in ended.err) == (True, False)


def test_a_compiler_that_is_no_command_line_is_said(tmp_path: Path) -> None:
    (tmp_path / "guest.c").touch()
    line = one_line(pageferry("build", tmp_path / "guest.c", "--cc", "gcc '").err)
    assert ('"gcc \'"' in line, "No closing quotation" in line) == (True, True)


def test_without_a_home_the_cache_has_to_be_named(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("PAGEFERRY_CACHE", "XDG_CACHE_HOME", "HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("pwd.getpwuid", lambda uid: {}[uid])
    with pytest.raises(ConfigError, match=r"no HOME is set.*PAGEFERRY_CACHE"):
        cache_root()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("run", "x.elf", "--timeout", "abc"), "'abc' is not a valid number of seconds"),
        (("run", "x.elf", "--timeout", "inf"), "inf is not a number of seconds"),
        (("run", "x.elf", "--timeout=-1"), "-1.0 is not in the range x>0"),
        (("run", "x.elf", "--queue", "x"), "'x' is not a valid whole number from 1 to 65536"),
        (("run", "x.elf", "--workers", "1.5"), "'1.5' is not a valid whole number from 1 to 256"),
        (("run", "x.elf", "--quota", "1"), "size '1' is less than a page: give 4096 or more"),
        (("run", "x.elf", "--stack", "8"), "size '8' is less than a page: give 4096 or more, or"),
        (("run", "x.elf", "--memory", "lots"), "size 'lots' is not a size: give bytes, or"),
        (("run", "x.elf", "--trace", ""), "'' names no file"),
        (("run", "x.elf", "--trace", "x/"), "'x/' is a directory: name a file to write"),
        (("run", ""), "'' names no file"),
        (("demo", ""), "'' names no file"),
        (("bench", "--json", ""), "'' names no file"),
        (("build", __file__, "-o", "new/"), "'new/' is a directory: name a file to write"),
        (("nested", "--lane", "npt", "--limit", "nan", "x"), "nan is not a number of seconds"),
        (("nested", "--lane", "npt", "--output", "", "x"), "'' names no file"),
    ],
)
def test_a_value_that_cannot_be_meant_is_said_with_its_option_and_what_is_accepted(
    arguments: tuple[str, ...], words: str
) -> None:
    name, *rest = arguments
    with pytest.raises(click.UsageError) as caught:
        main.commands[name].make_context(name, rest)
    said = caught.value.format_message()
    assert said.startswith("Invalid value for ")
    assert words in said
    assert caught.value.exit_code == EXIT_USAGE
