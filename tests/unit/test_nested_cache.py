"""The lanes' cache: built once, whole or not at all."""

from __future__ import annotations

import errno
import os
import shutil
import threading
import time
from pathlib import Path

import pytest

from vmm.errors import HostError
from vmm.host.cache import cache_root, content_key
from vmm.nested import cache as module
from vmm.nested.cache import Cache

MONTHS = 90 * 24 * 3600


@pytest.fixture
def said() -> list[str]:
    return []


@pytest.fixture
def cache(tmp_path: Path, said: list[str]) -> Cache:
    return Cache(tmp_path / "cache", said.append)


def build(path: Path) -> None:
    (path / "file").write_text("whole")


def test_a_key_tells_contents_and_their_order_apart() -> None:
    keys = [("a", "b"), ("b", "a"), ("ab",), ("", "ab"), ("a", b"b", "")]
    assert len({content_key(*parts) for parts in keys}) == len(keys)
    assert content_key("a", "b") == content_key(b"a", b"b")


def test_the_cache_is_where_the_user_says(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("PAGEFERRY_CACHE", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    assert cache_root() == tmp_path / ".cache" / "pageferry"
    monkeypatch.setenv("XDG_CACHE_HOME", "/x")
    assert cache_root() == Path("/x/pageferry")
    monkeypatch.setenv("PAGEFERRY_CACHE", "/y")
    assert cache_root() == Path("/y")


def test_a_stage_is_built_once(cache: Cache, said: list[str]) -> None:
    paths = {cache.stage("root", "k", "the root", build) for _ in range(3)}
    assert [(path / "file").read_text() for path in paths] == ["whole"]
    assert said == ["building the root"]


def test_a_changed_stage_is_built_beside_the_old_one(cache: Cache) -> None:
    old, new = (cache.stage("root", key, "the root", build) for key in "ab")
    assert old != new
    assert old.is_dir()


def test_a_failed_build_leaves_nothing(cache: Cache) -> None:
    def fail(path: Path) -> None:
        build(path)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        cache.stage("root", "k", "the root", fail)
    assert [path for path in cache.root.iterdir() if path.is_dir()] == []
    assert cache.stage("root", "k", "the root", build).is_dir()


def test_what_a_killed_build_left_is_not_taken_for_a_stage(cache: Cache) -> None:
    left = cache.root / "root-k.partial"
    left.mkdir()
    (left / "half").touch()
    path = cache.stage("root", "k", "the root", build)
    assert [file.name for file in path.iterdir()] == ["file"]
    assert not left.exists()


def test_two_builds_at_once_are_one(cache: Cache) -> None:
    builds = []

    def slow(path: Path) -> None:
        builds.append(path)
        time.sleep(0.2)
        build(path)

    def other() -> None:
        Cache(cache.root, lambda line: None).stage("root", "k", "the root", slow)

    threads = [threading.Thread(target=other) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(builds) == 1


def test_old_builds_go_when_nobody_has_used_them_for_long(cache: Cache) -> None:
    old, other = cache.stage("root", "a", "it", build), cache.stage("boot", "a", "it", build)
    for path in (old, other):
        os.utime(path, (0, time.time() - MONTHS))
    cache.stage("root", "b", "it", build)
    assert (old.exists(), other.exists()) == (False, True)


def test_forgetting_builds_anew(cache: Cache, said: list[str]) -> None:
    cache.stage("root", "k", "it", build)
    cache.forget()
    cache.stage("root", "k", "it", build)
    assert len(said) == 2


def test_a_short_disk_says_how_much_and_where(
    cache: Cache, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(1, 1, 1 << 20))
    with pytest.raises(HostError, match=r"only 1 MiB free, and the lanes need 700 MiB") as error:
        cache.stage("root", "k", "the root", build)
    assert str(cache.root) in error.value.what
    assert "$PAGEFERRY_CACHE" in error.value.fix


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_disk_that_fills_up_is_said_to(cache: Cache, number: int) -> None:
    def fill(path: Path) -> None:
        raise OSError(number, os.strerror(number))

    with pytest.raises(HostError, match="the disk is short"):
        cache.stage("root", "k", "the root", fill)


def test_a_cache_that_cannot_be_made_is_said_to(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(HostError, match="cannot be written"):
        Cache(tmp_path / "file" / "cache", print)


def test_a_runs_directory_goes_with_it(cache: Cache) -> None:
    with pytest.raises(ZeroDivisionError), cache.run_directory() as path:
        (path / "file").touch()
        raise ZeroDivisionError
    assert list((cache.root / "run").iterdir()) == []


def test_directories_of_killed_runs_are_removed_and_no_others(
    cache: Cache, monkeypatch: pytest.MonkeyPatch
) -> None:
    left = cache.root / "run" / "runleft"
    left.mkdir(parents=True)
    with cache.run_directory() as running:
        for path in (left, running):
            os.utime(path, (0, time.time() - MONTHS))
        with cache.run_directory() as second:
            assert running.exists()
            assert not left.exists()
            assert second != running


def test_small_files_go_when_nobody_has_used_them_for_long(cache: Cache) -> None:
    path = cache.directory("compiled")
    for name in ("old", "new"):
        (path / name).touch()
    os.utime(path / "old", (0, time.time() - MONTHS))
    assert [file.name for file in cache.directory("compiled").iterdir()] == ["new"]
    assert module.NEEDED_BYTES > 0
