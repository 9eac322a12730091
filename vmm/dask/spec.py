"""A sandbox as it travels: the program that it runs, and all that is known and wanted of it."""

from __future__ import annotations

import dataclasses
import hashlib
import inspect
import keyword
from collections.abc import Iterable, Mapping
from typing import Any, TypeVar

from dask.base import tokenize

from vmm.dask import processors
from vmm.dask.shapes import Bounds
from vmm.errors import ArgumentTypeError, ConfigError, HostError
from vmm.sandbox.library import Sandbox
from vmm.sandbox.program import Program, program
from vmm.sandbox.prototype import Prototype

T = TypeVar("T")

_BUILDING = ("header", "cflags", "includes", "libraries", "library_dirs", "cc")
_POOL = ("initializer", "initargs")
_FEW = 8  # features that a message names
_DIGITS = 16


@dataclasses.dataclass(frozen=True)
class Spec:
    """What every process needs that is to run the machines of one sandbox.

    digest      which one it is: by the program's content, and by the options
    name        of its program, for people
    elf         the program, built
    options     what a Pool takes besides
    functions   the library's
    lengths, bounds   what its sources say of arrays, by function and parameter
    told        what a header has told of functions
    needs       what a processor must have, as /proc/cpuinfo calls it
    """

    digest: str
    name: str
    elf: bytes = dataclasses.field(repr=False)
    options: Mapping[str, Any]
    functions: tuple[str, ...]
    lengths: Mapping[str, Mapping[str, str]]
    bounds: Mapping[str, Mapping[str, Bounds]]
    told: Mapping[str, Prototype]
    needs: frozenset[str]

    @property
    def resource(self) -> str:
        """What Dask calls a machine of it, as a resource of workers."""
        return f"pageferry-{self.digest}"

    def check_processor(self) -> None:
        """Raise HostError if this processor lacks what the program was compiled for."""
        missing = sorted(self.needs - processors.present())
        if missing:
            few = ", ".join(missing[:_FEW]) + (" and more" if len(missing) > _FEW else "")
            raise HostError(
                f"{self.name} was compiled for a processor with {few}, which machines here lack",
                "compile it without (-m, -march), or say what it needs at least (needs=)",
            )


def build(
    sources: tuple[Any, ...], needs: Iterable[str] | None, options: dict[str, Any]
) -> tuple[Spec, Program]:
    """Build a program here, and say what is known of it. Needs no KVM.

    Raises as Sandbox does for its arguments, and for what cannot be built.
    """
    known = {*inspect.signature(Sandbox).parameters, *_POOL} - {"sources", "machines"}
    for name in options.keys() - known:
        raise ArgumentTypeError(f"sandbox() got an unexpected keyword argument {name!r}")
    given = {name: options.pop(name) for name in _BUILDING if name in options}
    flags = tuple(given.pop("cflags", ()))
    lists = {name: given.get(name, ()) for name in ("includes", "libraries", "library_dirs")}
    made = program(
        sources, given.get("header", ()), flags, given.get("cc"), options.get("name"), **lists
    )
    try:
        elf = made.path.read_bytes()
        if needs is None:
            wanted = processors.of_program(elf) | processors.of_options(flags)
        elif isinstance(needs, str):
            raise ConfigError("needs is text, not a list: give ['avx2']")
        else:
            wanted = frozenset(needs)
        functions = tuple(made.functions)
        said = hashlib.sha256(elf)
        said.update(tokenize(sorted(options.items()), sorted(wanted)).encode())
        spec = Spec(
            said.hexdigest()[:_DIGITS],
            made.path.stem,
            elf,
            options,
            functions,
            {name: _in_python(_texts(made, name)) for name in functions},
            {name: _in_python(made.bounds(name)) for name in functions},
            {name: made.prototypes[name] for name in made.prototypes.learned},
            wanted,
        )
    except BaseException:
        made.close()
        raise
    return spec, made


def _in_python(told: Mapping[str, T]) -> dict[str, T]:
    """Return what is told of parameters by their names in Python: `in` is `in_`."""
    return {name + "_" * keyword.iskeyword(name): value for name, value in told.items()}


def _texts(made: Program, function: str) -> dict[str, str]:
    return {name: length.text for name, length in made.lengths(function).items()}
