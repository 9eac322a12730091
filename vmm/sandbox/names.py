"""Names that a library does not have."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class NoSuchName(AttributeError, KeyError):
    """A library has nothing of that name. As ctypes has it an AttributeError; also a KeyError."""

    def __str__(self) -> str:
        return str(self.args[0])


def missing(name: str, what: str, where: str, known: Iterable[str]) -> NoSuchName:
    """Return the error for a name, which says what else may be meant.

    what     that there is none of: "function"
    where    in which library
    """
    near = difflib.get_close_matches(name, list(known), 3)
    hint = f"; did you mean {' or '.join(map(repr, near))}?" if near else ""
    return NoSuchName(f"there is no global {what} {name!r} in {where}{hint}")
