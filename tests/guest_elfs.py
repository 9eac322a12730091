"""The tests' own guests, built from tests/guests: before a lane boots, which has no compiler.

Some of the same sources are built with a C library as well, into programs for Linux; and those of
tests/sandboxed into libraries whose functions the host calls.
"""

from __future__ import annotations

import re
from pathlib import Path

from vmm.guest.build import build_each, build_guest
from vmm.guest.builds import LibcBuild, SandboxBuild, Target
from vmm.guest.bundled import ROOT
from vmm.guest.compiler import STRICT_FLAGS, BuildError, Compiler, find_compiler

SOURCES = Path(__file__).resolve().parent / "guests"
ELFS = SOURCES.parent / "_guests"
README = SOURCES.parent.parent / "README.md"
OF_THE_README = ELFS / "of_the_readme.elf"
FOR_LINUX = ELFS / "linux"
# Of tests/guests, what is a program for Linux, too; and of tests/linux, what is only that, but has
# peers.
BOTH = (
    *("all_uses", "data_address_both", "every_way", "forger", "forward_to_b", "increment_to_host"),
    *("puppet", "send_x_to_host", "spin", "status_return_notice", "tag_from_host", "tell_sender"),
    "three_pages_to_b",
)
BUNDLED = ("echo_client", "echo_server")
PEERS = ("fresh", "hostile")
SANDBOXED = ELFS / "sandboxed"


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
    _build_for_linux(compiler)
    _build_sandboxed(compiler)
    _build_shown(compiler)
    return ELFS


def _build_for_linux(compiler: Compiler) -> None:
    sources = [SOURCES / f"{name}.c" for name in BOTH]
    sources += [README.parent / "guests" / f"{name}.c" for name in BUNDLED]
    sources += [SOURCES.parent / "linux" / f"{name}.c" for name in PEERS]
    # Small, since each is carried into the lanes; but ziglang would build its libraries once more
    # for programs without debug information.
    link = () if compiler.family == "zig" else ("-s",)
    targets = [
        Target(((source, True),), FOR_LINUX / f"{source.stem}.elf", STRICT_FLAGS, link)
        for source in sources
    ]
    LibcBuild(compiler, FOR_LINUX / ".obj", ROOT / "lib", [ROOT / "include"]).build(targets)


def _build_sandboxed(compiler: Compiler) -> None:
    targets = [
        Target(((source, True),), SANDBOXED / f"{source.stem}.elf", STRICT_FLAGS)
        for source in sorted((SOURCES.parent / "sandboxed").glob("*.c"))
    ]
    SandboxBuild(compiler, SANDBOXED / ".obj", ROOT / "lib", [ROOT / "include"]).build(targets)


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
