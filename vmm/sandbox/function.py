"""A C function of a sandbox, called as Python's functions are."""

from __future__ import annotations

import asyncio
import dataclasses
import functools
import inspect
import struct
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, NoReturn

from vmm.endpoint import arguments
from vmm.errors import ConfigError
from vmm.sandbox.arguments import place
from vmm.sandbox.caller import Caller, tell
from vmm.sandbox.crew import Place, Ticket
from vmm.sandbox.ctype import Pointer, innermost
from vmm.sandbox.handle import Handle, handles
from vmm.sandbox.lengths import Length
from vmm.sandbox.plain import Plain
from vmm.sandbox.prototype import Prototype
from vmm.sandbox.references import Reference
from vmm.sandbox.request import ALIGNED, Copied, Result, Words
from vmm.sandbox.sysv import Layout
from vmm.sandbox.values import decode, plain
from vmm.sandbox.worker import TEXT_MAX, Worker
from vmm.sizes import shown

_NO_TEXT = object()


class Function:
    """A C function in a machine. Call it as C does: by position, or with its parameters' names.

    Numbers are Python's. A pointer takes whatever has the buffer protocol: memory of the sandbox's
    (`Sandbox.empty`) is shared with the machine for the time of the call, read-only if the
    parameter is `const`; all else is copied there and, unless it is `const`, back. Text and bytes
    make C strings; None is NULL; an int is an address in the machine, as functions return them
    (Handle: of one that is gone, or of another, it is refused). Structures are mappings, or their
    fields in order. A `char *` that is returned is bytes.

    argtypes, restype   as with ctypes, instead of what the debug information says; see Prototype
    lengths   how many items arrays must have at least, by the parameters' names: numbers, or text
              such as "3 * width * height". What the source says (`double v[n][3]`, that is n * 3)
              is there already

    timeout= takes seconds, after which the function is stopped (unless it has a parameter of that
    name: `with_timeout` then).

    Raises TypeError, ValueError (HandleError), OverflowError or BufferError for arguments that do
    not fit, and nothing has been done then; CallError, of one kind or another, if the function does
    not return.

    Thread-safety: may be called from any thread; a call waits for a machine that is free.
    """

    def __init__(
        self,
        caller: Caller,
        prototype: Prototype,
        base: int = 0,
        lengths: Mapping[str, Length] = {},
    ) -> None:
        self._caller = caller
        self._prototype = prototype
        self._base = base
        self._lengths = dict(lengths)
        self._limit: Any = dataclasses.MISSING  # or seconds, or None
        self._argtypes: Sequence[Any] | None = None
        self._restype: Any = dataclasses.MISSING
        self._typed = prototype
        self.__name__ = self.__qualname__ = prototype.name

    @property
    def __doc__(self) -> str:  # type: ignore[override]
        return self._typed.signature()

    @property
    def __signature__(self) -> inspect.Signature:
        return self._typed.inspected()

    def __reduce__(self) -> NoReturn:
        raise TypeError(
            f"{self.__name__} cannot be copied or pickled: make a sandbox in each process"
        )

    def __repr__(self) -> str:
        return f"<sandboxed {self._typed.signature()}>"

    def __setattr__(self, name: str, value: Any) -> None:
        if not name.startswith("_") and not hasattr(type(self), name):  # as ctypes' errcheck
            known = "argtypes, restype and lengths"
            raise AttributeError(f"{self.__name__}.{name} is nothing that can be set: {known} are")
        super().__setattr__(name, value)

    @property
    def address(self) -> int:
        """Where it is in every machine: for a parameter that is a pointer to a function."""
        return self._base + self._prototype.address

    @property
    def argtypes(self) -> Sequence[Any] | None:
        """The arguments' types, if they have been set."""
        return self._argtypes

    @argtypes.setter
    def argtypes(self, types: Sequence[Any] | None) -> None:
        kept = None if types is None else tuple(types)
        self._typed, self._argtypes = self._prototype.typed(kept, self._restype), kept

    @property
    def restype(self) -> Any:
        """The result's type, if it has been set."""
        return None if self._restype is dataclasses.MISSING else self._restype

    @restype.setter
    def restype(self, kind: Any) -> None:
        self._typed, self._restype = self._prototype.typed(self._argtypes, kind), kind

    @property
    def lengths(self) -> Mapping[str, str]:
        """How many items arrays must have at least: it can be set, not changed in place."""
        return MappingProxyType({name: length.text for name, length in self._lengths.items()})

    @lengths.setter
    def lengths(self, lengths: Mapping[str, Any]) -> None:
        if not isinstance(lengths, Mapping):
            raise arguments.wrong_type(f"{self.__name__}.lengths", "a mapping", lengths)
        known, made = self._typed.keywords, {}
        for name, length in lengths.items():
            made[name] = Length(str(length))
            for other in (name, *made[name].names):
                if other not in known:
                    raise ConfigError(f"{self.__name__} has no parameter {other!r}")
        self._lengths = made

    def with_timeout(self, seconds: Any) -> Function:
        """Return the same function with a time-out of its own; None for none."""
        other = Function(self._caller, self._prototype, self._base, self._lengths)
        other._typed, other._argtypes, other._restype = self._typed, self._argtypes, self._restype
        other._limit = arguments.seconds(seconds, "timeout")
        return other

    def __call__(self, /, *args: Any, **kwargs: Any) -> Any:
        plain = self._typed.plain
        if plain is not None and not kwargs and not self._lengths:
            payload = plain.payload(self.address, args)
            if payload is not None:
                return self._run_plain(plain, payload)
        return self._start(args, kwargs)()

    def _run_plain(self, plain: Plain, payload: bytes) -> Any:
        """Make a call whose arguments are numbers, as its payload has them."""
        name, ticket = self._typed.name, Place()
        limit = self._caller.timeout if self._limit is dataclasses.MISSING else self._limit

        def call(worker: Worker, until: float) -> Any:
            return worker.ask(name, payload, until, plain.result)

        return self._caller.run(name, limit, ticket, call, None)

    def submit(self, /, *args: Any, **kwargs: Any) -> Any:
        """Call it in another thread: return a concurrent.futures.Future.

        Arguments are checked now. As ever, a future that has begun cannot be cancelled.
        """
        return self._caller.submit(self._start(args, kwargs))

    async def async_(self, /, *args: Any, **kwargs: Any) -> Any:
        """Call it, and let the event loop go on meanwhile. If the task is cancelled, the function
        is stopped, with its machine, or not begun: what it was given is the caller's again then.
        """
        ticket = Ticket()
        call = self._start(args, kwargs, ticket)
        loop = asyncio.get_running_loop()
        over = loop.create_future()
        future = self._caller.submit(call)
        future.add_done_callback(functools.partial(tell, loop, over))
        cancelled: asyncio.CancelledError | None = None
        try:
            while not over.done():
                try:
                    await asyncio.wait([over])  # which does not cancel it, if this task is
                except asyncio.CancelledError as error:
                    cancelled = cancelled or error
                    if future.cancel():
                        break
                    ticket.cancel()
        finally:
            if not future.done() and not future.cancel():  # the loop has been closed
                ticket.cancel()
        try:
            if cancelled is not None:
                raise cancelled
            return future.result()
        finally:  # or what is raised would be in a circle with this frame, which has the arguments
            del call, future, cancelled

    def _start(
        self, args: Sequence[Any], kwargs: dict[str, Any], ticket: Place | None = None
    ) -> Callable[[], Any]:
        """Check a call's arguments; return what makes it."""
        prototype, caller = self._typed, self._caller
        limit = caller.timeout if self._limit is dataclasses.MISSING else self._limit
        if "timeout" in kwargs and "timeout" not in prototype.keywords:
            limit = arguments.seconds(kwargs.pop("timeout"), "timeout")
        values = prototype.bind(args, kwargs)
        if self._lengths:
            self._check_lengths(values, dict(zip(prototype.keywords, args, strict=False)) | kwargs)
        found = handles((*args, *kwargs.values()))
        for one in found:  # also those for whole numbers
            one.check(prototype.name)
        return functools.partial(self._run, prototype, values, found, limit, ticket or Place())

    def _check_lengths(self, values: Sequence[bytes | Reference], given: Mapping[str, Any]) -> None:
        """Raise ConfigError if an array is too short."""
        keywords = self._typed.keywords
        for name, length in self._lengths.items():
            value = values[keywords.index(name)] if name in keywords else None
            least = length.of({name: plain(value) for name, value in given.items()})
            if not isinstance(value, Reference) or value.terminated or least is None:
                continue
            item = max(innermost(value.type).size, 1)  # of `v[n][3]`, n * 3 numbers
            if value.size < least * item:
                raise ConfigError(
                    f"{self.__name__}: {name} has {value.size} bytes, and the function is to find "
                    f"{length.text} = {shown(least)} items there, of {item} bytes each"
                )

    def _run(
        self,
        prototype: Prototype,
        values: Sequence[bytes | Reference],
        given: Sequence[Handle],
        limit: float | None,
        ticket: Place,
    ) -> Any:
        caller, layout, name = self._caller, prototype.layout, prototype.name
        hidden = bytearray(layout.hidden)
        words, references = _words(layout, self.address, values)
        placed = place(references, caller.window)
        if layout.hidden:
            placed.copied.append(Copied(0, memoryview(hidden), False, max(layout.align, ALIGNED)))
        kind = prototype.result
        is_text = isinstance(kind, Pointer) and kind.is_text
        pointer: Callable[[int], int] = int

        def call(worker: Worker, until: float) -> Any:
            def finish(result: Result) -> Any:
                nonlocal pointer
                pointer = worker.pointer()
                data = layout.unpack(*result, memory=bytes(hidden))
                if is_text:
                    return _text(worker, data)
                return decode(kind, data, pointer)

            return worker.call(name, words, placed.seen, placed.copied, until, finish, given)

        value = self._caller.run(name, limit, ticket, call, placed)
        placed.finish(pointer)
        if value is _NO_TEXT:
            raise ConfigError(
                f"{name} has returned a char * to no text of at most {TEXT_MAX >> 20} MiB: have "
                "it written into an array, or set restype to ctypes.c_void_p for the address"
            )
        return value


def _words(
    layout: Layout, function: int, values: Sequence[bytes | Reference]
) -> tuple[Words, list[tuple[int, Reference]]]:
    """Return a call's words, and which of them are to point to something."""
    general, vectors, on_stack = layout.pack(
        [0 if isinstance(value, Reference) else value for value in values]
    )
    references = []
    for passed, value in zip(layout.arguments, values, strict=True):
        if isinstance(value, Reference):
            if passed.stack is None:
                word = passed.parts[0].number
            else:
                word = layout.general + layout.vectors + passed.stack // 8
            references.append((word, value))
    stack = struct.unpack(f"<{len(on_stack) // 8}Q", on_stack) if on_stack else ()
    return Words(function, general, vectors, stack), references


def _text(worker: Worker, data: bytes) -> Any:
    """Return a C string of the machine's, or _NO_TEXT."""
    address = int.from_bytes(data, "little")
    if not address:
        return None
    text = worker.text(address, TEXT_MAX)
    return _NO_TEXT if text is None else text
