"""A library's functions, from its symbol table and its debug information."""

from __future__ import annotations

import contextlib
import dataclasses
import struct
import threading
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple, TypeVar

from vmm.errors import GuestImageError
from vmm.guest import elf
from vmm.guest.elf import Budget, Malformed
from vmm.guest.executable import Executable
from vmm.guest.lines import Line
from vmm.guest.text import decoded
from vmm.sandbox import dwarf
from vmm.sandbox.ctype import CType
from vmm.sandbox.debug_types import Types, take_name
from vmm.sandbox.dwarf import Entries, Entry, Unit
from vmm.sandbox.prototype import Prototype

_SYMBOL = struct.Struct("<IBBHQQ")  # name, info, other, section, value, size
_RELOCATION = struct.Struct("<QQq")  # offset, info, addend
_OBJECT, _FUNCTION, _LOCAL = 1, 2, 0  # STT_OBJECT, STT_FUNC, STB_LOCAL
_WIDTHS = {1: 8, 10: 4}  # of R_X86_64_64 and R_X86_64_32
_MOST_SYMBOLS = 200_000
_MOST_NAME = 200
_MOST_RELOCATIONS = 1_000_000
_STEPS_EACH = 100_000  # of one function's types
_RELOCATED = (".debug_info", ".debug_str_offsets", ".debug_addr")
_RELA = {name: f".rela{name}" for name in _RELOCATED}
_OUTER = frozenset(("subprogram", "namespace"))

T = TypeVar("T")

WANTED = (*dwarf.WANTED, *_RELA.values())


class Variable(NamedTuple):
    """A global variable: its address as linked, and its type; None if nothing tells of that."""

    name: str
    address: int
    type: CType | None


class Prototypes(Mapping[str, Prototype]):
    """The global functions of an ELF file, by name. What debug information does not tell of, or
    not in time, is an `unknown` one.

    Types are read when a function is asked for, and kept. What that takes is bounded, in time and
    memory, whatever is in the file: seconds for the first, less for the others.

    learned    those that a header has told of

    Thread-safety: any thread, any number at a time.
    """

    def __init__(self, sections: Mapping[str, bytes]) -> None:
        """sections    those WANTED, and the symbol table, as `elf.sections` returns them"""
        self._addresses = dict(_symbols(sections, _FUNCTION))
        self._variables = dict(_symbols(sections, _OBJECT))
        self._sections: Mapping[str, bytes] = sections
        self._described: _Described | None = None
        self._made: dict[str, Prototype] = {}
        self._lock: Any = threading.RLock()
        self.learned: set[str] = set()

    def __getitem__(self, name: str) -> Prototype:
        found = self._made.get(name)
        if found is None:
            address = self._addresses[name]
            found = self._read(name, address) or Prototype(name, address, unknown=True)
            self._made[name] = found
        return found

    def __iter__(self) -> Iterator[str]:
        return iter(self._addresses)

    def __len__(self) -> int:
        return len(self._addresses)

    def __contains__(self, name: object) -> bool:
        return name in self._addresses

    @property
    def defined(self) -> list[str]:
        """Those that debug information has more of than a declaration."""
        described = self._reading(lambda found: found)
        return [name for name, at in self._addresses.items() if described.defines(name, at)]

    def learn(self, told: Mapping[str, Prototype]) -> None:
        """Take from a header what is not known."""
        for name in told.keys() & self._addresses.keys():
            if self[name].unknown:
                self._made[name] = dataclasses.replace(told[name], address=self._addresses[name])
                self.learned.add(name)

    @property
    def variables(self) -> list[str]:
        """The names of the global variables that debug information tells of, and has."""
        return self._reading(lambda found: found.defined_variables)

    def variable(self, name: str) -> Variable:
        """Return a global variable. Raises KeyError."""
        address = self._variables[name]
        return Variable(name, address, self._reading(lambda found: found.variable(name)))

    def _read(self, name: str, address: int) -> Prototype | None:
        return self._reading(lambda found: found.prototype(name, address))

    def _reading(self, act: Callable[[_Described], T]) -> T:
        """Return what `act` makes of what debug information tells."""
        try:
            with self._lock:
                return act(self._read_all())
        finally:  # a debugger may raise as the block ends, which leaves the lock held then
            while self._lock._is_owned():
                self._lock.release()

    def _read_all(self) -> _Described:
        if self._described is None:
            self._described = _Described(self._sections, self._addresses, self._variables)
            self._sections = {}
        return self._described


