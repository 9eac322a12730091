"""What a command line says of machines: what they are called, and who may send to whom. Pure."""

from __future__ import annotations

import itertools
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from vmm.errors import ConfigError
from vmm.guest.abi import NAME_MAX

_HOST = "host"
_LONGEST_NAME = NAME_MAX - len("-999") - 1


class Channel(NamedTuple):
    """`a` may send to `b`; and `b` to `a`, if it leads both ways."""

    a: str
    b: str
    both: bool


def named(guests: Iterable[Path]) -> Iterator[tuple[str, Path]]:
    """Name each guest after its file, numbering those that would be called the same."""
    used = {_HOST}
    for path in guests:
        stem = _printable(path.stem)
        names = (stem if number == 1 else f"{stem}-{number}" for number in itertools.count(1))
        name = next(name for name in names if name not in used)
        used.add(name)
        yield name, path


def _printable(stem: str) -> str:
    """Return what a machine may be called: printable, and with room for a number."""
    text = "".join(c if c.isprintable() else "_" for c in stem)
    return text.encode()[:_LONGEST_NAME].decode(errors="ignore") or "guest"


def channels(
    names: Collection[str], connect: Iterable[str] = (), one_way: Iterable[str] = ()
) -> list[Channel]:
    """Return the channels between machines of these names: all of them, if none is asked for.

    connect, one_way   values of the options `--connect` and `--one-way`: "a:b"

    Raises ConfigError, with the option, what is wrong with its value, and the names there are.
    """
    asked = [Channel(*_pair("--connect", value, names), True) for value in connect]
    asked += [Channel(*_pair("--one-way", value, names), False) for value in one_way]
    return asked or [Channel(a, b, True) for a, b in itertools.combinations(names, 2)]


def _pair(option: str, value: str, names: Collection[str]) -> tuple[str, str]:
    """Return the two machines that a value names, which may have colons in their names."""
    colons = (index for index, character in enumerate(value) if character == ":")
    pairs = [(value[:colon], value[colon + 1 :]) for colon in colons]
    known = [pair for pair in pairs if set(pair) <= set(names)]
    wrong = None
    if len(known) > 1:
        wrong = "can be read in two ways"
    elif known and known[0][0] == known[0][1]:
        wrong = "no machine can be connected to itself"
    elif not known:
        wrong = _unknown(pairs, names)
    if wrong is not None:
        raise ConfigError(f"{option} {value!r}: {wrong}: there are {', '.join(names)}")
    return known[0]


def _unknown(pairs: list[tuple[str, str]], names: Collection[str]) -> str:
    """Say what is wrong with a value, given every way to read it, none of which names machines."""
    if not pairs or "" in pairs[0]:
        return "give the names of two machines, as in a:b"
    missing = next(name for name in pairs[0] if name not in names)
    if missing == _HOST:
        return "the host is connected to every machine in any case"
    return f"no machine is called {missing!r}"
