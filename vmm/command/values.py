"""The kinds of values that options have, each with an error that says what is accepted."""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import Any, TypeAlias

import click

from vmm.errors import ConfigError
from vmm.guest.abi import PAGE_SIZE
from vmm.sizes import parse_limit, parse_size

Parameter: TypeAlias = click.Parameter | None
Context: TypeAlias = click.Context | None


class Size(click.ParamType):  # type: ignore[type-arg]  # generic in newer versions only
    """A size as people write them, in bytes: "64K" is 65536; 0 only for a `limit`.

    unit   what it is rounded up to
    pages  whether it must be a page at least
    """

    name = "size"

    def __init__(self, *, limit: bool = False, unit: int = 1, pages: bool = False) -> None:
        self._parse = parse_limit if limit else parse_size
        self._unit, self._pages = unit, pages

    def convert(self, value: Any, param: Parameter, ctx: Context) -> int:
        try:
            size = self._parse(value)
        except ConfigError as error:
            self.fail(str(error), param, ctx)
        if self._pages and size < PAGE_SIZE:
            self.fail(
                f"size {value!r} is less than a page: give {PAGE_SIZE} or more, or a unit, as 8K",
                param,
                ctx,
            )
        return -(-size // self._unit) * self._unit


class Seconds(click.FloatRange):
    """A time that is not for ever."""

    name = "number of seconds"

    def __init__(self) -> None:
        super().__init__(min=0, min_open=True)

    def convert(self, value: Any, param: Parameter, ctx: Context) -> float:
        seconds = float(super().convert(value, param, ctx))
        if not math.isfinite(seconds):
            self.fail(f"{value} is not a number of seconds", param, ctx)
        return seconds


class Count(click.IntRange):
    """A number from 1 on."""

    def __init__(self, most: int) -> None:
        super().__init__(1, most)
        self.name = f"whole number from 1 to {most}"


class FilePath(click.Path):
    """A path, which cannot be empty."""

    def __init__(
        self, *, exists: bool = False, file_okay: bool = True, dir_okay: bool = True
    ) -> None:
        super().__init__(exists, file_okay, dir_okay, readable=exists, path_type=Path)

    def convert(self, value: Any, param: Parameter, ctx: Context) -> Path:
        if not os.fsdecode(value):
            self.fail("'' names no file", param, ctx)
        path = super().convert(value, param, ctx)
        assert isinstance(path, Path)
        return path


class OutputPath(FilePath):
    """The path of a file to write, which does not say that it is a directory."""

    def convert(self, value: Any, param: Parameter, ctx: Context) -> Path:
        text = os.fsdecode(value)
        if text.endswith(("/", "/.", "/..")):
            self.fail(f"{text!r} is a directory: name a file to write", param, ctx)
        return super().convert(value, param, ctx)
