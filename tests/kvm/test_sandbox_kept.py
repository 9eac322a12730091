"""A program that has been built is used again: as long as it is what would be built now."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from unit.compilers import no_cc

from vmm import GuestImageError, Sandbox
from vmm.sandbox import kept_builds

pytestmark = [
    pytest.mark.not_in_lanes("there is no compiler"),
    pytest.mark.skipif(no_cc, reason="zig keeps what it builds by itself"),
]
SETTLED = 0.05  # seconds after which a file is not one that is just being written


class Builds:
    """A folder for sources, a compiler that counts how often it is run, a cache of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.cache = folder / "cache" / "sandboxes"
        self.log = folder / "log"
        self.cc = folder / "counting-cc"
        self.cc.write_text(f'#!/bin/sh\necho "$@" >> {self.log}\nexec cc "$@"\n')
        self.cc.chmod(0o755)

    def write(self, name: str, text: str) -> Path:
        path = self.folder / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
        time.sleep(SETTLED)
        return path

    def run(self, *sources: Path, **options: Any) -> tuple[int, bool]:
        """Return what `f` does, and whether anything has been compiled for that."""
        self.log.write_text("")
        with Sandbox(*sources, cc=str(self.cc), pool="16M", **options) as lib:
            found = lib.f()
        commands = self.log.read_text().splitlines()
        return found, any(" -c " in command or "-static" in command for command in commands)

    @property
    def entries(self) -> list[Path]:
        return sorted(self.cache.iterdir())


