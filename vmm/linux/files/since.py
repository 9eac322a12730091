"""What was, at one moment, of whatever has been changed since: to be put back, many calls later.

Pure.
"""

from __future__ import annotations

from typing import Any

# What is put back by others, or is the host's.
_OTHERS = frozenset({"Memory", "Gate", "Beneath", "Since", "ProgramWindow"})


class Since:
    """What the things of one program were at one moment, as far as they have been changed since.

    What was not there at that moment is not noted, so that all of it together is no larger than
    what was. Not thread-safe.

    changed    whether anything has been
    """

    __slots__ = ("_attributes", "_known", "_lists", "_tables")

    def __init__(self, *roots: object) -> None:
        """Know all that `roots` lead to."""
        self._known: dict[int, object] = {}  # kept, so that no other object gets these numbers
        self._attributes: dict[tuple[int, str], tuple[object, object]] = {}
        self._tables: dict[int, tuple[dict[Any, Any], dict[Any, Any]]] = {}
        self._lists: dict[int, tuple[list[Any], int]] = {}
        left = list(roots)
        while left:
            thing = left.pop()
            if id(thing) not in self._known and (below := _below(thing)) is not None:
                self._known[id(thing)] = thing
                left += below

    @property
    def changed(self) -> bool:
        return bool(self._attributes or self._tables or self._lists)

    def attribute(self, thing: object, name: str) -> None:
        """An attribute is about to be assigned."""
        key = id(thing), name
        if key not in self._attributes and id(thing) in self._known:
            self._attributes[key] = thing, getattr(thing, name)

    def table(self, table: dict[Any, Any]) -> None:
        """A dictionary is about to be changed."""
        if id(table) not in self._tables and id(table) in self._known:
            self._tables[id(table)] = table, table.copy()

    def items(self, items: list[Any]) -> None:
        """A list is about to be appended to, and never changed in another way."""
        if id(items) not in self._lists and id(items) in self._known:
            self._lists[id(items)] = items, len(items)

    def put_back(self) -> None:
        """Let everything be what it was. Again is fine, and must be if it was cut off. Who looks
        meanwhile sees a part of it, and no table empty that was not.
        """
        for (_, name), (thing, before) in self._attributes.items():
            setattr(thing, name, before)
        for table, items_before in self._tables.values():
            for key in table.keys() - items_before.keys():
                table.pop(key, None)
            table.update(items_before)
        for items, length in self._lists.values():
            del items[length:]
        # All of it has been done; to do some of it again would do no harm.
        self._attributes, self._tables, self._lists = {}, {}, {}


def _below(thing: object) -> list[object] | None:
    """Return what a thing of a program's leads to; None for what is no such thing."""
    if isinstance(thing, dict):
        return [*thing.values()]
    if isinstance(thing, list | tuple):
        return [*thing]
    kind = type(thing)
    if not kind.__module__.startswith("vmm.linux.") or kind.__name__ in _OTHERS:
        return None
    slots = [name for base in kind.__mro__ for name in getattr(base, "__slots__", ())]
    found = [getattr(thing, name) for name in slots if hasattr(thing, name)]
    return [*found, *getattr(thing, "__dict__", {}).values()]
