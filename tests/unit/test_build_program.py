"""Programs for this system, not guests: the bench's floor, with either compiler."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from elftools.elf.elffile import ELFFile
from unit.compilers import no_cc

from vmm.guest.build import build_program
from vmm.guest.compiler import BuildError, Compiler, find_compiler

ROOT = Path(__file__).resolve().parents[2]
FLOOR = ROOT / "scripts" / "bench" / "floor.c"
HELLO = '#include <stdio.h>\n#include "what.h"\nint main(void) { puts(WHAT); return 3; }\n'

# The first time, ziglang builds a C library.
pytestmark = pytest.mark.timeout(300)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    (tmp_path / "include").mkdir()
    (tmp_path / "include" / "what.h").write_text('#define WHAT "hello"\n')
    source = tmp_path / "hello.c"
    source.write_text(HELLO)
    return source


def build(source: Path, compiler: Compiler) -> Path:
    output = source.parent / "out" / "hello"
    return build_program(
        source, output, include_dirs=[source.parent / "include"], compiler=compiler
    )


def is_static(program: Path) -> bool:
    with program.open("rb") as stream:
        elf = ELFFile(stream)
        assert elf.header["e_machine"] == "EM_X86_64"
        kinds = {segment["p_type"] for segment in elf.iter_segments()}
    return "PT_INTERP" not in kinds


def test_a_program_is_built_that_runs_here(source: Path, compiler: Compiler) -> None:
    program = build(source, compiler)
    assert program == source.parent / "out" / "hello"
    ended = subprocess.run([program], capture_output=True, text=True)
    assert (ended.returncode, ended.stdout) == (3, "hello\n")
    assert list(program.parent.iterdir()) == [program]
    assert program.stat().st_mode & 0o100
    assert build(source, compiler) == program  # again, in its place


def test_ziglangs_programs_have_musl_in_them_and_need_no_library(
    source: Path, compiler: Compiler
) -> None:
    if compiler.family != "zig":
        pytest.skip("the system's compiler links the system's library")
    assert "x86_64-linux-musl" in compiler.for_linux
    assert "x86_64-freestanding-none" in compiler.command
    program = build(source, compiler)
    assert is_static(program)
    assert b"GNU C Library" not in program.read_bytes()


def test_the_floor_is_built(compiler: Compiler, tmp_path: Path) -> None:
    include = [ROOT / "guests" / "include"]
    program = build_program(FLOOR, tmp_path / "floor", include_dirs=include, compiler=compiler)
    assert is_static(program) or compiler.family != "zig"
    ended = subprocess.run([program], capture_output=True, text=True)
    assert (ended.returncode, ended.stderr) == (1, "floor: usage: floor SCENE\n")


def test_without_a_static_library_the_systems_shared_one_is_used(
    source: Path, tmp_path: Path
) -> None:
    if no_cc:
        pytest.skip("no cc")
    pretender = tmp_path / "cc-without"
    pretender.write_text(
        '#!/bin/sh\nfor word; do [ "$word" != -static ] || exit 1; done\nexec cc "$@"\n'
    )
    pretender.chmod(0o755)
    program = build(source, find_compiler(str(pretender)))
    assert not is_static(program)
    assert subprocess.run([program], capture_output=True).returncode == 3


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("int main(void) { return not_declared; }\n", r"(?s)cannot build .*hello\.c.*not_declared"),
        ("int main(void) { int unused; return 0; }\n", r"(?s)cannot build .*hello\.c.*unused"),
        ("int f(void);\nint main(void) { return f(); }\n", r"(?s)cannot build .*hello\.c.*\bf\b"),
    ],
)
def test_what_is_wrong_is_said_and_the_program_of_before_is_kept(
    source: Path, compiler: Compiler, text: str, says: str
) -> None:
    program = build(source, compiler)
    before = program.read_bytes()
    source.write_text(text)
    with pytest.raises(BuildError, match=says):
        build(source, compiler)
    assert list(program.parent.iterdir()) == [program]
    assert program.read_bytes() == before
