"""What a guest can be built from, and how: options, objects, archives, odd environments."""

from __future__ import annotations

import os
import re
import struct
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from command import Ended, pageferry
from elftools.elf.elffile import ELFFile
from unit.compilers import no_cc

from vmm.guest.build import build_guest
from vmm.guest.compiler import BuildError, Compiler, run
from vmm.guest.image import load_image
from vmm.guest.inputs import sort_inputs

GUESTS = Path(__file__).resolve().parents[2] / "guests"
MAIN = '#include "pf.h"\n#include "other.h"\nint main(void) { return other(NUMBER); }\n'
OTHER = '#include "other.h"\nint other(int x) { return x * FACTOR; }\n'
HELLO = '#include "pf.h"\nint main(void) { return pf_log("hello"); }\n'

Build = Callable[..., Path]

# A build takes a second: what does not depend on the compiler is tried with one.
with_cc = pytest.mark.parametrize(
    "compiler",
    [pytest.param("cc", marks=pytest.mark.skipif(no_cc, reason="no cc"))],
    indirect=True,
)


@pytest.fixture
def build(compiler: Compiler, tmp_path: Path) -> Build:
    """Build a guest of sources in a folder of their own."""

    def make(*sources: str | Path, **options: Any) -> Path:
        return build_guest(
            [tmp_path / source for source in sources],
            tmp_path / "out.elf",
            include_dirs=[GUESTS / "include"],
            library_dir=GUESTS / "lib",
            compiler=compiler,
            **options,
        )

    (tmp_path / "hello.c").write_text(HELLO)
    (tmp_path / "main.c").write_text(MAIN)
    (tmp_path / "other.c").write_text(OTHER)
    (tmp_path / "include").mkdir()
    (tmp_path / "include" / "other.h").write_text("int other(int x);\n")
    return make


@pytest.fixture
def made(compiler: Compiler, build: Build, tmp_path: Path) -> Path:
    """An object, and an archive of it in lib/libother.a."""
    made = tmp_path / "other.o"
    flags = ("-O1", "-ffreestanding", "-DFACTOR=2", f"-I{tmp_path}/include", "-c")
    run([*compiler.command, *flags, str(tmp_path / "other.c"), "-o", str(made)], "other.o")
    (tmp_path / "lib").mkdir()
    (tmp_path / "lib" / "libother.a").write_bytes(archive_of(made))
    return made


def archive_of(path: Path) -> bytes:
    """An ar(5) archive of one object that defines `other`."""
    first = len(b"!<arch>\n") + 60 + 14  # where the object is: after the table of symbols
    table = struct.pack(">II", 1, first) + b"other\0"
    return b"!<arch>\n" + member("/", table) + member("other.o/", path.read_bytes())


def member(name: str, content: bytes) -> bytes:
    header = f"{name:16}{0:<12}{0:<6}{0:<6}{0o644:<8o}{len(content):<10}`\n"
    return header.encode() + content + b"\n" * (len(content) % 2)


