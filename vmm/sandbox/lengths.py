"""How many items an array argument must have at least: as C declares it, or as a user says. Pure.

`void blur(uint8_t pixels[height][width * 3], int width, int height)` says it; the debug information
does not, so it is read in the source.
"""

from __future__ import annotations

import ast
import itertools
import operator
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from vmm.errors import ConfigError

_TEXT_MAX = 4 << 20  # characters of a source
_LIST_MAX = 1 << 12  # of a list of parameters
_MOST = 256  # places where a function's name is looked at
_QUIET = re.compile(
    r"""/\*.*?\*/ | //[^\n]* | "(?:\\.|[^"\\\n])*" | '(?:\\.|[^'\\\n])*'
    | ^[ \t]*\#(?:\\\n|[^\n])*""",
    re.DOTALL | re.VERBOSE | re.MULTILINE,
)
_ARRAY = re.compile(r"\w[\s*]+(\w+)\s*((?:\[[^\[\]]*\]\s*)+)$")
_BOUND = re.compile(r"\[([^\[\]]*)\]")
_QUALIFIERS = re.compile(r"\b(?:static|const|restrict|volatile|__restrict)\b")
_OPERATORS: dict[type[ast.operator], Callable[[int, int], int]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.FloorDiv: operator.floordiv,
    ast.Div: operator.floordiv,  # as C divides
}


class Length:
    """A number of items, in terms of a function's other arguments: `3 * width * height`."""

    def __init__(self, text: str) -> None:
        """Raises ConfigError if it is none."""
        self.text = text
        try:
            self._tree = ast.parse(text.strip(), mode="eval").body
            self.names = frozenset(_names(self._tree))
        except (SyntaxError, ValueError, RecursionError, MemoryError):
            raise ConfigError(
                f"{text!r} is no length: give numbers and parameters with + - * /"
            ) from None

    def of(self, values: Mapping[str, Any]) -> int | None:
        """Return the number, with what the parameters are; None if one of them is no number."""
        try:
            return _value(self._tree, values)
        except (LookupError, ZeroDivisionError):
            return None

    def __repr__(self) -> str:
        return f"Length({self.text!r})"


def _names(node: ast.expr) -> Iterator[str]:
    if isinstance(node, ast.BinOp) and type(node.op) in _OPERATORS:
        yield from _names(node.left)
        yield from _names(node.right)
    elif isinstance(node, ast.Name):
        yield node.id
    elif not (isinstance(node, ast.Constant) and type(node.value) is int):
        raise ValueError(node)


def _value(node: ast.expr, values: Mapping[str, Any]) -> int:
    if isinstance(node, ast.BinOp):
        left, right = _value(node.left, values), _value(node.right, values)
        number = _OPERATORS[type(node.op)](left, right)
    elif isinstance(node, ast.Name):
        try:
            number = operator.index(values[node.id])
        except TypeError:
            raise LookupError(node.id) from None
    else:
        assert isinstance(node, ast.Constant)
        number = int(node.value)  # type: ignore[arg-type]
    return number


def declared(text: str, function: str) -> dict[str, Length]:
    """Return the lengths of a function's parameters that a C source declares as arrays."""
    return {
        name: Length(" * ".join(f"({bound})" for bound in found))
        for name, found in bounds(text, function).items()
    }


def bounds(text: str, function: str) -> dict[str, tuple[str, ...]]:
    """Return what a C source has between the brackets of a function's parameters.

    What it declares by other names than numbers and the function's parameters (macros, `sizeof`) is
    left out: that is not checked, then.
    """
    quiet = _QUIET.sub(" ", text[:_TEXT_MAX])
    places = re.finditer(rf"\b{re.escape(function)}\s*\(", quiet)
    for found in itertools.islice(places, _MOST):
        parameters = _within(quiet, found.end())
        if parameters is None:
            continue
        arrays = dict(_arrays(parameters))
        plain = (_BOUND.sub("", part) for part in parameters)
        names = {name for part in plain for name in re.findall(r"\w+", part)[-1:]}
        known = {name: found for name, (found, used) in arrays.items() if used <= names}
        if known:
            return known
    return {}


def _arrays(parameters: list[str]) -> Iterator[tuple[str, tuple[tuple[str, ...], frozenset[str]]]]:
    """Yield each array: its name, its bounds, and the names in these."""
    for parameter in parameters:
        found = _ARRAY.search(parameter.strip())
        if found is None:
            continue
        inner = tuple(_QUALIFIERS.sub("", bound).strip() for bound in _BOUND.findall(found[2]))
        if not all(inner):  # `values[]` says nothing
            continue
        try:
            yield found[1], (inner, frozenset().union(*(Length(one).names for one in inner)))
        except ConfigError:
            continue


def _within(text: str, start: int) -> list[str] | None:
    """Return what commas part, up to the parenthesis that closes."""
    depth, parts, at = 0, list[str](), start
    for index in range(start, min(len(text), start + _LIST_MAX)):
        sign = text[index]
        if sign in "([{":
            depth += 1
        elif sign == ")" and not depth:
            return [*parts, text[at:index]]
        elif sign in ")]}":
            depth -= 1
        elif sign == "," and not depth:
            parts.append(text[at:index])
            at = index + 1
        elif sign == ";":
            return None
    return None
