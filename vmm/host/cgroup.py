"""What this process's memory cgroups allow it: whoever takes more is killed, without a word.

A cgroup is bound by its own limits and by those of all that it is in, in version 2 (memory.max, and
memory.high, beyond which it is slowed down to a halt) and in version 1 (memory.limit_in_bytes).
See cgroups(7), and admin-guide/cgroup-v2.rst and cgroup-v1/memory.rst of the kernel.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from vmm.host.system import read_text

_NO_LIMIT = 1 << 60  # version 1 has no word for it, but a number of this size
_RECLAIMABLE = ("inactive_file", "active_file")


@dataclasses.dataclass(frozen=True, slots=True)
class Bound:
    """A limit on memory, in bytes: where it is set, and how much of it is left."""

    limit: int
    left: int
    path: str


@dataclasses.dataclass(frozen=True, slots=True)
class _Version:
    limits: tuple[str, ...]
    usage: str
    prefix: str = ""  # of the fields of memory.stat that count what is in it, too


_V1 = _Version(("memory.limit_in_bytes",), "memory.usage_in_bytes", "total_")
_V2 = _Version(("memory.max", "memory.high"), "memory.current")


def memory_bounds(root: Path = Path("/")) -> list[Bound]:
    """Return every limit that holds for this process; none if the kernel has no cgroups.

    root   where proc and the cgroups' file systems are looked for
    """
    memberships = read_text(root / "proc/self/cgroup") or ""
    mounts = read_text(root / "proc/self/mountinfo") or ""
    bounds: list[Bound] = []
    for version, top, path in _hierarchies(memberships, mounts):
        for directory in _upwards(root / top.lstrip("/"), path):
            bounds += _bounds(version, directory)
    return bounds


def _hierarchies(memberships: str, mounts: str) -> Iterator[tuple[_Version, str, str]]:
    """Give where a hierarchy with memory is mounted, and the path of our cgroup below that."""
    ours = dict(_memberships(memberships))
    for line in mounts.splitlines():
        before, _, after = line.partition(" - ")
        fields, kind = before.split(), after.split()
        if len(fields) < 5 or not kind:
            continue
        version = None
        if kind[0] == "cgroup2":
            version = _V2
        elif kind[0] == "cgroup" and "memory" in kind[-1].split(","):
            version = _V1
        if version is not None and version in ours:
            yield version, _plain(fields[4]), _below(_plain(fields[3]), ours[version])


def _memberships(text: str) -> Iterator[tuple[_Version, str]]:
    for line in text.splitlines():
        number, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if number == "0" and not controllers:
            yield _V2, path
        elif "memory" in controllers.split(","):
            yield _V1, path


def _plain(text: str) -> str:
    """Return a path as it is: a space is \\040 in mountinfo."""
    return re.sub(r"\\([0-7]{3})", lambda found: chr(int(found[1], 8)), text)


def _below(top: str, path: str) -> str:
    """Return a cgroup's path below the one that is mounted: in a container that is often its own.

    One that is elsewhere cannot be seen: what is mounted has to do.
    """
    ours = PurePosixPath(path)
    if ".." in ours.parts or not ours.is_relative_to(top):
        return ""
    return str(ours.relative_to(top))


def _upwards(top: Path, path: str) -> Iterator[Path]:
    directory = top / path
    while directory != top:
        yield directory
        directory = directory.parent
    yield top


def _bounds(version: _Version, directory: Path) -> Iterator[Bound]:
    used = _number(read_text(directory / version.usage))
    for name in version.limits:
        limit = _number(read_text(directory / name))
        if limit is not None and limit < _NO_LIMIT:
            busy = max((used or 0) - _reclaimable(version, directory), 0)
            yield Bound(limit, max(limit - busy, 0), str(directory / name))


def _number(text: str | None) -> int | None:
    return int(text) if text is not None and text.isascii() and text.isdigit() else None


def _reclaimable(version: _Version, directory: Path) -> int:
    """Return the bytes that are counted as used, but given back when they are needed: files'."""
    total = 0
    names = [version.prefix + name for name in _RECLAIMABLE]
    for line in (read_text(directory / "memory.stat") or "").splitlines():
        name, _, value = line.partition(" ")
        if name in names:
            total += _number(value.strip()) or 0
    return total
