"""What the trace is told of requests and messages, with what they took."""

from __future__ import annotations

import time
from collections.abc import Iterable
from typing import Any

from vmm.ferry.events import Trace
from vmm.ferry.message import Answer, Message, Request, Span
from vmm.ferry.peer import Peer
from vmm.ferry.roster import Roster


class Telling:
    """Tells a trace, if anybody listens: which its callers ask. Not thread-safe.

    start   nanoseconds on time.perf_counter_ns()'s clock, when what is to be told was begun
    """

    def __init__(self, trace: Trace, roster: Roster) -> None:
        self.trace = trace
        self._roster = roster
        self.start = 0

    def begin(self) -> None:
        """Something is begun."""
        self.start = time.perf_counter_ns()

    def answer(self, peer: Peer, request: Request | None, answer: Answer) -> None:
        """Tell of a request and how it was answered, done or not."""
        if request is None:
            self.trace.emit("refuse", machine=peer.name, status=answer.status.name)
            return
        receiver = self._roster.name(request.receiver)
        self._emit(
            request.operation.name.lower(),
            message=answer.number,
            op=request.operation.name.lower(),
            sender=peer.name,
            receiver=receiver if request.has_receiver else None,
            tag=request.tag,
            bytes=request.length or len(request.payload),
            extents=answer.spans or request.spans,
            status=answer.status.name,
            brought=answer.brought,
        )

    def delivery(self, kind: str, message: Message) -> None:
        self._emit(
            kind,
            message=message.number,
            op=message.operation.name.lower(),
            sender=self._roster.name(message.sender),
            receiver=self._roster.name(message.receiver),
            tag=message.tag,
            bytes=message.length or len(message.payload),
            extents=message.spans,
            status=message.status.name,
            brought=message.brought,
        )

    def _emit(self, kind: str, *, extents: Iterable[Span], **fields: Any) -> None:
        took_us = (time.perf_counter_ns() - self.start) / 1000
        runs = [{"gpa": span.gpa, "pages": span.pages} for span in extents]
        self.trace.emit(kind, **fields, extents=runs, took_us=took_us)