def read(source: elf.Source, name: str) -> Prototypes:
    """Return the functions of a program, or of an object file. Raises GuestImageError, OSError.

    name    the file's, for errors
    """
    try:
        Executable.open(source, name, "")
        return Prototypes(elf.sections(source, WANTED))
    except Malformed as error:
        raise GuestImageError(f"{name}: the file is malformed") from error


def variables(sections: Mapping[str, bytes], prefix: str) -> dict[str, Prototype]:
    """Return the functions that an object's variables of this prefix point to; no addresses."""
    return _Described(sections, {}, prefix=prefix).pointed_to()


def _symbols(sections: Mapping[str, bytes], kind: int) -> Iterator[tuple[str, int]]:
    table, names = (sections.get(name, b"") for name in (".symtab", ".strtab"))
    whole = len(table) - len(table) % _SYMBOL.size
    count = 0
    for at, info, _, section, address, _ in _SYMBOL.iter_unpack(table[:whole]):
        if info & 0xF != kind or info >> 4 == _LOCAL or not section:
            continue
        end = names.find(b"\0", at, at + 4 * _MOST_NAME)
        if end > at:
            yield decoded(names[at:end], _MOST_NAME), address
            count += 1
            if count >= _MOST_SYMBOLS:
                return


class _Described:
    """What debug information tells of functions and variables: where their entries are.

    variables    those that are wanted
    prefix       of others that are: they are known without it
    """

    def __init__(
        self,
        sections: Mapping[str, bytes],
        wanted: Mapping[str, int],
        variables: Mapping[str, int] = {},
        prefix: str = "",
    ) -> None:
        self._entries = Entries(_relocated(sections), Budget(dwarf.MOST_STEPS))
        self._types = Types(self._entries)
        self._wanted, self._prefix = wanted, prefix
        self._wanted_variables = variables
        self._defined: dict[str, int] = {}
        self._declared: dict[str, int] = {}
        self._at: dict[int, int] = {}  # addresses of functions that other names may be for
        self._variables: dict[str, int] = {}
        self._declared_variables: dict[str, int] = {}
        # An object's addresses are within sections, and so several functions'.
        linked = not sections.get(_RELA[".debug_info"])
        self._addresses = frozenset(wanted.values() if linked else ())
        with contextlib.suppress(Malformed, LookupError, struct.error):  # what was read is kept
            for unit in self._entries.units():
                with contextlib.suppress(LookupError, struct.error):
                    self._note(unit)

    def prototype(self, name: str, address: int) -> Prototype | None:
        """Return a function's, None if nothing is told of it."""
        offset = self._defined.get(name) or self._at.get(address) or self._declared.get(name)
        if offset is None:
            return None
        with contextlib.suppress(Malformed, LookupError, struct.error, RecursionError):
            self._entries.renew(_STEPS_EACH)
            entry = self._specified(self._entries.at(offset))
            return Prototype(name, address, *self._types.function(entry), _place(entry))
        return None

    def defines(self, name: str, address: int) -> bool:
        """Whether a function is there, and not only declared: by its name, or another."""
        return name in self._defined or (address in self._at and name not in self._declared)

    @property
    def defined_variables(self) -> list[str]:
        """Those wanted of which there is more than a declaration."""
        return list(self._variables)

    def variable(self, name: str) -> CType | None:
        """Return a variable's type, None if nothing is told of it."""
        offset = self._variables.get(name) or self._declared_variables.get(name)
        if offset is None:
            return None
        with contextlib.suppress(Malformed, LookupError, struct.error, RecursionError):
            self._entries.renew(_STEPS_EACH)
            return self._types.variable(self._specified(self._entries.at(offset)))
        return None

    def pointed_to(self) -> dict[str, Prototype]:
        """Return the functions that variables point to, by the variables' names."""
        found = {}
        for name, offset in self._variables.items():
            with contextlib.suppress(Malformed, LookupError, struct.error):
                self._entries.renew(_STEPS_EACH)
                entry = self._types.pointed_to(self._entries.at(offset))
                if entry is not None:
                    found[name] = Prototype(name, 0, *self._types.function(entry))
        return found

    def _note(self, unit: Unit) -> None:
        """Note the functions and variables of a unit."""
        rows = [self._entries.top(unit)]
        tags = _OUTER | {"variable"} if self._prefix or self._wanted_variables else _OUTER
        while rows:
            for entry in self._entries.children(rows.pop(), tags):
                if entry.tag == "namespace":
                    rows.append(entry)
                elif entry.tag == "variable":
                    self._note_variable(entry)
                else:
                    self._note_function(entry)

    def _note_variable(self, entry: Entry) -> None:
        whole = self._specified(entry)
        name = take_name(whole)
        if self._prefix:
            if name.startswith(self._prefix):
                self._variables[name.removeprefix(self._prefix)] = entry.offset
        elif name in self._wanted_variables and whole.attributes.get("external"):
            declared = entry.attributes.get("declaration")
            (self._declared_variables if declared else self._variables)[name] = entry.offset

    def _note_function(self, entry: Entry) -> None:
        said = entry.attributes
        if said.get("low_pc") in self._addresses:
            origin = said.get("abstract_origin")
            self._at.setdefault(said["low_pc"], origin if isinstance(origin, int) else entry.offset)
        whole = self._specified(entry)
        name = take_name(whole)
        if name in self._wanted and whole.attributes.get("external"):
            if said.get("declaration"):
                self._declared.setdefault(name, entry.offset)
            elif self._wanted[name] == said.get("low_pc"):  # not one that the linker dropped
                self._defined[name] = entry.offset
            else:
                self._defined.setdefault(name, entry.offset)

    def _specified(self, entry: Entry) -> Entry:
        """Return a definition with what its declaration elsewhere says of it, in C++."""
        offset = entry.attributes.get("specification")
        if not isinstance(offset, int):
            return entry
        declared = self._entries.at(offset).attributes
        return entry._replace(attributes={**declared, **entry.attributes})


