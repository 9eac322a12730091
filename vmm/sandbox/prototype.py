"""A C function as Python sees it: its parameters, and a call's arguments bound to them."""

from __future__ import annotations

import dataclasses
import functools
import inspect
import keyword
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from vmm.errors import ArgumentTypeError, ConfigError
from vmm.guest.lines import Line
from vmm.sandbox.ctype import INT, CType, Float, FunctionPointer, Pointer, Struct, Void, declare
from vmm.sandbox.foreign import as_ctype
from vmm.sandbox.plain import Plain
from vmm.sandbox.references import Reference, refer
from vmm.sandbox.sysv import Layout
from vmm.sandbox.values import encode

_DOUBLE = Float("double", 8)


@dataclasses.dataclass(frozen=True, slots=True)
class Parameter:
    """A parameter; its name is empty where C's declaration has none."""

    name: str
    type: CType


@dataclasses.dataclass(frozen=True)
class Prototype:
    """A function: its address as linked, and its types.

    variadic   more arguments may follow, whose types are not known. Each call's are to be given by
               `typed`, as are those of an empty pair of parentheses
    place      the source line that declares it, where that is known
    unknown    nothing tells of its types: `typed` must

    Thread-safety: a value.
    """

    name: str
    address: int
    parameters: tuple[Parameter, ...] = ()
    result: CType = dataclasses.field(default_factory=Void)
    variadic: bool = False
    place: Line | None = None
    unknown: bool = False

    @functools.cached_property
    def keywords(self) -> tuple[str, ...]:
        """The parameters' names in Python: `in` is `in_`, and what has no name is `arg1`."""
        names: list[str] = []
        for number, parameter in enumerate(self.parameters, 1):
            name = parameter.name + "_" * keyword.iskeyword(parameter.name)
            if not name.isidentifier() or name in names:
                name = f"arg{number}"
            while name in names:
                name += "_"
            names.append(name)
        return tuple(names)

    @functools.cached_property
    def layout(self) -> Layout:
        """Where arguments and result are. Raises ConfigError if it cannot be called."""
        if self.unknown:
            raise ConfigError(
                f"{self.name}: its types are not known, as it was compiled without -g: "
                "set argtypes and restype, or give the sandbox the header that has them"
            )
        if self.variadic:
            raise ConfigError(f"{self.name} takes arguments of any number: set argtypes first")
        types = (parameter.type for parameter in self.parameters)
        return Layout.of(zip(self.keywords, types, strict=True), self.result, self.name)

    @functools.cached_property
    def plain(self) -> Plain | None:
        """What makes its calls if these are plain: numbers only."""
        try:
            layout = self.layout
        except ConfigError:  # `bind` says so
            return None
        return Plain.of([parameter.type for parameter in self.parameters], self.result, layout)

    def typed(
        self, argtypes: Sequence[Any] | None, restype: Any = dataclasses.MISSING
    ) -> Prototype:
        """Return it with other types, of ctypes' or C types, as `argtypes` and `restype` have them.

        argtypes   all arguments'; None leaves them as they are. Parameters keep their names
        restype    None for `void`; without it the result stays, and is `int` if it is not known

        Raises ArgumentTypeError, ConfigError.
        """
        parameters, variadic, result = self.parameters, self.variadic, self.result
        if argtypes is not None:
            if isinstance(argtypes, str | bytes) or not isinstance(argtypes, Iterable):
                raise ArgumentTypeError(f"{self.name}.argtypes must be a list of types")
            types = [
                as_ctype(kind, f"{self.name}.argtypes[{index}]")
                for index, kind in enumerate(argtypes)
            ]
            if self.variadic and len(types) < len(parameters):
                raise ConfigError(f"{self.name} takes {len(parameters)} arguments, and more")
            if self.variadic:  # C makes a float that is passed for "..." a double
                fixed = len(parameters)
                types[fixed:] = [
                    _DOUBLE if kind == Float("float", 4) else kind for kind in types[fixed:]
                ]
            types[: len(parameters)] = [
                _as_declared(kind, parameter.type)
                for kind, parameter in zip(types, parameters, strict=False)
            ]
            names = [parameter.name for parameter in parameters]
            names += [""] * (len(types) - len(names))
            parameters = tuple(map(Parameter, names, types))
            variadic = False
        if restype is not dataclasses.MISSING:
            result = _as_declared(as_ctype(restype, f"{self.name}.restype"), self.result)
        elif self.unknown:
            result = INT  # as C has it without a declaration, and ctypes
        return dataclasses.replace(
            self,
            parameters=parameters,
            result=result,
            variadic=variadic,
            unknown=self.unknown and argtypes is None,
        )

    def bind(
        self, args: Sequence[Any], kwargs: Mapping[str, Any] = {}
    ) -> tuple[bytes | Reference, ...]:
        """Return what is passed for each parameter: its bytes, or what it is to point to.

        Arguments are given by position, or by the names that `keywords` has. Raises what `values`
        and `references` do, naming the function and the parameter; and TypeError as Python does for
        what is missing, twice there, or too much.
        """
        self.layout  # noqa: B018 (it says why it cannot be called, before arguments are looked at)
        plan = self._plan
        given = args if len(args) == len(plan) and not kwargs else self._ordered(args, kwargs)
        return tuple(
            [
                refer(index, kind, value, what)
                if isinstance(kind, Pointer | FunctionPointer)
                else encode(kind, value, what)
                for (index, kind, what), value in zip(plan, given, strict=True)
            ]
        )

    @functools.cached_property
    def _plan(self) -> tuple[tuple[int, CType, str], ...]:
        """Each parameter: its number, its type, and what errors call it."""
        return tuple(
            (index, parameter.type, f"{self.name}: {name}")
            for index, (parameter, name) in enumerate(
                zip(self.parameters, self.keywords, strict=True)
            )
        )

    def _ordered(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> list[Any]:
        """Return the arguments by position. Raises ArgumentTypeError in Python's own words."""
        names, said = self.keywords, f"{self.name}()"
        if len(args) > len(names):
            takes = f"{len(names)} positional argument{'s' * (len(names) != 1)}"
            were = f"{len(args)} {'was' if len(args) == 1 else 'were'} given"
            raise ArgumentTypeError(f"{said} takes {takes} but {were}")
        found = dict(zip(names, args, strict=False))
        for name, value in kwargs.items():
            if name not in names:
                raise ArgumentTypeError(f"{said} got an unexpected keyword argument {name!r}")
            if name in found:
                raise ArgumentTypeError(f"{said} got multiple values for argument {name!r}")
            found[name] = value
        missing = [repr(name) for name in names if name not in found]
        if missing:
            last = "".join(missing[-1:])
            if len(missing) > 1:
                last = f"{', '.join(missing[:-1])}{',' * (len(missing) > 2)} and {last}"
            what = f"{len(missing)} required positional argument{'s' * (len(missing) > 1)}"
            raise ArgumentTypeError(f"{said} missing {what}: {last}")
        return [found[name] for name in names]

    def signature(self) -> str:
        """Return its declaration in C, on one line."""
        if self.unknown:
            return f"{self.name}(?)"
        taken = [declare(parameter.type, parameter.name) for parameter in self.parameters]
        taken += ["..."] * self.variadic
        return declare(self.result, f"{self.name}({', '.join(taken) or 'void'})")

    def inspected(self) -> inspect.Signature:
        """Its parameters as `inspect` has them; annotations are C's types."""
        kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
        pairs = zip(self.keywords, self.parameters, strict=True)
        taken = [
            inspect.Parameter(name, kind, annotation=declare(parameter.type))
            for name, parameter in pairs
        ]
        if self.variadic or self.unknown:
            taken.append(inspect.Parameter("args", inspect.Parameter.VAR_POSITIONAL))
        return inspect.Signature(taken, return_annotation=declare(self.result))


def _as_declared(kind: CType, declared: CType) -> CType:
    """Return a type with what ctypes has no word for, if it is a structure like the declared one:
    where it is passed hangs on that.
    """
    if (
        not isinstance(kind, Struct)
        or not isinstance(declared, Struct)
        or kind.size != declared.size
    ):
        return kind
    return dataclasses.replace(
        kind,
        align=max(kind.align, declared.align),
        loose=declared.loose,
        atomic=declared.atomic,
    )
