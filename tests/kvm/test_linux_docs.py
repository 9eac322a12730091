"""What docs/linux.md and the README show of programs for Linux, as it stands there."""

from __future__ import annotations

import hashlib
import inspect
import re
import sqlite3
from pathlib import Path

import pytest
from command import Ended, pageferry
from kvm.doc_examples import DOCS, examples, run_example
from linux_programs import busybox, linux_program, system_program

from vmm import Monitor

pytestmark = pytest.mark.not_in_lanes("what the manual shows; no compiler there")
EXAMPLES = examples("linux.md")
README = (DOCS.parent / "README.md").read_text()
# What the filter that is shown gets its pages from, and gives them to: bare guests.
SOURCE = """
#include "pf.h"
int main(void)
{
    void *page;
    uint32_t filter = pf_peer("filter");
    PF_CHECK(filter != PF_NO_PEER && pf_alloc(1, &page) == PF_OK);
    for (int i = 0; i < 512; i++)
        ((double *)page)[i] = (double)i * i;
    PF_CHECK(pf_send(filter, page, 1, 4096, 7) == PF_OK);
    PF_CHECK(pf_send_inline(filter, "", 0, 0) == PF_OK);
    return 0;
}
"""
SINK = """
#include "pf.h"
int main(void)
{
    pf_message m;
    PF_CHECK(pf_receive(&m, PF_FOREVER) == PF_OK && pf_owned(&m) && m.tag == 7);
    for (int i = 0; i < 512; i++)
        PF_CHECK(((double *)pf_data(&m))[i] == i);
    pf_printf("%d roots", 512);
    return 0;
}
"""


@pytest.fixture
def programs() -> None:
    """All that the examples run is there."""
    busybox()
    for name in ("sort", "python3"):
        system_program(name)


@pytest.mark.parametrize("example", EXAMPLES, ids=range(len(EXAMPLES)))
@pytest.mark.usefixtures("programs")
def test_an_example_prints_what_it_says(example: str) -> None:
    run_example(example, "docs/linux.md")


def test_what_is_not_served_is_shown_as_the_manual_says() -> None:
    shown = re.search(
        r"^\$ pageferry (run .*)\n((?:.+\n)+?)```", (DOCS / "linux.md").read_text(), re.M
    )
    assert shown is not None
    words = re.findall(r"'[^']*'|\S+", shown[1])
    assert pageferry(*(word.strip("'") for word in words)) == Ended(2, "", shown[2])


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (filter_c,) = examples("linux.md", "c")
    for name, text in ("source", SOURCE), ("filter", filter_c), ("sink", SINK):
        (tmp_path / f"{name}.c").write_text(text)
    (tmp_path / "big.iso").write_bytes(bytes(range(256)) * 1000)
    (tmp_path / "names.txt").write_text("b\na\n")
    for name in ("source", "sink"):
        flags = ["-msse2"]  # they compute with numbers
        assert pageferry("build", f"{name}.c", *flags, cwd=tmp_path).code == 0
    return tmp_path


def check_lines(text: str, folder: Path) -> list[str]:
    """Run the command lines of a block; return what all of them printed."""
    printed: list[str] = []
    for line in text.splitlines():
        if line.startswith("pageferry "):
            words = line.split("  #")[0].split()[1:]
            ended = pageferry(*words, cwd=folder)
            assert (ended.code, ended.err) == (0, ""), line
            printed += ended.out.splitlines()
    return printed


@pytest.mark.usefixtures("programs")
def test_the_command_lines_of_the_manual_work(folder: Path) -> None:
    first, *_ = examples("linux.md", "")
    printed = check_lines(first, folder)
    digest = hashlib.sha256((folder / "big.iso").read_bytes()).hexdigest()
    assert printed == [
        *(f"{digest}  /in/data", "a", "b", "filter.elf"),
        *sorted(["filter: 512 roots", "sink: 512 roots"]),
    ]


@pytest.mark.usefixtures("programs")
def test_the_readmes_program_works(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its beginning shows a program for Linux by the command and from Python."""
    screen = README[: README.index("## Try it")]
    blocks = re.findall(r"^```(\w*)\n(.*?)```", screen, re.S | re.M)
    (lines,) = (text for language, text in blocks if not language and "pageferry run" in text)
    assert "sink: 512 roots" in check_lines(lines, folder)
    (example,) = (text for language, text in blocks if language == "python" and "sqlite3" in text)
    (folder / "sqlite3").write_bytes(linux_program("sqlite_shell").read_bytes())
    with sqlite3.connect(folder / "my.db") as base:
        base.execute("create table t(n)")
        base.executemany("insert into t values (?)", [(n,) for n in range(17)])
    base.close()
    monkeypatch.chdir(folder)
    run_example(example, "README.md")


def test_every_option_of_run_is_in_the_manual() -> None:
    shown = pageferry("run", "--help").out
    manual = (DOCS / "cli.md").read_text()
    for option in re.findall(r"--[a-z-]+", shown):
        assert f"`{option}" in manual or option == "--help", option
    linux = (DOCS / "linux.md").read_text()
    program = inspect.signature(Monitor.spawn).parameters
    for name in [*program][[*program].index("args") :]:
        assert f"`{name}=" in linux, name