def _place(entry: Entry) -> Line | None:
    """Return where a function is, if that is the file that its unit is of."""
    file, line = (entry.attributes.get(name) for name in ("decl_file", "decl_line"))
    if not isinstance(line, int) or not entry.unit.name or file not in _own_file(entry.unit):
        return None
    return Line(entry.unit.name.rpartition("/")[2], line)


def _own_file(unit: Unit) -> tuple[int, ...]:
    return (1,) if unit.version < 5 else (0, 1)


def _relocated(sections: Mapping[str, bytes]) -> Mapping[str, bytes]:
    """Return debug sections as a linker leaves them; an object's are not yet so."""
    made = dict(sections)
    symbols = sections.get(".symtab", b"")
    for name in _RELOCATED:
        table = sections.get(_RELA[name], b"")[: _MOST_RELOCATIONS * _RELOCATION.size]
        if not table or name not in made:
            continue
        data = bytearray(made[name])
        for offset, info, addend in _RELOCATION.iter_unpack(
            table[: len(table) - len(table) % _RELOCATION.size]
        ):
            width, at = _WIDTHS.get(info & 0xFFFF_FFFF, 0), (info >> 32) * _SYMBOL.size
            if width and at + _SYMBOL.size <= len(symbols) and offset + width <= len(data):
                value = (_SYMBOL.unpack_from(symbols, at)[4] + addend) % (1 << 8 * width)
                data[offset : offset + width] = value.to_bytes(width, "little")
        made[name] = bytes(data)
    return made
