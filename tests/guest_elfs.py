"""The tests' own guests, built from tests/guests: before a lane boots, which has no compiler."""

from __future__ import annotations

import re
from pathlib import Path

from vmm.guest.build import build_each, build_guest
from vmm.guest.bundled import ROOT
from vmm.guest.compiler import BuildError, Compiler, find_compiler

SOURCES = Path(__file__).resolve().parent / "guests"
ELFS = SOURCES.parent / "_guests"
README = SOURCES.parent.parent / "README.md"
OF_THE_README = ELFS / "of_the_readme.elf"


def build_test_guests() -> Path:
    """Build those that have changed; return the folder of the ELFs.

    Where there is no compiler, as in a VM that the tests were copied into, those built before are
    used.
    """
    try:
        compiler = find_compiler()
    except BuildError:
        assert list(ELFS.glob("*.elf")), "no compiler, and no guests built before"
        return ELFS
    build_each(
        SOURCES,
        ELFS,
        include_dirs=[ROOT / "include"],
        library_dir=ROOT / "lib",
        compiler=compiler,
    )
    _build_shown(compiler)
    return ELFS


def _build_shown(compiler: Compiler) -> None:
    """Build the guest that the README shows, if that has changed."""
    shown = re.search(r"^## A guest\n\n```c\n(.*?)```", README.read_text(), re.S | re.M)
    assert shown is not None, "the README shows no guest"
    source = ELFS / "of_the_readme.c"
    if source.is_file() and source.read_text() == shown[1] and OF_THE_README.is_file():
        return
    source.write_text(shown[1])
    build_guest(
        [source],
        OF_THE_README,
        include_dirs=[ROOT / "include"],
        library_dir=ROOT / "lib",
        compiler=compiler,
    )


if __name__ == "__main__":
    build_test_guests()
