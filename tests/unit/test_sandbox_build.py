"""What a sandbox is built from, and what cannot be built: one line, and what the compiler says."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from command import Ended, pageferry

from vmm.errors import GuestImageError
from vmm.guest.compiler import Compiler
from vmm.sandbox.program import Program, program

FUNCTIONS = "int add(int a, int b)\n{\n    return a + b;\n}\n"

# The first time, ziglang builds a C library.
pytestmark = pytest.mark.timeout(900)


def built(source: Path, compiler: Compiler) -> Program:
    """Build a sandbox's program of one file."""
    name = "ziglang" if compiler.family == "zig" else compiler.command[0]
    empty: tuple[str, ...] = ()
    return program(
        [source], (), empty, name, None, includes=empty, libraries=empty, library_dirs=empty
    )


def failure(tmp_path: Path, text: str, compiler: Compiler) -> GuestImageError:
    source = tmp_path / "wrong.c"
    source.write_text(text)
    with pytest.raises(GuestImageError) as raised:
        built(source, compiler)
    assert len(str(raised.value).splitlines()) == 1
    assert str(raised.value).isprintable()
    return raised.value


def test_functions_that_nobody_calls_are_there(tmp_path: Path, compiler: Compiler) -> None:
    (tmp_path / "add.c").write_text(FUNCTIONS)
    made = built(tmp_path / "add.c", compiler)
    assert made.prototypes["add"].signature() == "int add(int a, int b)"
    made.close()
    assert not made.path.exists()


def test_what_the_compiler_refuses_is_one_line_and_all_it_says_a_note(
    tmp_path: Path, compiler: Compiler
) -> None:
    error = failure(tmp_path, "int f(void)\n{\n    return nothing;\n}\n", compiler)
    assert str(error).startswith(f"cannot compile {tmp_path}/wrong.c: ")
    assert re.search(r"wrong.c:3:\d+: error: .*'nothing'", str(error))
    (note,) = error.__notes__
    assert len(note.splitlines()) > 1


def test_what_is_defined_nowhere_is_named(tmp_path: Path, compiler: Compiler) -> None:
    text = "int nowhere(void);\nint f(void)\n{\n    return nowhere();\n}\n"
    error = failure(tmp_path, text, compiler)
    assert re.match(r"cannot link wrong.elf: .*undefined .*nowhere", str(error))


def test_a_main_is_refused_with_what_to_do(tmp_path: Path, compiler: Compiler) -> None:
    error = failure(tmp_path, FUNCTIONS + "int main(void)\n{\n    return 0;\n}\n", compiler)
    assert str(error) == (
        "cannot link wrong.elf: it has a main, and a sandbox has one of its own: take it out, "
        "or give it another name (-Dmain=other)"
    )


def test_the_command_builds_one_and_another_program_is_none(
    tmp_path: Path, compiler: Compiler
) -> None:
    (tmp_path / "add.c").write_text(FUNCTIONS)
    (tmp_path / "plain.c").write_text("int main(void)\n{\n    return 0;\n}\n")
    name = "ziglang" if compiler.family == "zig" else compiler.command[0]
    for source, kind in (("add", "--sandbox"), ("plain", "--libc")):
        line = ("build", f"{source}.c", kind, "--cc", name, "-o", f"{source}.elf")
        assert pageferry(*line, cwd=tmp_path) == Ended(0, f"{source}.elf\n", "")
    assert "add" in built(tmp_path / "add.elf", compiler).prototypes
    with pytest.raises(GuestImageError, match=r"plain.elf: it was not built for this: pageferry"):
        built(tmp_path / "plain.elf", compiler)
    shared = (tmp_path / "plain.elf").rename(tmp_path / "libplain.so.1")
    with pytest.raises(
        GuestImageError, match=r"libplain.so.1 is a shared library: give its source"
    ):
        built(shared, compiler)
