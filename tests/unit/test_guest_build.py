"""The guest builder: both ways of compiling, what the files hold, what errors say."""

from __future__ import annotations

import importlib.util
import os
import shutil
import sys
import tarfile
import tomllib
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from elftools.elf.elffile import ELFFile
from hatchling.builders.sdist import SdistBuilder
from hatchling.builders.wheel import WheelBuilder
from unit.compilers import no_cc

from vmm.guest import build
from vmm.guest.compiler import BuildError, Compiler, find_compiler, needs_ziglang

ROOT = Path(__file__).resolve().parents[2]
GUESTS = ROOT / "guests"
PROBE = '#include "pf.h"\nint main(void) { return pf_log("probe"); }\n'


@pytest.fixture(scope="module")
def bundled(
    compiler: Compiler, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Path, list[Path]]]:
    """A copy of the guests, with spaces in its path, and one more guest; and what was built."""
    top = tmp_path_factory.mktemp("a checkout")
    shutil.copytree(GUESTS, top / "guests")
    (top / "guests" / "probe.c").write_text(PROBE)
    outputs = build.build_bundled(top / "guests", top / "out", compiler)
    yield top, outputs
    shutil.rmtree(top)


def build_one(source: Path, compiler: Compiler) -> Path:
    return build.build_guest(
        [source],
        source.with_suffix(".elf"),
        include_dirs=[GUESTS / "include"],
        library_dir=GUESTS / "lib",
        compiler=compiler,
    )


def note_names(elf: ELFFile) -> list[str]:
    section = elf.get_section_by_name(".note.pageferry")
    if section is None:
        return []
    assert section is not None
    return [note["n_name"] for note in section.iter_notes()]


def check_guest(path: Path, build_directory: Path, notes: Sequence[str] = ("pageferry",)) -> None:
    with path.open("rb") as stream:
        elf = ELFFile(stream)
        header = elf.header
        assert elf.elfclass == 64
        assert header["e_machine"] == "EM_X86_64"
        assert header["e_type"] == "ET_EXEC"
        loads = [s for s in elf.iter_segments() if s["p_type"] == "PT_LOAD"]
        spans = [
            range(s["p_vaddr"], s["p_vaddr"] + s["p_memsz"]) for s in loads if s["p_flags"] & 1
        ]
        assert any(header["e_entry"] in span for span in spans)
        assert note_names(elf) == [*notes]
        assert elf.get_section_by_name(".debug_line").data_size > 0
    content = path.read_bytes()
    assert os.fsencode(build_directory) not in content
    assert os.fsencode(sys.prefix) not in content


def test_every_guest_source_is_built(bundled: tuple[Path, list[Path]]) -> None:
    top, outputs = bundled
    kinds = (".", "faults", "linux")
    sources = [path for kind in kinds for path in (top / "guests" / kind).glob("*.c")]
    names = [str(path.relative_to(top / "guests").with_suffix("")) for path in sources]
    built = [str(path.relative_to(top / "out" / "bin").with_suffix("")) for path in outputs]
    assert sorted(built) == sorted(names)


def test_guests_are_static_elf_with_note_and_debug_lines(bundled: tuple[Path, list[Path]]) -> None:
    top, outputs = bundled
    for path in outputs:
        check_guest(path, top, () if path.parent.name == "linux" else ("pageferry",))


def test_debug_lines_name_sources_relatively(bundled: tuple[Path, list[Path]]) -> None:
    _, outputs = bundled
    probe = next(path for path in outputs if path.stem == "probe")
    with probe.open("rb") as stream:
        dwarf = ELFFile(stream).get_dwarf_info()
        names = {unit.get_top_DIE().get_full_path() for unit in dwarf.iter_CUs()}
    assert {"guests/probe.c", "guests/lib/pf.c"} <= {name.removeprefix("./") for name in names}


def modification_times(directory: Path) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in directory.rglob("*.[oe]*") if path.is_file()}


def test_only_what_changed_is_built_again(
    bundled: tuple[Path, list[Path]], compiler: Compiler
) -> None:
    top, _ = bundled
    before = modification_times(top / "out")
    build.build_bundled(top / "guests", top / "out", compiler)
    assert modification_times(top / "out") == before

    (top / "guests" / "probe.c").write_text(PROBE.replace("probe", "other"))
    build.build_bundled(top / "guests", top / "out", compiler)
    after = modification_times(top / "out")
    changed = {path.name.split("-")[0] for path in before if after[path] != before[path]}
    assert changed == {"probe.c", "probe.elf"}


def test_a_header_rebuilds_all_and_a_removed_source_its_guest(
    compiler: Compiler, tmp_path: Path
) -> None:
    guests = tmp_path / "guests"
    for name in ("include", "lib"):
        shutil.copytree(GUESTS / name, guests / name)
    for name in ("one", "two"):
        (guests / f"{name}.c").write_text(PROBE)
    build.build_bundled(guests, tmp_path / "out", compiler)
    before = modification_times(tmp_path / "out")
    with (guests / "include" / "pageferry.h").open("a") as header:
        header.write("/* changed */\n")
    (guests / "two.c").unlink()
    outputs = build.build_bundled(guests, tmp_path / "out", compiler)
    after = modification_times(tmp_path / "out")
    assert [path.name for path in outputs] == ["one.elf"]
    assert list((tmp_path / "out" / "bin").iterdir()) == outputs
    rebuilt = {path for path in before if path in after and after[path] != before[path]}
    assert rebuilt == {path for path in before if "two" not in path.name}


