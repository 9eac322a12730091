"""`pageferry new`: a directory to begin with."""

from __future__ import annotations

import keyword
import os
import shutil
import string
import sys
from pathlib import Path

import click

_TEMPLATES = Path(__file__).resolve().parent / "project"
_TAKEN = {*sys.stdlib_module_names, *keyword.kwlist, "numpy", "vmm"}


class _Directory(click.ParamType):  # type: ignore[type-arg]  # generic in newer versions only
    """A path whose last part can name a module of Python's."""

    name = "name"

    def convert(
        self, value: object, param: click.Parameter | None, ctx: click.Context | None
    ) -> Path:
        directory = Path(str(value))
        title = directory.name
        if not (title.isidentifier() and title.isascii()):
            self.fail(
                f"{title or value!r} cannot name a Python module: give letters, digits and _, "
                "and no digit first",
                param,
                ctx,
            )
        if title in _TAKEN:
            self.fail(f"{title!r} is a name that Python has a use for: give another", param, ctx)
        return directory


@click.command()
@click.argument("name", type=_Directory())
def new(name: Path) -> None:
    """Make the directory NAME, with C functions, Python that calls them, a test and a README.

    NAME may be a path. Its last part names the files, so it must be a name of Python's.
    """
    for path in make_project(name):
        click.echo(os.fsencode(path))


def make_project(directory: Path) -> list[Path]:
    """Make the directory, which must not be there; return its files. Raises OSError."""
    directory.mkdir()
    try:
        return [_write(template, directory) for template in sorted(_TEMPLATES.glob("*.in"))]
    except BaseException:
        shutil.rmtree(directory, ignore_errors=True)
        raise


def _write(template: Path, directory: Path) -> Path:
    """Write a file of the directory's name."""
    name = directory.name
    path = directory / template.name.removesuffix(".in").replace("NAME", name)
    path.write_text(string.Template(template.read_text()).substitute(NAME=name))
    return path
