"""A library's global variables, in the memory of its machine."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from vmm.errors import ConfigError
from vmm.sandbox.ctype import CType, Float, Opaque, Pointer, declare, scalars
from vmm.sandbox.inside import Inside, check, read
from vmm.sandbox.names import missing
from vmm.sandbox.prototypes import Prototypes
from vmm.sandbox.values import decode, encode
from vmm.sandbox.worker import TEXT_MAX, Worker


class Globals(Mapping[str, Any]):
    """The global variables of a library, by name, as `in_dll` has them: `lib.globals["count"] = 3`.

    Values are as those of functions: numbers, handles, named tuples, tuples; what is assigned may
    be whatever an argument of that type may. A `char *` is bytes, and is assigned an address.
    Types are from debug information; what `static` hides is not there. Iteration is over those that
    the library defines.

    Raises NoSuchName (KeyError, AttributeError); ConfigError where nothing tells of a type, and
    where it is not said which machine's, as `Sandbox.read`; AccessError for an assignment to what
    is const. Thread-safe, each access for itself.
    """

    def __init__(self, inside: Inside, prototypes: Prototypes, base: int, where: str) -> None:
        self._inside = inside
        self._prototypes = prototypes
        self._base = base
        self._where = where

    def address(self, name: str) -> int:
        """Return where a variable is in every machine: for `lib.read`, or a parameter that points
        to it.
        """
        return self._find(name)[0]

    def __getitem__(self, name: str) -> Any:
        address, kind = self._typed(name)

        def act(worker: Worker) -> Any:
            data = read(worker, address, kind.size, name)
            value = decode(kind, data, worker.pointer(lasting=True))
            if isinstance(kind, Pointer) and kind.is_text and value is not None:
                text = worker.text(value, TEXT_MAX)
                if text is None:
                    raise ConfigError(
                        f"{name} is a char * to no text: its address is in "
                        f"lib.read(lib.globals.address({name!r}), 8)"
                    )
                return text
            return value

        return self._inside.do(name, act)

    def __setitem__(self, name: str, value: Any) -> None:
        address, kind = self._typed(name)
        data = encode(kind, value, name)

        def act(worker: Worker) -> None:
            check(value, name, worker)
            self._inside.put(worker, address, data, name)

        self._inside.do(name, act)

    def __iter__(self) -> Iterator[str]:
        return iter(self._prototypes.variables)

    def __len__(self) -> int:
        return len(self._prototypes.variables)

    def __contains__(self, name: object) -> bool:
        try:
            self._prototypes.variable(name)  # type: ignore[arg-type]
        except (KeyError, TypeError):
            return False
        return True

    def __repr__(self) -> str:
        return f"<global variables of {self._where}: {', '.join(self)}>"

    def _typed(self, name: str) -> tuple[int, CType]:
        address, kind = self._find(name)
        why = "nothing tells of its type: it was compiled without -g"
        if kind is not None:
            parts = [kind] if kind.cells == 1 else (part for _, part in scalars(kind))
            wrong = next((part for part in parts if not _served(part)), None)
            if wrong is None and kind.size:
                return address, kind
            why = f"{declare(wrong or kind)} is not served"
        raise ConfigError(f"{name}: {why}; lib.read(lib.globals.address({name!r}), size) has bytes")

    def _find(self, name: str) -> tuple[int, CType | None]:
        try:
            found = self._prototypes.variable(name)
        except KeyError:
            raise missing(name, "variable", self._where, self) from None
        return self._base + found.address, found.type


def _served(kind: CType) -> bool:
    return not isinstance(kind, Opaque) and not (isinstance(kind, Float) and kind.size > 8)
