"""A memory cgroup: what does not fit is refused, where the kernel would kill without a word."""

from __future__ import annotations

import errno
import os
import secrets
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from command import Ended, one_line, pageferry

from vmm.host.memory import total_memory

MIB = 1 << 20
LIMIT = 256 * MIB
# The cgroup is entered first, as by whoever starts a container.
CODE = """import os
from pathlib import Path
Path({directory!r}, 'cgroup.procs').write_text(str(os.getpid()))
{then}"""
DEMO = "from vmm.command.cli import main; main(prog_name='pageferry')"
POOL = "from vmm import Monitor\nwith Monitor() as m: print(sum(m.audit().values()) * 4096)"

pytestmark = pytest.mark.not_in_ept("what the command says of a limit of the host's")


def parents() -> Iterator[tuple[Path, str]]:
    """Give the places where a cgroup with a limit on memory might be made, and the limit's file."""
    yield Path("/sys/fs/cgroup/memory"), "memory.limit_in_bytes"
    yield Path("/sys/fs/cgroup"), "memory.max"


@pytest.fixture(scope="module")
def cgroup() -> Iterator[Path]:
    """A cgroup of 256 MiB."""
    reasons = []
    for parent, name in parents():
        directory = parent / f"pageferry-test-{secrets.token_hex(4)}"
        try:
            directory.mkdir()
        except OSError as error:
            reasons.append(f"{parent}: {error.strerror}")
            continue
        try:
            (directory / name).write_text(str(LIMIT))
        except OSError as error:
            reasons.append(f"{directory / name}: {error.strerror}")
            directory.rmdir()
            continue
        yield directory
        _remove(directory)
        return
    pytest.skip(f"no memory cgroup can be made here: {'; '.join(reasons)}")


def _remove(directory: Path) -> None:
    for _ in range(100):
        try:
            directory.rmdir()
        except OSError as error:
            assert error.errno == errno.EBUSY  # the last process is just leaving
            os.sched_yield()
        else:
            return


def inside(cgroup: Path, *arguments: str | Path, then: str = DEMO) -> Ended:
    return pageferry(*arguments, code=CODE.format(directory=str(cgroup), then=then))


def test_a_file_larger_than_the_cgroup_allows_is_refused_beforehand(
    cgroup: Path, tmp_path: Path
) -> None:
    file = tmp_path / "file"
    file.touch()
    os.truncate(file, 400 * MIB)
    ended = inside(cgroup, "demo", file)
    assert (ended.code, ended.out) == (1, "")
    line = one_line(ended.err)
    assert "400 MiB, and 16 MiB to work with, are more than the " in line
    assert f"of memory available within {cgroup}/memory." in line
    assert line.endswith("free some, or give a smaller file")


def test_a_file_that_the_cgroup_has_room_for_is_sent(cgroup: Path, tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_bytes(os.urandom(MIB) * 24)
    ended = inside(cgroup, "demo", file, "--json")
    assert (ended.code, ended.err) == (0, "")


def test_a_guest_that_takes_all_there_is_gets_a_status_and_nobody_is_killed(
    cgroup: Path, test_guest: Callable[[str], Path]
) -> None:
    ended = inside(cgroup, "run", test_guest("takes_all"), "--timeout", "30")
    assert (ended.code, ended.err) == (0, ""), ended
    assert LIMIT // 2 < int(ended.out.rpartition(" ")[2]) * 4096 < LIMIT


def test_the_pool_leaves_the_cgroup_some_memory(cgroup: Path) -> None:
    ended = inside(cgroup, then=POOL)
    assert (ended.code, LIMIT // 2 < int(ended.out) < LIMIT * 7 // 8) == (0, True)
    assert total_memory() > LIMIT