def test_a_compile_error_names_the_file_and_the_reason(compiler: Compiler, tmp_path: Path) -> None:
    source = tmp_path / "broken.c"
    source.write_text("int main(void) { return not_declared; }\n")
    with pytest.raises(BuildError, match=r"(?s)broken\.c.*not_declared"):
        build_one(source, compiler)
    assert list(tmp_path.iterdir()) == [source]


def test_a_warning_in_the_library_or_a_guest_of_the_package_is_an_error(
    compiler: Compiler, tmp_path: Path
) -> None:
    shutil.copytree(GUESTS / "include", tmp_path / "include")
    shutil.copytree(GUESTS / "lib", tmp_path / "lib")
    sloppy = "int sloppy(void);\nint sloppy(void) { int unused; return 0; }\n"
    (tmp_path / "probe.c").write_text(PROBE)
    for place in (tmp_path / "lib", tmp_path):
        (place / "sloppy.c").write_text(sloppy)
        with pytest.raises(BuildError, match=r"(?s)sloppy\.c.*unused"):
            build.build_bundled(tmp_path, tmp_path / "out", compiler)
        (place / "sloppy.c").unlink()


def test_a_missing_symbol_is_named(compiler: Compiler, tmp_path: Path) -> None:
    source = tmp_path / "adrift.c"
    source.write_text("int elsewhere(void);\nint main(void) { return elsewhere(); }\n")
    with pytest.raises(BuildError, match=r"(?s)cannot link adrift\.elf.*elsewhere"):
        build_one(source, compiler)


def test_a_guest_outside_the_package_is_built(compiler: Compiler, tmp_path: Path) -> None:
    source = tmp_path / "mine.c"
    source.write_text(PROBE)
    assert build_one(source, compiler) == tmp_path / "mine.elf"
    check_guest(tmp_path / "mine.elf", tmp_path)


def test_without_any_compiler_the_error_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("PAGEFERRY_CC", raising=False)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(BuildError, match=r"no C compiler found: install gcc .*ziglang"):
        find_compiler()


def test_a_named_compiler_that_is_not_there_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PAGEFERRY_CC", "no-such-compiler -m64")
    with pytest.raises(BuildError, match="no-such-compiler"):
        find_compiler()


def test_a_compiler_that_cannot_link_is_passed_over(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    fake = tmp_path / "cc"
    fake.write_text('#!/bin/sh\n[ "$1" = --version ] && exec echo "fake cc 1.0"\nexit 1\n')
    fake.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}")
    monkeypatch.delenv("PAGEFERRY_CC", raising=False)
    assert needs_ziglang()


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A copy of what the package is built from, without anything built."""
    top = tmp_path / "a checkout"
    without = shutil.ignore_patterns("_guests", "__pycache__")
    for name in ("vmm", "guests", "scripts"):
        shutil.copytree(ROOT / name, top / name, ignore=without)
    for name in ("pyproject.toml", "LICENSE", "README.md", ".gitignore"):
        shutil.copy(ROOT / name, top / name)
    (top / "guests" / "probe.c").write_text(PROBE)
    return top


@pytest.mark.skipif(no_cc, reason="no cc")
def test_a_wheel_from_an_sdist_holds_the_guests_and_what_builds_more(
    checkout: Path, tmp_path: Path
) -> None:
    archive = next(SdistBuilder(str(checkout)).build(directory=str(tmp_path)))
    with tarfile.open(archive) as sdist:
        # extractall(filter=…) is not there in 3.11.2, which is Debian 12's.
        sdist.extraction_filter = getattr(tarfile, "data_filter", None)
        sdist.extractall(tmp_path / "unpacked")
    (unpacked,) = (tmp_path / "unpacked").iterdir()
    wheel = next(WheelBuilder(str(unpacked)).build(directory=str(tmp_path), versions=["standard"]))
    with zipfile.ZipFile(wheel) as contents:
        names = set(contents.namelist())
    wanted = ("bin/probe.elf", "include/pageferry.h", "lib/pf.h", "lib/pf.c", "lib/guest.ld")
    wanted += ("lib/linux/peer.c", "lib/sandbox/sandbox.c", "lib/sandbox/enter.S")
    assert {f"vmm/_guests/{name}" for name in wanted} <= names
    assert "vmm/py.typed" in names
    assert "vmm/command/project/NAME.c.in" in names
    assert not [name for name in names if "/.obj/" in name or name.startswith("guests/")]


def test_building_asks_for_ziglang_only_where_no_compiler_is(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv("PAGEFERRY_CC", raising=False)
    if not no_cc:
        assert WheelBuilder(str(ROOT)).config.dependencies == []
    monkeypatch.setenv("PATH", str(tmp_path))
    (asked,) = WheelBuilder(str(ROOT)).config.dependencies
    assert asked.startswith("ziglang")
    pyproject = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert asked in pyproject["project"]["optional-dependencies"]["test"]
