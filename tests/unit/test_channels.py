"""Machines' names, and who may send to whom."""

from __future__ import annotations

from pathlib import Path

import pytest

from vmm.command.channels import Channel, channels, named
from vmm.errors import ConfigError

NAMES = ("a", "b", "c")


def test_machines_are_named_after_their_files_and_numbered() -> None:
    paths = [Path(path) for path in ("x/a.elf", "a.elf", "host.elf", "a-2.elf", "a")]
    names = [name for name, _ in named(paths)]
    assert names == ["a", "a-2", "host-2", "a-2-2", "a-3"]
    assert [path for _, path in named(paths)] == paths


def test_a_name_is_printable_and_leaves_room_for_a_number() -> None:
    paths = [Path("x" * 40), Path("x" * 40), Path("a\x1b[2J\n"), Path("\N{SNOWMAN}" * 20)]
    names = [name for name, _ in named(paths)]
    assert names == ["x" * 27, "x" * 27 + "-2", "a_[2J_", "\N{SNOWMAN}" * 9]


def test_without_a_wish_everybody_is_connected_to_everybody() -> None:
    assert channels(NAMES) == [
        Channel("a", "b", True),
        Channel("a", "c", True),
        Channel("b", "c", True),
    ]
    assert channels(["alone"]) == []


def test_only_the_channels_asked_for_are_there() -> None:
    assert channels(NAMES, ["c:a"], ["a:b", "b:c"]) == [
        Channel("c", "a", True),
        Channel("a", "b", False),
        Channel("b", "c", False),
    ]


def test_a_name_may_have_a_colon_in_it() -> None:
    assert channels(["a", "b:c"], ["a:b:c"]) == [Channel("a", "b:c", True)]
    assert channels(["a:b", "c"], (), ["a:b:c"]) == [Channel("a:b", "c", False)]
    with pytest.raises(ConfigError, match=r"'a:b:c' *: can be read in two ways"):
        channels(["a", "b:c", "a:b", "c"], ["a:b:c"])


@pytest.mark.parametrize(
    ("value", "wrong"),
    [
        ("", "give the names of two machines, as in a:b"),
        ("a", "give the names of two machines, as in a:b"),
        (":", "give the names of two machines, as in a:b"),
        ("a:", "give the names of two machines, as in a:b"),
        (":b", "give the names of two machines, as in a:b"),
        ("a:a", "no machine can be connected to itself"),
        ("a:d", "no machine is called 'd'"),
        ("d:e", "no machine is called 'd'"),
        ("a:b:c", "no machine is called 'b:c'"),
        ("A:b", "no machine is called 'A'"),
        ("a: b", "no machine is called ' b'"),
        ("a:host", "the host is connected to every machine in any case"),
    ],
)
def test_what_names_no_two_machines_is_refused_with_the_option_and_the_names(
    value: str, wrong: str
) -> None:
    for option, connect, one_way in (("--connect", [value], []), ("--one-way", [], [value])):
        with pytest.raises(ConfigError) as caught:
            channels(NAMES, ["a:b", *connect], one_way)
        assert str(caught.value) == f"{option} {value!r}: {wrong}: there are a, b, c"
