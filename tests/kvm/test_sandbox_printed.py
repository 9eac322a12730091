"""What machines print is there to be read, also when they are gone."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from vmm import CallCrash, Pool, Sandbox
from vmm.sandbox.printed import MOST

Elf = Callable[[str], Path]


def test_what_a_machine_has_printed_is_there_after_it_has_died(sandboxed: Elf) -> None:
    with Sandbox(sandboxed("keeper"), pool="64M") as lib:
        for round_ in range(3):
            lib.say(f"line {round_}")
            lib.complain(f"oh {round_}")
            with pytest.raises(CallCrash):
                lib.crash()
        said = b"line 0\nline 1\nline 2\n"
        assert (lib.stdout, lib.stderr) == (said, b"oh 0\noh 1\noh 2\n")
        lib.say("after")
        assert lib.stdout == said + b"after\n"
    assert lib.stdout == said + b"after\n"
    assert lib.stderr == b"oh 0\noh 1\noh 2\n"


def test_of_machines_that_are_gone_the_last_is_kept(sandboxed: Elf) -> None:
    with Sandbox(sandboxed("keeper"), pool="64M") as lib:
        lib.say("x" * 2 * MOST)
        with pytest.raises(CallCrash):
            lib.crash()
        lib.say("the last")
        assert lib.stdout == b"x" * (MOST - 1) + b"\nthe last\n"
        with pytest.raises(CallCrash):
            lib.crash()
        assert len(lib.stdout) == MOST
        assert lib.stdout.endswith(b"x\nthe last\n")


def test_what_calls_of_a_fresh_machine_print_is_there_once(sandboxed: Elf) -> None:
    def begin() -> None:
        pool.say("begin")

    with Pool(
        sandboxed("keeper"), machines=1, pool="64M", fresh=True, initializer=lambda: begin()
    ) as pool:
        pool.say("one")
        assert sorted(pool.stdout.split()) == [b"begin", b"one"]
        pool.twice(2)
        pool.say("two")
        assert sorted(pool.stdout.split()) == [b"begin", b"one", b"two"]
        with pytest.raises(CallCrash):
            pool.crash()
        pool.complain("three")
        assert pool.stdout.split() == [b"one", b"two", b"begin", b"begin"]
        assert pool.stderr == b"three\n"


def test_each_machine_has_what_it_has_printed(sandboxed: Elf) -> None:
    with Pool(sandboxed("keeper"), machines=2, pool="64M") as pool:
        list(pool.map(pool.say, [f"{number:03}" for number in range(100)]))
        assert sorted(pool.stdout.split()) == [b"%03d" % number for number in range(100)]
    assert len(pool.stdout.split()) == 100
