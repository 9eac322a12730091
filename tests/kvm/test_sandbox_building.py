"""Sandboxes from sources and libraries: what there is, and what the compiler says of it."""

from __future__ import annotations

import ctypes
import subprocess
import traceback
import zlib
from pathlib import Path

import pytest
from unit.compilers import no_cc

from vmm import ConfigError, GuestImageError, Pool, Sandbox

pytestmark = [
    pytest.mark.not_in_lanes("there is no compiler"),
    pytest.mark.skipif(no_cc, reason="the libraries that are linked are glibc's"),
]


def made(folder: Path, name: str, *sources: str) -> Path:
    """Make an archive, without debug information."""
    objects = []
    for number, source in enumerate(sources):
        one = folder / f"{name}{number}.c"
        one.write_text(source)
        subprocess.run(["cc", "-O1", "-c", one, "-o", one.with_suffix(".o")], check=True)
        objects.append(one.with_suffix(".o"))
    archive = folder / f"lib{name}.a"
    subprocess.run(["ar", "rcs", archive, *objects], check=True)
    return archive


# ---- Libraries without a source ----


def test_a_library_is_all_there_is_by_its_name() -> None:
    with Sandbox(libraries=["z"], header="zlib.h", pool="64M") as lib:
        packed, size = bytearray(100), ctypes.c_ulong(100)
        assert lib.compress(packed, size, b"pages " * 100, 600) == 0
        assert zlib.decompress(packed[: size.value]) == b"pages " * 100
        listed = set(dir(lib))
        assert {"compress", "inflate", "crc32"} <= listed
        assert not {"malloc", "lseek", "getpid", "vsnprintf"} & listed
        assert repr(lib) == "<Sandbox z of 1 machine>"


def test_libraries_of_ones_own_are_found_and_may_need_each_other(tmp_path: Path) -> None:
    made(tmp_path, "one", "int inner(int); int outer(int v) { return inner(v) + 1; }")
    made(tmp_path, "two", "#include <math.h>\nint inner(int v) { return (int)cbrt(v); }")
    header = tmp_path / "both.h"
    header.write_text("#include <string.h>\nint outer(int v); int inner(int v);\n")
    with Pool(
        libraries=("one", "m", "two"),
        library_dirs=[tmp_path],
        header=header,
        machines=1,
        pool="64M",
    ) as lib:
        assert (lib.outer(27), lib.inner(8)) == (4, 2)
        assert {"outer", "inner"} <= set(dir(lib))
        assert "strlen" not in dir(lib)


def test_functions_of_linked_libraries_are_listed_beside_the_sources(tmp_path: Path) -> None:
    source = tmp_path / "own.c"
    source.write_text("#include <zlib.h>\nunsigned long own(void) { return crc32(0, 0, 0); }\n")
    with Sandbox(source, libraries=["z"], header="zlib.h", pool="64M") as lib:
        listed = set(dir(lib))
        assert {"own", "crc32"} <= listed
        assert not {"malloc", "free", "lseek"} & listed


def test_a_library_that_is_not_there_or_is_none_is_told_of(tmp_path: Path) -> None:
    with pytest.raises(GuestImageError, match=r"no libnone\.a where .* install .*library_dirs"):
        Sandbox(libraries=["none"])
    (tmp_path / "libtext.a").write_text("INPUT(-lz)\n")
    with pytest.raises(GuestImageError, match=r"no libtext\.a"):
        Sandbox(libraries=["text"], library_dirs=[tmp_path])
    with pytest.raises(ConfigError, match="m is the compiler's own"):
        Sandbox(libraries=["m"])
    for options in ({"libraries": "z"}, {"includes": "."}, {"library_dirs": "."}, {"cflags": "-g"}):
        with pytest.raises(TypeError, match="must be a list"):
            Sandbox("x.c", **options)  # type: ignore[arg-type]


# ---- What the compiler says ----


def test_what_the_compiler_says_is_the_error_and_nothing_of_ours_is(tmp_path: Path) -> None:
    source = tmp_path / "wrong.c"
    source.write_text("int f(void)\n{\n    return nowhere;\n}\nint g(void) { return 1 }\n")
    for kind in (Sandbox, Pool):
        with pytest.raises(GuestImageError) as raised:
            kind(source)
        error = raised.value
        assert "wrong.c:3:12: error: 'nowhere' undeclared" in str(error)
        assert "wrong.c:5:" in error.__notes__[0]
        assert "\n" not in str(error)
        assert error.__cause__ is None
        assert error.__suppress_context__
        said = "".join(traceback.format_exception(error))
        assert said.count("Traceback") == 1
        assert len(traceback.extract_tb(error.__traceback__)) <= 3  # here, and the constructors


def test_so_it_is_with_what_cannot_be_linked_and_with_headers(tmp_path: Path) -> None:
    source = tmp_path / "loose.c"
    source.write_text("int missing(void);\nint f(void)\n{\n    return missing();\n}\n")
    with pytest.raises(
        GuestImageError, match=r"loose\.c:4:.*undefined reference to `missing'"
    ) as a:
        Sandbox(source)
    with pytest.raises(GuestImageError, match=r"none\.h") as b:
        Sandbox(libraries=["z"], header="none.h")
    for raised in (a, b):
        assert raised.value.__cause__ is None
        assert len(traceback.extract_tb(raised.value.__traceback__)) <= 2
