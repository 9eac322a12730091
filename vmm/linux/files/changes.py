"""What was, before a call that is under way: so that it is done, or undone, whatever is raised."""

from __future__ import annotations

import errno
import operator
from collections import deque
from collections.abc import Callable
from itertools import starmap
from types import TracebackType
from typing import Any, TypeVar

from vmm.linux.errors import SysError
from vmm.linux.files.since import Since

_Key = TypeVar("_Key")
_Value = TypeVar("_Value")


class Changes:
    """The undo log of one program's files and descriptors.

    Every change of theirs is made here. Nobody but the caller of a system call commits it:

        with changes:
            answer = files.rename(...)
            changes.set(process, "answer", answer)

    What is raised inside, whatever it is, undoes all of it, the answer included; what is raised
    while that ends leaves either all of it or nothing, and the answer tells which. An `undo` that
    is cut off is done by the next one, or when the next call begins.

    log    what there is to be undone, the last one last
    since  what notes what was before the first change of anything, whole calls long; or None

    Not thread-safe: one system call at a time.
    """

    __slots__ = ("log", "since")

    def __init__(self) -> None:
        self.log: list[tuple[Callable[..., object], *tuple[Any, ...]]] = []
        self.since: Since | None = None

    def set(self, thing: object, name: str, value: object) -> None:
        """Assign an attribute."""
        if self.since is not None:
            self.since.attribute(thing, name)
        self.log.append((setattr, thing, name, getattr(thing, name)))
        setattr(thing, name, value)

    def put(self, table: dict[_Key, _Value], key: _Key, value: _Value) -> None:
        """Set an item of a dictionary."""
        if self.since is not None:
            self.since.table(table)
        if key in table:
            self.log.append((dict.__setitem__, table, key, table[key]))
        else:
            self.log.append((dict.pop, table, key, None))
        table[key] = value

    def drop(self, table: dict[_Key, _Value], key: _Key) -> None:
        """Take an item out of a dictionary. Undone, it is the last one."""
        if self.since is not None:
            self.since.table(table)
        self.log.append((dict.__setitem__, table, key, table[key]))
        del table[key]

    def push(self, items: list[_Value], item: _Value) -> None:
        """Append to a list that is changed in no other way."""
        if self.since is not None:
            self.since.items(items)
        self.log.append((operator.delitem, items, slice(len(items), None)))
        items.append(item)

    def call(self, action: Callable[..., object], *arguments: object) -> None:
        """Let something be called if this is undone. Twice must be as good as once."""
        self.log.append((action, *arguments))

    def commit(self) -> None:
        """Keep all that was done."""
        self.log = []

    def undo(self) -> None:
        """Put everything back to what it was at the last commit."""
        # Each entry is absolute, so to do them twice is to do them once; and but for what `call`
        # was given no Python code runs between two of them, so no signal's handler raises there.
        deque(starmap(operator.call, reversed(self.log)), maxlen=0)
        self.log = []

    def __enter__(self) -> Changes:
        self.undo()  # what another call was cut off in
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if kind is None:
            self.commit()
        else:
            self.undo()


class Space:
    """How much memory a program's files may take.

    limit   in bytes, of contents and of what it takes to know of them
    used    of these
    """

    __slots__ = ("limit", "used")

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.used = 0

    @property
    def free(self) -> int:
        """Bytes that are left."""
        return max(self.limit - self.used, 0)

    def take(self, changes: Changes, size: int) -> None:
        """Account for `size` bytes more, or less. Raises ENOSPC."""
        if size > 0 and self.used + size > self.limit:
            raise SysError(errno.ENOSPC)
        if size:
            changes.set(self, "used", self.used + size)
