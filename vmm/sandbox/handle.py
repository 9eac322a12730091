"""Addresses in a machine, as functions return them: numbers that know which machine they are of."""

from __future__ import annotations

import weakref
from collections.abc import Iterable
from typing import Any, SupportsIndex

from vmm.engine.machine import Machine, State
from vmm.errors import HandleError


class Handle(int):
    """An address in one machine, which is checked wherever it is used: when the machine is gone, or
    is another one, HandleError is raised before anything is done.

    It is an `int` in everything else. With a number added to it, or taken from it, it is a handle
    still; what other arithmetic, `pickle` and `c_void_p` make of it is a plain number, which nobody
    checks.
    """

    _of: weakref.ref[Machine] | None = None  # None: what it was the address of has been put back
    _name = ""

    @classmethod
    def of(cls, address: int, machine: Machine | None, name: str) -> Handle:
        """Return an address in a machine; None for a machine that has been put back since."""
        made = cls(address)
        made._name = name
        if machine is not None:
            made._of = weakref.ref(machine)
        return made

    @property
    def machine(self) -> str:
        """The machine's name."""
        return self._name

    @property
    def stale(self) -> bool:
        """Whether nothing is there any more."""
        machine = None if self._of is None else self._of()
        return machine is None or machine.closed or machine.state is State.STOPPED

    def check(self, what: str, machine: Machine | None = None) -> None:
        """Raise HandleError if its machine is gone; or, if one is given, is not that one."""
        if self._of is None:
            raise HandleError(
                f"{what}: {self:#x} was an address in {self._name} for one call only, as the "
                "sandbox is fresh"
            )
        if self.stale:
            raise HandleError(
                f"{what}: {self:#x} was an address in {self._name}, which is gone: make it again"
            )
        if machine is not None and self._of() is not machine:
            raise HandleError(
                f"{what}: {self:#x} is an address in {self._name}, and this would be "
                f"{machine.name}: make and use it within one function that is submitted to a Pool"
            )

    def __add__(self, other: SupportsIndex) -> Any:
        return self._moved(int.__add__(self, other))  # type: ignore[operator]

    __radd__ = __add__

    def __sub__(self, other: SupportsIndex) -> Any:
        found = int.__sub__(self, other)  # type: ignore[operator]
        return found if isinstance(other, Handle) else self._moved(found)

    def _moved(self, address: Any) -> Any:
        if type(address) is not int:  # NotImplemented
            return address
        made = type(self)(address)
        made._of, made._name = self._of, self._name
        return made

    def __copy__(self) -> Handle:
        return self

    def __deepcopy__(self, memo: object) -> Handle:
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        return int, (int(self),)


def handles(values: Iterable[Any]) -> list[Handle]:
    """Return those among arguments."""
    return [value for value in values if type(value) is Handle]
