"""The options of `build` that are the compiler's own, under the names that they have there."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, TypeVar

import click

_F = TypeVar("_F", bound=Callable[..., Any])

# Those that go on as they are.
_FLAGS = {"f": "-f{}", "m": "-m{}", "warn": "-W{}", "std": "-std={}", "undefine": "-U{}"}


def compiler_options(function: _F) -> _F:
    """Add them to a command, which gets them as `build_guest` takes them."""
    options = (
        click.option("-O", "optimize", metavar="LEVEL", help="How to optimize: 0, 1, 2, 3, s [2]."),
        click.option(
            "-D", "defines", metavar="NAME[=VALUE]", help="Define a macro.", multiple=True
        ),
        click.option("-U", "undefine", metavar="NAME", help="Undefine a macro.", multiple=True),
        click.option(
            "-I", "includes", metavar="DIR", help="Look for headers there.", multiple=True
        ),
        click.option(
            "-L", "library_dirs", metavar="DIR", help="Look for libraries there.", multiple=True
        ),
        click.option("-l", "libraries", metavar="NAME", help="Link libNAME.a.", multiple=True),
        click.option("-f", "f", metavar="FLAG", help="-fFLAG, as the compiler's.", multiple=True),
        click.option("-m", "m", metavar="FLAG", help="-mFLAG, as the compiler's.", multiple=True),
        click.option(
            "-W", "warn", metavar="FLAG", help="-WFLAG, as the compiler's.", multiple=True
        ),
        click.option("--std", metavar="NAME", help="The C standard [c11].", multiple=True),
    )

    @functools.wraps(function)
    def with_flags(**given: Any) -> Any:
        flags = [form.format(v) for name, form in _FLAGS.items() for v in given.pop(name)]
        return function(flags=flags, **given)

    for option in reversed(options):
        with_flags = option(with_flags)
    return with_flags  # type: ignore[return-value]