def test_objects_archives_and_libraries_are_linked_wherever_they_stand(
    build: Build, made: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(made.parent)  # directories are those of whoever calls
    options = {"defines": ["NUMBER=21"], "includes": ["include"]}
    assert "other" in symbols(build("other.o", "main.c", **options))
    assert "other" in symbols(build("lib/libother.a", "main.c", **options))
    by_name = {"library_dirs": ["lib"], "libraries": ["other"]}
    assert "other" in symbols(build("main.c", **options, **by_name))


@with_cc
def test_a_library_that_is_not_there_is_named(build: Build) -> None:
    with pytest.raises(BuildError, match=r"(?s)cannot link out\.elf:.*no_such"):
        build("hello.c", libraries=["no_such"])


def symbols(elf: Path) -> set[str]:
    assert load_image(elf)
    with elf.open("rb") as stream:
        table = ELFFile(stream).get_section_by_name(".symtab")
        return {symbol.name for symbol in table.iter_symbols()}


def text_bytes(elf: Path, name: str) -> int:
    with elf.open("rb") as stream:
        table = ELFFile(stream).get_section_by_name(".symtab")
        return int(table.get_symbol_by_name(name)[0]["st_size"])


@with_cc
def test_sources_are_optimized_as_asked_for(build: Build, tmp_path: Path) -> None:
    (tmp_path / "loop.c").write_text(
        "unsigned loop(const unsigned *p);\nunsigned loop(const unsigned *p)\n"
        f"{{ unsigned s = 0; for (int i = 0; i < 64; i++) s += p[i] * i; return s; }}\n{HELLO}"
    )
    small, plain = (text_bytes(build("loop.c", optimize=level), "loop") for level in ("s", 0))
    assert small < plain


@with_cc
def test_a_users_warnings_are_reported_and_are_no_errors(build: Build, tmp_path: Path) -> None:
    (tmp_path / "sloppy.c").write_text("int main(void) { int unused; return 0; }\n")
    said: list[str] = []
    assert load_image(build("sloppy.c", report=said.append))
    (text,) = said
    assert re.search(r"sloppy\.c:1:.*warning: unused", text)
    assert load_image(build("sloppy.c", flags=["-Wno-unused-variable"], report=said.append))
    assert said == [text]
    with pytest.raises(BuildError, match=r"(?s)cannot compile .*sloppy\.c:\n.*unused"):
        build("sloppy.c", flags=["-Werror"])


@with_cc
def test_the_library_is_compiled_as_ever_whatever_the_users_flags(
    build: Build, tmp_path: Path
) -> None:
    (tmp_path / "include" / "format.h").write_text("#error not the library's\n")
    said: list[str] = []
    elf = build(
        "hello.c",
        defines=["memcpy=other", "strlen(x)=nothing"],
        includes=[tmp_path / "include"],
        flags=["-Wpadded", "-Wno-all"],
        report=said.append,
    )
    assert {"memcpy", "strlen", "pf_printf"} <= symbols(elf)
    assert not [text for text in said if "lib/" in text and "hello.c" not in text]


# ---- What is no input ----


def elf_header(bits: int, kind: int, machine: int) -> bytes:
    return struct.pack("<4sBB10xHH", b"\x7fELF", bits, 1, kind, machine)


@pytest.mark.parametrize(
    ("name", "content", "why"),
    [
        ("notes.txt", b"hello", r"neither a source \(.*\) nor an object or archive"),
        ("empty.o", b"", r"neither a source \(.*\) nor an object or archive"),
        ("pf.h", b"int x;", r"neither a source \(.*\) nor an object or archive"),
        ("guest.cpp", b"int x;", "C\\+\\+ wants a C library: give --libc"),
        ("guest.rs", b"int x;", "not C: guests are C or assembly"),
        ("arm.o", elf_header(2, 1, 183), "an object for another machine"),
        ("old.o", elf_header(1, 1, 3), "an object for another machine"),
        ("a.elf", elf_header(2, 2, 62), "a program or shared library"),
        ("a.so", elf_header(2, 3, 62), "a program or shared library"),
    ],
    ids=lambda value: value if isinstance(value, str) and "." in value[-4:] else "",
)
def test_what_no_guest_can_be_made_of_is_named(
    tmp_path: Path, name: str, content: bytes, why: str
) -> None:
    (tmp_path / name).write_bytes(content)
    (tmp_path / "hello.c").write_text(HELLO)
    with pytest.raises(BuildError, match=rf"^{re.escape(str(tmp_path / name))}: {why}"):
        sort_inputs([tmp_path / "hello.c", tmp_path / name])


@with_cc
def test_a_file_that_cannot_be_read_is_an_error_of_the_builds(build: Build) -> None:
    for name in ("nothing.c", "zero\0byte.c"):
        with pytest.raises(BuildError, match="cannot be read"):
            build(name)
    with pytest.raises(BuildError, match="name a C source"):
        build()


# ---- The command ----


@with_cc
def test_the_commands_options_are_the_compilers(tmp_path: Path, made: Path) -> None:
    (tmp_path / "main.c").write_text(
        MAIN.replace("NUMBER", "sizeof TEXT + __STDC_VERSION__ / 100 + __AVX__")
        + "#ifdef __unix__\n#error undefined\n#endif\n"
    )
    options = ('-DTEXT="a b"', "-I", "include", "-Llib", "-lother", "-O3", "-mavx", "-U__unix__")
    more = ("-fwrapv", "-Wno-unused", "-Wl,-Map=map", "--std", "c17")
    ended = pageferry("build", "main.c", *options, *more, "--cc", "cc", cwd=tmp_path)
    assert ended == Ended(0, "main.elf\n", "")
    assert "other" in symbols(tmp_path / "main.elf")


def test_a_warning_is_printed_and_the_guest_is_built(tmp_path: Path) -> None:
    (tmp_path / "sloppy.c").write_text("int main(void) { int unused; return 0; }\n")
    ended = pageferry("build", "sloppy.c", cwd=tmp_path)
    assert (ended.code, ended.out) == (0, "sloppy.elf\n")
    assert "warning: unused variable" in ended.err


@with_cc
def test_an_object_alone_is_linked_beside_itself(
    compiler: Compiler, build: Build, tmp_path: Path
) -> None:
    flags = ("-ffreestanding", f"-I{GUESTS}/lib", f"-I{GUESTS}/include", "-c")
    made = tmp_path / "hello.o"
    run([*compiler.command, *flags, str(tmp_path / "hello.c"), "-o", str(made)], "hello.o")
    assert pageferry("build", "hello.o", cwd=tmp_path) == Ended(0, "hello.elf\n", "")
    assert load_image(tmp_path / "hello.elf")


# ---- Odd environments ----


def test_a_compiler_may_say_what_is_no_utf8(build: Build, tmp_path: Path) -> None:
    (tmp_path / "latin.c").write_bytes(b'int main(void) { int caf; return "\xe9"[1]; }\n')
    said: list[str] = []
    assert load_image(build("latin.c", report=said.append))
    assert "unused variable" in said[0]
    (tmp_path / "latin.c").write_bytes(b"int main(void) { return caf\xe9; }\n")
    with pytest.raises(BuildError, match=r"cannot compile .*latin\.c:"):
        build("latin.c")


def test_a_sources_path_may_be_no_utf8(build: Build, tmp_path: Path) -> None:
    folder = tmp_path / os.fsdecode(b"d\xe9")
    folder.mkdir()
    source = folder / os.fsdecode(b"caf\xe9.c")
    source.write_text(HELLO)
    assert load_image(build(source))


def test_the_command_builds_a_source_whose_path_is_no_utf8(tmp_path: Path) -> None:
    source = tmp_path / os.fsdecode(b"caf\xe9.c")
    source.write_text(HELLO)
    ended = pageferry("build", source)
    assert (ended.code, ended.err) == (0, "")
    assert load_image(source.with_suffix(".elf"))


@pytest.mark.parametrize("home", [None, "/nonexistent", "/proc", "/dev/null"])
def test_zig_has_a_place_for_its_cache_without_a_home(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, home: str | None
) -> None:
    def nobody(path: Path) -> Path:
        raise RuntimeError("Could not determine home directory.")

    for name in ("HOME", "XDG_CACHE_HOME", "ZIG_GLOBAL_CACHE_DIR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    if home is None:
        monkeypatch.setattr(Path, "expanduser", nobody)
    else:
        monkeypatch.setenv("HOME", home)
    zig = tmp_path / "zig"
    zig.write_text('#!/bin/sh\necho "zig keeps it in $ZIG_GLOBAL_CACHE_DIR"\n')
    zig.chmod(0o755)
    cache = tmp_path / f"pageferry-zig-{os.getuid()}"
    assert run([str(zig), "cc"], "zig").stdout == f"zig keeps it in {cache}\n"
    assert cache.stat().st_mode & 0o777 == 0o700


def test_zigs_cache_is_where_it_always_is_if_there_is_a_home(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("XDG_CACHE_HOME", "ZIG_GLOBAL_CACHE_DIR"):
        monkeypatch.delenv(name, raising=False)
    (tmp_path / "home").mkdir()
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    zig = tmp_path / "zig"
    zig.write_text('#!/bin/sh\necho "$HOME $ZIG_GLOBAL_CACHE_DIR"\n')
    zig.chmod(0o755)
    assert run([str(zig), "cc"], "zig").stdout == f"{tmp_path}/home \n"


@with_cc
def test_a_guest_is_built_for_a_user_whom_nobody_knows(
    build: Build, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def nobody(path: Path) -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("HOME", raising=False)
    monkeypatch.setattr(Path, "expanduser", nobody)
    assert load_image(build("hello.c"))
