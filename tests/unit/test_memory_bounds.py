"""What memory cgroups allow, read from made-up hierarchies of either version."""

from __future__ import annotations

from pathlib import Path

import pytest

from vmm.host.cgroup import Bound, memory_bounds
from vmm.host.memory import Available, least, memory_available, total_memory

MIB = 1 << 20
V1_UNLIMITED = "9223372036854771712"
V2 = "30 24 0:26 {root} /sys/fs/cgroup rw,nosuid - cgroup2 cgroup2 rw,nsdelegate\n"
V1 = (
    "31 24 0:27 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu\n"
    "32 24 0:28 {root} /sys/fs/cgroup/memory rw shared:9 - cgroup cgroup rw,memory\n"
)
HYBRID = V1 + "33 24 0:29 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n"


class Tree:
    """A root directory with /proc/self and cgroups below it."""

    def __init__(self, root: Path) -> None:
        self.root = root
        (root / "proc/self").mkdir(parents=True)

    def put(self, path: str, **values: object) -> None:
        """Make a cgroup's directory; a file's name has a dot for each "__"."""
        directory = self.root / path.lstrip("/")
        directory.mkdir(parents=True, exist_ok=True)
        for name, value in values.items():
            (directory / name.replace("__", ".")).write_text(f"{value}\n")

    def be(self, memberships: str, mounts: str, root: str = "/") -> None:
        (self.root / "proc/self/cgroup").write_text(memberships)
        (self.root / "proc/self/mountinfo").write_text(mounts.format(root=root))

    def bounds(self) -> list[tuple[int, int, str]]:
        """Return the bounds in MiB, with paths below /sys/fs/cgroup."""
        top = str(self.root / "sys/fs/cgroup")
        return [
            (bound.limit // MIB, bound.left // MIB, bound.path.removeprefix(f"{top}/"))
            for bound in memory_bounds(self.root)
        ]


@pytest.fixture
def tree(tmp_path: Path) -> Tree:
    return Tree(tmp_path)


def test_without_cgroups_there_are_no_bounds(tree: Tree) -> None:
    assert tree.bounds() == []
    tree.be("", "")
    assert tree.bounds() == []
    tree.be("0::/a\n", "24 1 0:5 / / rw - ext4 /dev/sda rw\n")
    assert tree.bounds() == []


def test_version_2_is_bound_by_max_and_high_of_all_that_it_is_in(tree: Tree) -> None:
    tree.be("0::/a.slice/b.scope\n", V2)
    tree.put("/sys/fs/cgroup", cgroup__controllers="memory")
    tree.put("/sys/fs/cgroup/a.slice", memory__max="max", memory__high=300 * MIB)
    tree.put("/sys/fs/cgroup/a.slice", memory__current=100 * MIB)
    tree.put("/sys/fs/cgroup/a.slice/b.scope", memory__max=256 * MIB, memory__high="max")
    tree.put("/sys/fs/cgroup/a.slice/b.scope", memory__current=30 * MIB)
    tree.put("/sys/fs/cgroup/other", memory__max=1)
    assert tree.bounds() == [
        (256, 226, "a.slice/b.scope/memory.max"),
        (300, 200, "a.slice/memory.high"),
    ]


def test_version_1_is_bound_by_the_limits_of_all_that_it_is_in(tree: Tree) -> None:
    tree.be("9:cpu:/x\n4:memory:/docker/abc\n0::/\n", HYBRID)
    top = "/sys/fs/cgroup/memory"
    tree.put(top, memory__limit_in_bytes=V1_UNLIMITED, memory__usage_in_bytes=900 * MIB)
    tree.put(f"{top}/docker", memory__limit_in_bytes=512 * MIB, memory__usage_in_bytes=500 * MIB)
    tree.put(f"{top}/docker/abc", memory__limit_in_bytes=256 * MIB, memory__usage_in_bytes=56 * MIB)
    assert tree.bounds() == [
        (256, 200, "memory/docker/abc/memory.limit_in_bytes"),
        (512, 12, "memory/docker/memory.limit_in_bytes"),
    ]


@pytest.mark.parametrize(
    ("mounts", "membership", "files", "prefix"),
    [
        (V2, "0::/", ("memory__max", "memory__current"), ""),
        (V1, "4:memory:/", ("memory__limit_in_bytes", "memory__usage_in_bytes"), "total_"),
    ],
    ids=["version 2", "version 1"],
)
def test_what_files_take_is_given_back_when_it_is_needed(
    tree: Tree, mounts: str, membership: str, files: tuple[str, str], prefix: str
) -> None:
    tree.be(f"{membership}\n", mounts)
    place = "/sys/fs/cgroup" + ("/memory" if prefix else "")
    stat = f"anon {MIB}\n{prefix}inactive_file {60 * MIB}\n{prefix}active_file {10 * MIB}\n"
    tree.put(place, **{files[0]: 100 * MIB, files[1]: 90 * MIB, "memory__stat": stat})
    assert [bound[:2] for bound in tree.bounds()] == [(100, 80)]


@pytest.mark.parametrize(
    ("root", "path"),
    [
        ("/docker/abc", "/docker/abc"),  # a container without a namespace for cgroups
        ("/", "/"),  # one with it
        ("/docker/abc", "/"),  # mounted from outside of it
        ("/..", "/"),
        ("/", "/../elsewhere"),
    ],
)
def test_in_a_container_its_own_cgroup_is_what_is_mounted(tree: Tree, root: str, path: str) -> None:
    tree.be(f"0::{path}\n", V2, root)
    tree.put("/sys/fs/cgroup", memory__max=64 * MIB, memory__current=65 * MIB)
    assert tree.bounds() == [(64, 0, "memory.max")]


def test_a_cgroup_below_the_one_that_is_mounted_is_found(tree: Tree) -> None:
    tree.be("0::/docker/abc/inner\n", V2, "/docker/abc")
    tree.put("/sys/fs/cgroup/inner", memory__max=64 * MIB)
    assert tree.bounds() == [(64, 64, "inner/memory.max")]


def test_a_mount_point_may_have_a_space_in_its_name(tree: Tree) -> None:
    tree.be("0::/\n", "30 24 0:26 / /sys/fs/cgroup/a\\040b rw - cgroup2 cgroup2 rw\n")
    tree.put("/sys/fs/cgroup/a b", memory__max=64 * MIB)
    assert tree.bounds() == [(64, 64, "a b/memory.max")]


@pytest.mark.parametrize("text", ["", "nonsense", "-1", "1.5", "²"])
def test_what_is_no_number_is_no_bound(tree: Tree, text: str) -> None:
    tree.be("0::/\nnonsense\n:::\n", V2 + "nonsense\n- - -\n")
    tree.put("/sys/fs/cgroup", memory__max=text, memory__current=text, memory__stat="x\n\ny z\n")
    assert tree.bounds() == []
    tree.put("/sys/fs/cgroup", memory__max=MIB)
    assert tree.bounds() == [(1, 1, "memory.max")]


def test_the_least_of_host_and_bounds_is_what_there_is() -> None:
    wide, tight = Bound(9, 8, "wide"), Bound(10, 2, "tight")
    assert least(5, []) == Available(5, "")
    assert least(5, [wide]) == Available(5, "")
    assert least(5, [wide, tight]) == Available(2, "tight")


def test_this_process_has_some_memory_and_no_more_than_there_is() -> None:
    assert 0 < memory_available() <= total_memory()