@pytest.fixture
def builds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Builds:
    monkeypatch.setenv("PAGEFERRY_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    return Builds(tmp_path)


def test_what_has_been_built_is_not_built_again(builds: Builds) -> None:
    source = builds.write("x.c", "int f(void)\n{\n    int unused;\n    return 1;\n}\n")
    assert builds.run(source) == (1, True)
    for _ in range(2):
        assert builds.run(source) == (1, False)
    with Sandbox(source, cc=str(builds.cc), pool="16M") as lib:
        assert "unused" in lib.warnings
        assert lib.f.__doc__ == "int f(void)"
    assert len(builds.entries) == 1
    os.utime(source)
    assert builds.run(source) == (1, False)  # by content
    builds.write("x.c", "int f(void) { return 2; }\n")
    assert builds.run(source) == (2, True)
    assert builds.run(source, cflags=["-DX"]) == (2, True)
    assert builds.run(source, name="other") == (2, False)


def test_a_header_that_has_changed_is_read_again(builds: Builds) -> None:
    source = builds.write("x.c", '#include "value.h"\nint f(void) { return VALUE; }\n')
    header = builds.write("inc/value.h", "#define VALUE 1\n")
    options = {"includes": [header.parent]}
    assert builds.run(source, **options) == (1, True)
    assert builds.run(source, **options) == (1, False)
    os.utime(header)
    assert builds.run(source, **options) == (1, False)
    before = header.stat()
    builds.write("inc/value.h", "#define VALUE 2\n")
    os.utime(header, ns=(before.st_atime_ns, before.st_mtime_ns))  # as large, and as old
    time.sleep(SETTLED)
    assert builds.run(source, **options) == (2, True)
    assert builds.run(source, **options) == (2, False)
    builds.write("value.h", "#define VALUE 3\n")  # which is found before the other
    assert builds.run(source, **options) == (3, True)
    assert builds.run(source, **options) == (3, False)


def test_a_library_that_has_changed_is_linked_again(builds: Builds) -> None:
    source = builds.write("x.c", "int inner(void);\nint f(void) { return inner(); }\n")
    for value in (1, 2):
        inner = builds.write("inner.c", f"int inner(void) {{ return {value}; }}\n")
        made = inner.with_suffix(".o")
        subprocess.run(["cc", "-c", inner, "-o", made], check=True)
        archive = builds.folder / "libinner.a"
        archive.unlink(missing_ok=True)
        subprocess.run(["ar", "rcs", archive, made], check=True)
        time.sleep(SETTLED)
        options: dict[str, Any] = {"libraries": ["inner"], "library_dirs": [builds.folder]}
        assert builds.run(source, **options) == (value, True)
        assert builds.run(source, **options) == (value, False)


def test_what_the_environment_says_is_heeded(
    builds: Builds, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = builds.write("x.c", '#include "where.h"\nint f(void) { return VALUE; }\n')
    for number in (1, 2):
        header = builds.write(f"d{number}/where.h", f"#define VALUE {number}\n")
        monkeypatch.setenv("CPATH", str(header.parent))
        assert builds.run(source) == (number, True)


@pytest.mark.parametrize(
    "text",
    [
        "int f(void) { return __TIME__[0] != 0; }",
        'extern char data[];\n__asm__(".data\\ndata: .incbin \\"/etc/hostname\\"\\n.text");\n'
        "int f(void) { return data[0] != 0; }",
        '#if __has_include("other.h")\n#include "other.h"\n#endif\nint f(void) { return 1; }',
    ],
    ids=["the time", "another file", "whether there is a file"],
)
def test_what_is_made_of_more_than_its_sources_is_built_each_time(
    builds: Builds, text: str
) -> None:
    source = builds.write("x.c", text + "\n")
    for _ in range(2):
        assert builds.run(source) == (1, True)


def test_options_that_read_other_files_are_not_kept(builds: Builds) -> None:
    source = builds.write("x.c", "int f(void) { return 1; }\n")
    other = builds.write("options", "-DY")
    for flags in ([f"@{other}"], ["-march=native"], ["-Wl,--as-needed"]):
        for _ in range(2):
            assert builds.run(source, cflags=flags) == (1, True)


def test_what_is_not_right_is_not_kept_and_told_each_time(builds: Builds) -> None:
    source = builds.write("x.c", "int f(void) { return 1 }\n")
    for _ in range(2):
        with pytest.raises(GuestImageError, match="error: expected"):
            builds.run(source)
    assert not builds.cache.exists()


def _open_to_all(entry: Path) -> None:
    entry.chmod(0o777)


def _file_open_to_all(entry: Path) -> None:
    (entry / "program.elf").chmod(0o666)


def _of_another(entry: Path) -> None:
    if os.geteuid():
        pytest.skip("only root can give files away")
    os.chown(entry / "program.elf", 65534, 65534)


def _folder_of_another(entry: Path) -> None:
    if os.geteuid():
        pytest.skip("only root can give files away")
    os.chown(entry.parent, 65534, 65534)


def _elsewhere(entry: Path) -> None:
    there = entry.parent.parent / "there"
    entry.rename(there)
    entry.symlink_to(there)


def _link(entry: Path) -> None:
    (entry / "program.elf").rename(entry / "other.elf")
    (entry / "program.elf").symlink_to(entry / "other.elf")


def _another_program(entry: Path) -> None:
    data = bytearray((entry / "program.elf").read_bytes())
    data[5000] ^= 1
    (entry / "program.elf").write_bytes(data)


def _cut_off(entry: Path) -> None:
    os.truncate(entry / "program.elf", 1000)


def _nonsense(entry: Path) -> None:
    (entry / "about.json").write_text('{"files": 5}')


def _no_text(entry: Path) -> None:
    (entry / "about.json").write_bytes(b"\xff{")


def _gone(entry: Path) -> None:
    (entry / "about.json").unlink()


def _pipe(entry: Path) -> None:
    (entry / "program.elf").unlink()
    os.mkfifo(entry / "program.elf", 0o600)


@pytest.mark.parametrize(
    "spoil",
    [
        *(_open_to_all, _file_open_to_all, _of_another, _folder_of_another, _elsewhere, _link),
        *(_another_program, _cut_off, _nonsense, _no_text, _gone, _pipe),
    ],
)
def test_what_others_may_have_written_or_is_damaged_is_not_used(
    builds: Builds, spoil: Callable[[Path], None]
) -> None:
    source = builds.write("x.c", "int f(void) { return 1; }\n")
    builds.run(source)
    (entry,) = builds.entries
    spoil(entry)
    assert builds.run(source) == (1, True)


def test_without_a_place_for_it_nothing_is_kept(builds: Builds) -> None:
    source = builds.write("x.c", "int f(void) { return 1; }\n")
    builds.write("cache", "no directory")
    for _ in range(2):
        assert builds.run(source) == (1, True)


def test_processes_that_build_the_same_at_once_do_not_disturb_each_other(builds: Builds) -> None:
    builds.write("x.c", "int f(void) { return 1; }\n")
    code = f"""
        from vmm import Sandbox
        for _ in range(4):
            with Sandbox("x.c", cc={str(builds.cc)!r}, pool="16M") as lib:
                assert lib.f() == 1
        import shutil; shutil.rmtree({str(builds.cache)!r}, ignore_errors=True)
        with Sandbox("x.c", cc={str(builds.cc)!r}, pool="16M") as lib:
            assert lib.f() == 1
    """
    command = [sys.executable, "-c", textwrap.dedent(code)]
    running = [subprocess.Popen(command, cwd=builds.folder) for _ in range(4)]
    assert [one.wait(120) for one in running] == [0] * 4
    builds.run(builds.folder / "x.c")
    assert [entry.name[0] != "." for entry in builds.entries] == [True]


def test_only_so_many_are_kept_those_that_were_used_last(builds: Builds) -> None:
    source = builds.write("x.c", "int f(void) { return 1; }\n")
    builds.run(source)
    (entry,) = builds.entries
    for number in range(kept_builds._MOST + 5):
        copy = shutil.copytree(entry, builds.cache / f"{number:064}")
        os.utime(copy, (number, number))
    left = builds.cache / ".left"
    left.mkdir()
    os.utime(left, (0, 0))
    assert builds.run(source, cflags=["-DX"]) == (1, True)
    names = {one.name for one in builds.entries}
    assert len(names) == kept_builds._MOST
    assert entry.name in names
    assert not {f"{number:064}" for number in range(7)} & names
    assert left.name not in names
