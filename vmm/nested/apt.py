"""Debian packages, fetched and unpacked without being installed. Needs no root."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterable, Sequence
from pathlib import Path

from vmm.errors import HostError
from vmm.nested.errors import LaneError


def run(command: Sequence[str | Path], cwd: Path | None = None) -> str:
    """Run a program and return what it printed.

    Raises LaneError with the last thing it complained of.
    """
    env = {**os.environ, "LC_ALL": "C"}
    result = subprocess.run(
        command, cwd=cwd, env=env, stdin=subprocess.DEVNULL, capture_output=True, text=True
    )
    if result.returncode:
        raise LaneError(f"{Path(command[0]).name} failed: {complaint(result.stderr)}")
    return result.stdout


def complaint(text: str) -> str:
    """Return the line of a program's error output that says most.

    Its last error, or its last line.
    """
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    errors = [line for line in lines if line.startswith(("E:", "ERROR", "error"))]
    return (errors or lines or ["it did not say why"])[-1]


def os_release() -> str:
    """Return the host's distribution and release, such as "debian 12"."""
    fields = {}
    for path in (Path("/etc/os-release"), Path("/usr/lib/os-release")):
        if path.exists():
            pairs = (line.partition("=") for line in path.read_text().splitlines())
            fields = {name: value.strip('"') for name, _, value in pairs}
            break
    return f"{fields.get('ID', 'unknown')} {fields.get('VERSION_ID', '')}".strip()


def known(name: str) -> bool:
    """Whether the package lists have a package that can be fetched."""
    shown = run(["apt-cache", "policy", name])
    return "Candidate:" in shown and "Candidate: (none)" not in shown


def dependencies(name: str) -> list[str]:
    """Return the packages that a package depends on directly."""
    lines = run(["apt-cache", "depends", "--no-recommends", name]).splitlines()
    return [line.split()[-1] for line in lines if line.strip().startswith("Depends:")]


def closure(name: str) -> list[str]:
    """Return the packages that a system without any would have to install to have this one."""
    options = ["-o", "Dir::State::status=/dev/null", "--no-install-recommends"]
    lines = run(["apt-get", "-s", "-qq", *options, "install", name]).splitlines()
    return [line.split()[1] for line in lines if line.startswith("Inst ")]


def unpack(names: Iterable[str], into: Path, scratch: Path) -> None:
    """Fetch packages and unpack them below `into`. Raises HostError if they cannot be had.

    scratch  an existing directory; the packages' files are in it only meanwhile
    """
    try:
        run(["apt-get", "download", "-qq", *names], cwd=scratch)
    except LaneError as error:
        raise HostError(
            f"packages for the lane could not be fetched ({error})",
            "a first build needs the network and current package lists: sudo apt-get update",
        ) from error
    for package in sorted(scratch.glob("*.deb")):
        run(["dpkg", "-x", package, into])
        package.unlink()
