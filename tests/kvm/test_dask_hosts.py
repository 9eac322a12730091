"""Sandboxed functions as tasks of a cluster of two hosts, which have only a network in common.

Host one has the scheduler, the worker "one" and the client; host two has the worker "two", which
does not see the client's files.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("numpy", reason="a nested lane has no more than the package needs")
pytest.importorskip("distributed", reason="a nested lane has no more than the package needs")

from kvm.dask_cluster import Cluster, Place
from kvm.two_hosts import Host, two_hosts

TESTS = Path(__file__).parents[1]
TASKS = TESTS / "sandboxed" / "tasks.c"
CLIENT = Path(__file__).with_name("dask_hosts_client.py")
MIB = 1 << 20
PATIENCE = 60

pytestmark = pytest.mark.not_in_lanes("no Dask there, and no compiler")


@pytest.fixture(scope="module")
def hosts() -> Iterator[tuple[Host, Host]]:
    with two_hosts() as both:
        yield both


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory, hosts: tuple[Host, Host]) -> Path:
    """All that is the client's: its program, what it has built, its temporary files."""
    made = tmp_path_factory.mktemp("client")
    (made / "tmp").mkdir()
    shutil.copy(TASKS, made)
    return made


class Sites:
    """A cluster on both hosts, and a client on the first one."""

    def __init__(self, folder: Path, home: Path, hosts: tuple[Host, Host]) -> None:
        self.first, self.second = hosts
        self._home = home
        self.cluster = Cluster(folder, Place(self.first.within(), self.first.address))
        self.cluster.worker("one", place=Place(self.first.within()))
        self._start_second()
        self._client: subprocess.Popen[str] | None = self._start_client()

    def ask(self, scene: str) -> None:
        """Have the client play a scene, on a cluster that is whole."""
        if not self.cluster.runs("two"):
            self._start_second()
        if self._client is None:
            self._client = self._start_client()
        assert self._client.stdin is not None
        self._client.stdin.write(scene + "\n")
        self._client.stdin.flush()

    def _start_second(self) -> None:
        self.cluster.worker("two", place=Place(self.second.within(hidden=self._home)))

    def _start_client(self) -> subprocess.Popen[str]:
        mine = {
            "PYTHONPATH": str(TESTS),
            "TMPDIR": str(self._home / "tmp"),
            "XDG_CACHE_HOME": str(self._home / "cache"),
        }
        return subprocess.Popen(
            [*self.first.within(), sys.executable, CLIENT, self.cluster.address()],
            cwd=self._home,
            env=os.environ | mine,
            text=True,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )

    def told(self) -> Any:
        """Return the next thing that the client says."""
        assert self._client is not None
        assert self._client.stdout is not None
        line = self._client.stdout.readline()
        if not line:
            pytest.fail(f"the client has ended with {self._end_client()}")
        return json.loads(line)

    def _end_client(self) -> int:
        """It does at the end of its input."""
        client, self._client = self._client, None
        assert client is not None
        try:
            client.communicate(timeout=PATIENCE)
        finally:
            client.kill()
        return client.wait()

    def close(self) -> None:
        """End all of it."""
        try:
            assert self._client is None or self._end_client() == 0
        finally:
            self.cluster.close()


@pytest.fixture(scope="module")
def sites(
    tmp_path_factory: pytest.TempPathFactory, home: Path, hosts: tuple[Host, Host]
) -> Iterator[Sites]:
    made = Sites(tmp_path_factory.mktemp("cluster"), home, hosts)
    try:
        yield made
    finally:
        made.close()


def answer(sites: Sites, scene: str) -> Any:
    sites.ask(scene)
    return sites.told()


def test_blocks_of_one_host_are_worked_on_by_another_that_has_only_a_network(sites: Sites) -> None:
    found = answer(sites, "blocks")
    where = found["addresses"]
    assert where["one"].startswith(f"tcp://{sites.first.address}:")
    assert where["two"].startswith(f"tcp://{sites.second.address}:")
    assert found["makers"] == [where["one"]]
    assert found["scalers"] == [where["two"]]
    assert found["right"] == [True] * 12
    assert found["files here"] == ["cache", "tasks.c", "tmp"]
    assert found["files there"] == []


def test_what_comes_from_another_host_lands_where_machines_see_it(sites: Sites) -> None:
    for mebibytes, total, copied, shared, by_cable in answer(sites, "landing"):
        assert total == mebibytes << 17
        assert (copied, shared) == (0, mebibytes * MIB)
        assert by_cable >= mebibytes * MIB


def test_a_crash_on_another_host_is_raised_here_with_its_line(sites: Sites) -> None:
    found = answer(sites, "crash")
    line = found.pop("line")
    assert "*(volatile uint8_t *)nowhere" in TASKS.read_text().splitlines()[line - 1]
    assert found == {
        "function": "crash",
        "signal": "SIGSEGV",
        "file": "tasks.c",
        "printed": "about to crash",
        "goes on": True,
        "then": 2,
    }


def check_loss(found: Any) -> None:
    """What host two had done and what it had begun is right, and is host one's."""
    assert found["lost"] == 2
    assert found["right"]
    assert found["left"].keys() == {"one"}
    assert found["done by"] == [found["left"]["one"]]


def test_the_work_of_a_worker_that_is_killed_is_done_on_the_other_host(sites: Sites) -> None:
    assert answer(sites, "loss") == "at work"
    assert sites.cluster.end("two", signal.SIGKILL) == -signal.SIGKILL
    check_loss(sites.told())


def test_the_work_of_a_host_that_is_cut_off_is_done_on_the_other(
    tmp_path: Path, home: Path, hosts: tuple[Host, Host], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(
        "DASK_DISTRIBUTED__SCHEDULER__WORKER_TTL", "10s"
    )  # or a busy host is lost, too
    sites = Sites(tmp_path, home, hosts)
    try:
        assert answer(sites, "loss") == "at work"
        sites.second.cable("down")
        check_loss(sites.told())
        sites.second.cable("up")
        sites.cluster.ended("two")  # by itself, though C runs there that never returns
    finally:
        sites.second.cable("up")
        sites.close()
