"""Both ends of the ways that two Python processes have to send each other bytes.

Each way is used as well as we know: the pipe of whichever kind is quicker at that size, the socket
and the shared memory with buffers that are there before and are used again. Every message is
received whole, in memory that the receiver may keep using until the next one.
"""

from __future__ import annotations

import abc
import contextlib
import ctypes
import fcntl
import os
import signal
import socket
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from multiprocessing.shared_memory import SharedMemory
from multiprocessing.synchronize import Semaphore
from typing import NamedTuple

PAGE = 4096
_PR_SET_PDEATHSIG = 1
_PIPE_BYTES = 1 << 20  # what an unprivileged user may ask for
_LARGE_FOR_A_PIPE = 1 << 20
_KEPT_BY_MALLOC = 31 << 20  # a little less than glibc's limit
_LARGE_FOR_A_SOCKET = 8 << 20
_SOCKET_BYTES = 1 << 20
_PATIENCE = 1.0  # seconds between looks whether the other process still lives

Data = bytes | bytearray  # whose slices with a stride are quick


class Task(NamedTuple):
    """What both processes do next.

    batch    messages that go in one direction before any comes back; 0: all `rounds` go there, and
             one comes back
    touched  whether a receiver reads a byte of every page
    segment  the name of the shared memory, if that is the way
    """

    size: int
    rounds: int
    batch: int
    touched: bool = False
    segment: str = ""

    @property
    def slots(self) -> int:
        """How many messages can be on the way at once."""
        return self.batch or self.rounds


class End(abc.ABC):
    """One side of a channel. One thread uses it.

    peer  the other side's process, where it has to be looked after
    """

    peer: BaseProcess | None = None

    @abc.abstractmethod
    def prepare(self, task: Task) -> None:
        """Allocate what the task needs. The former task's has been released."""

    @abc.abstractmethod
    def send(self, data: Data, slot: int) -> None:
        """Send a message of the task's size. Its `slot` is its place in the batch."""

    @abc.abstractmethod
    def receive(self, slot: int) -> Data:
        """Wait for the next message and return it. Raises EOFError if the peer has gone."""

    @abc.abstractmethod
    def release(self) -> None:
        """Release what the last task needed. Further calls do nothing."""

    @abc.abstractmethod
    def close(self) -> None:
        """Close everything. The other side notices."""


class PipeEnd(End):
    """multiprocessing.Pipe: two that lead one way each for small messages, else one that leads both
    ways, which is a pair of sockets, and quicker then.

    `recv_bytes` is quicker than `recv_bytes_into`, which calls it and copies. It allocates: the
    allocator is put into the state in which it keeps memory of up to that size for the next time,
    as it is in a process that has freed as much before. Else each message would cost page faults.
    """

    def __init__(self, reader: Connection, writer: Connection, both: Connection) -> None:
        self._ends = (reader, writer, both)
        with contextlib.suppress(OSError):
            fcntl.fcntl(writer.fileno(), fcntl.F_SETPIPE_SZ, _PIPE_BYTES)

    def prepare(self, task: Task) -> None:
        bytes(_KEPT_BY_MALLOC)  # mallopt(3), M_MMAP_THRESHOLD: it is dynamic
        reader, writer, both = self._ends
        large = task.size >= _LARGE_FOR_A_PIPE
        self._receive = (both if large else reader).recv_bytes
        self._send = (both if large else writer).send_bytes

    def send(self, data: Data, slot: int) -> None:
        self._send(data)

    def receive(self, slot: int) -> Data:
        return self._receive()

    def release(self) -> None:
        pass  # each message is new

    def close(self) -> None:
        for end in self._ends:
            end.close()


class SocketEnd(End):
    """A Unix stream socket. Both sides know a message's size: it is not sent with each."""

    def __init__(self, end: socket.socket) -> None:
        self._socket = end
        self._ordinary = end.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF) // 2
        self._buffers: list[bytearray] = []

    def prepare(self, task: Task) -> None:
        wanted = _SOCKET_BYTES if task.size >= _LARGE_FOR_A_SOCKET else self._ordinary
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, wanted)
        self._buffers = [bytearray(task.size) for _ in range(task.slots)]

    def send(self, data: Data, slot: int) -> None:
        self._socket.sendall(data)

    def receive(self, slot: int) -> Data:
        buffer = self._buffers[slot]
        got = self._socket.recv_into(buffer, 0, socket.MSG_WAITALL)
        if got != len(buffer):
            self._rest(memoryview(buffer)[got:], got)
        return buffer

    def _rest(self, rest: memoryview, got: int) -> None:
        while got and rest:
            got = self._socket.recv_into(rest, 0, socket.MSG_WAITALL)
            rest = rest[got:]
        if not got:
            raise EOFError

    def release(self) -> None:
        self._buffers = []

    def close(self) -> None:
        self._socket.close()


class SharedMemoryEnd(End):
    """multiprocessing.shared_memory: copied in here, announced by a semaphore, copied out there.

    The two directions take turns, and share the segment. A semaphore is a little quicker than a
    byte in a pipe.
    """

    def __init__(self, announce: Semaphore, announced: Semaphore) -> None:
        self._semaphores: tuple[Semaphore, Semaphore] | None = (announce, announced)
        self._segment: SharedMemory | None = None
        self._places: list[memoryview] = []
        self._buffers: list[bytearray] = []
        self._views: list[memoryview] = []

    def prepare(self, task: Task) -> None:
        assert self._semaphores is not None
        self._announce = self._semaphores[0].release
        self._announced = self._semaphores[1].acquire
        self._segment = SharedMemory(task.segment)
        memory = self._segment.buf
        assert memory is not None
        places = range(0, task.slots * task.size, task.size)
        self._places = [memory[at : at + task.size] for at in places]
        self._buffers = [bytearray(task.size) for _ in places]
        self._views = [memoryview(buffer) for buffer in self._buffers]

    def send(self, data: Data, slot: int) -> None:
        self._places[slot][:] = data
        self._announce()

    def receive(self, slot: int) -> Data:
        while not self._announced(True, _PATIENCE):
            if self.peer is not None and not self.peer.is_alive():
                raise EOFError
        self._views[slot][:] = self._places[slot]
        return self._buffers[slot]

    def release(self) -> None:
        for view in (*self._places, *self._views):
            view.release()
        self._places, self._views, self._buffers = [], [], []
        if self._segment is not None:
            self._segment.close()
        self._segment = None

    def close(self) -> None:
        self.release()
        self._semaphores = None  # the last reference: their names go with them


def touch(data: Data) -> None:
    """Read a byte of every page."""
    data[::PAGE]


def answer(end: End, task: Task) -> None:
    """Do the child's half of a task: send everything back, or say at the end that all is here."""
    if not task.batch:
        for slot in range(task.rounds):
            data = end.receive(slot)
        end.send(data, 0)
        return
    slots = range(task.batch)
    for _ in range(task.rounds):
        batch = [end.receive(slot) for slot in slots]
        if task.touched:
            for data in batch:
                touch(data)
        for slot in slots:
            end.send(batch[slot], slot)
        del batch


def serve(end: End, control: Connection, parent: int) -> None:
    """Be the child: answer tasks until the parent has gone, however it went."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        return
    with contextlib.suppress(EOFError, OSError, MemoryError):  # the parent notices
        while True:
            task = control.recv()
            end.prepare(task)
            control.send(None)
            answer(end, task)
            end.release()
            control.send(None)
