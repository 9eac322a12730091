#!/usr/bin/env python3
"""Print the lowest versions that pyproject.toml allows, a line each, as pip takes them.

    scripts/minima.py [EXTRA…]      of the dependencies, and of those of the extras

The standard library alone is needed. What has no lower bound ends it with a line.
"""

from __future__ import annotations

import re
import sys
import tomllib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

PROJECT = Path(__file__).resolve().parent.parent / "pyproject.toml"
_NEED = re.compile(r"([\w.-]+)(?:\[([\w,. -]+)\])?\s*(.*)")
_LEAST = re.compile(r">=\s*(\d+(?:\.\d+)*)")


def minima(project: dict[str, Any], extras: Iterable[str] = ()) -> dict[str, str]:
    """Return the lowest version of each dependency, by its name. Raises ValueError for none."""
    found = {}
    for name, bounds in needs(project, extras):
        least = _LEAST.search(bounds)
        if least is None:
            raise ValueError(f"{name}: has no lower bound: give it one (>=) in pyproject.toml")
        found[name] = least[1]
    return found


def needs(project: dict[str, Any], extras: Iterable[str] = ()) -> Iterator[tuple[str, str]]:
    """Give what is needed and its bounds; extras may name others of the project's own."""
    optional = project["optional-dependencies"]
    wanted = [project["dependencies"], *(optional[extra] for extra in extras)]
    for need in (need for group in wanted for need in group):
        match = _NEED.fullmatch(need)
        if match is None:
            raise ValueError(f"{need}: is no dependency that this knows")
        name, inner, bounds = match.groups()
        if name == project["name"]:
            yield from needs({**project, "dependencies": []}, re.split(r"\s*,\s*", inner))
        else:
            yield name, bounds


def main() -> None:
    """Print them."""
    project = tomllib.loads(PROJECT.read_text())["project"]
    try:
        for name, version in minima(project, sys.argv[1:]).items():
            print(f"{name}=={version}")
    except (ValueError, KeyError) as error:
        sys.exit(f"minima: {error}")


if __name__ == "__main__":
    main()
