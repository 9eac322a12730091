"""The tests' own guests, built from tests/guests: before a lane boots, which has no compiler."""

from __future__ import annotations

from pathlib import Path

from vmm.guest.build import build_each
from vmm.guest.bundled import ROOT
from vmm.guest.compiler import BuildError, find_compiler

SOURCES = Path(__file__).resolve().parent / "guests"
ELFS = SOURCES.parent / "_guests"


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
    return ELFS


if __name__ == "__main__":
    build_test_guests()
