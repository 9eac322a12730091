"""The control structure: the block of memory that one machine shares with the monitor.

What the guest writes is read once and checked; what the monitor writes it keeps on its own side
too, and never reads back. Source: guests/include/pageferry.h.
"""

from __future__ import annotations

import ctypes
import dataclasses
import enum
import struct
from typing import NamedTuple

from vmm.ferry.message import Answer
from vmm.ferry.rules import Refusal
from vmm.guest import abi
from vmm.guest.abi import Status

_U16 = struct.Struct("<H")
_U32 = struct.Struct("<I")
_I32 = struct.Struct("<i")
_U64 = struct.Struct("<Q")
_WAIT = struct.Struct("<Q32xIII")  # wait_timeout_us; wait_for, wait_peer, notices_seen
# A descriptor's fields before its extents: operation and flags; status and sender, which count for
# nothing; receiver, tag, length, message; both counts; reserved.
_LETTER = struct.Struct("<IqIQQQIIQQ")
_SEND = int(abi.Operation.SEND)  # with no flags
_STAMP = struct.Struct("<iI")  # a descriptor's status and sender
_NEWS = struct.Struct("<IIIII")  # notices, notice_count, and one count for each kind
_FLAGS = struct.Struct("<II")  # a peer's flags and room
# From `magic` to `name`, and `id` to `name` of a peer: one call for all of it, where ctypes takes
# one for each field. The tests hold both against the ABI's own structures.
_START = struct.Struct(f"<QHHIIIIIQQQQ{abi.NAME_MAX}s")
_PEER_ENTRY = struct.Struct(f"<IIII{abi.NAME_MAX}s")
_MASK = 0xFFFFFFFF
_ENTRY = ctypes.sizeof(abi.Descriptor)
_TX_ENTRIES, _RX_ENTRIES = abi.TX_ENTRIES, abi.RX_ENTRIES
_PAYLOAD_MAX = abi.PAYLOAD_MAX
_PEER = ctypes.sizeof(abi.Peer)


def _offset(structure: type[ctypes.Structure], field: str) -> int:
    return int(getattr(structure, field).offset)


_TX = _offset(abi.Control, "tx")
_RX = _offset(abi.Control, "rx")
_PEERS = _offset(abi.Control, "peers")
_STATUS = _offset(abi.Descriptor, "status")  # and sender
_MESSAGE = _offset(abi.Descriptor, "message")
_EXTENTS = _offset(abi.Descriptor, "extents")
_PAYLOAD = _offset(abi.Descriptor, "payload")
_EXTENT = ctypes.sizeof(abi.Extent)
_ROOM = _offset(abi.Peer, "room")
_PEER_FLAGS = _offset(abi.Peer, "flags")  # and room
_PEER_COUNT = _offset(abi.Control, "peer_count")
_TX_HEAD = _offset(abi.Control, "tx_head")
_TX_TAIL = _offset(abi.Control, "tx_tail")
_RX_HEAD = _offset(abi.Control, "rx_head")
_RX_TAIL = _offset(abi.Control, "rx_tail")
_WAIT_TIMEOUT = _offset(abi.Control, "wait_timeout_us")
_NOTICES = _offset(abi.Control, "notices")
_BELL_STATUS = _offset(abi.Control, "bell_status")

CONTROL_BYTES = ctypes.sizeof(abi.Control)


@dataclasses.dataclass(frozen=True, slots=True)
class Identity:
    """What a machine is told about itself when it starts; see struct pf_control."""

    machine: int
    name: str
    privilege: int
    doorbell: abi.Doorbell
    window_gpa: int
    window_pages: int
    stack_gpa: int
    stack_bytes: int


class Notice(enum.Enum):
    """What a notice is about; the value is the field that counts it."""

    PEER = "peer_notices"  # a peer was added, or has stopped
    RECLAIM = "reclaim_notices"  # a peer has taken back what was borrowed
    HOST = "host_notices"  # the host has set bits


class Wait(NamedTuple):
    """What a guest waits for: microseconds at most, or FOREVER; WaitFor bits; the peer whose queue
    is to have room; the notice_count it knows.
    """

    timeout_us: int
    flags: int
    peer: int
    seen: int


class ControlStructure:
    """The monitor's hand on one machine's control structure.

    memory    CONTROL_BYTES writable bytes. Release it with `release()` before unmapping.

    Thread-safety: one thread at a time; the guest may be running.
    """

    def __init__(self, memory: memoryview, identity: Identity) -> None:
        self._memory = memory
        self._tx_tail = 0
        self._rx_head = 0
        self._bits = 0
        self._noticed = dict.fromkeys(Notice, 0)
        self._news = (0, 0, *self._noticed.values())  # as they are in the structure
        self._peers = 0
        _START.pack_into(
            memory,
            0,
            abi.MAGIC,
            abi.ABI_MINOR,
            abi.ABI_MAJOR,
            CONTROL_BYTES,
            identity.machine,
            0,
            identity.privilege,
            identity.doorbell,
            identity.window_gpa,
            identity.window_pages,
            identity.stack_gpa,
            identity.stack_bytes,
            identity.name.encode(),
        )

    def release(self) -> None:
        """Let go of the memory."""
        self._memory.release()

    @property
    def places(self) -> tuple[int, int]:
        """How far both rings have come: tx_tail and rx_head."""
        return self._tx_tail, self._rx_head

    @places.setter
    def places(self, places: tuple[int, int]) -> None:
        self._tx_tail, self._rx_head = places
        _U32.pack_into(self._memory, _TX_TAIL, self._tx_tail)
        _U32.pack_into(self._memory, _RX_HEAD, self._rx_head)

    def _u32(self, offset: int) -> int:
        return int(_U32.unpack_from(self._memory, offset)[0])

    def _u64(self, offset: int) -> int:
        return int(_U64.unpack_from(self._memory, offset)[0])

    # ---- Transmit ring ----

    def transmit_indices(self) -> range:
        """Return the indices that the guest has put since the last answer.

        Raises Refusal(E_RING).
        """
        (head,) = _U32.unpack_from(self._memory, _TX_HEAD)
        count = (head - self._tx_tail) & _MASK
        if count > _TX_ENTRIES:
            raise Refusal(Status.E_RING)
        return range(self._tx_tail, self._tx_tail + count)

    def copy_descriptor(self, index: int) -> abi.Descriptor:
        """Copy one transmit descriptor out of shared memory, once.

        Only the copy is ever looked at.
        """
        return abi.Descriptor.from_buffer_copy(self._memory, _TX + index % _TX_ENTRIES * _ENTRY)

    def descriptor(self, index: int) -> bytes:
        """Return a transmit descriptor's bytes, to be put back and not to be looked at."""
        entry = _TX + index % _TX_ENTRIES * _ENTRY
        return bytes(self._memory[entry : entry + _ENTRY])

    def put_descriptor(self, index: int, descriptor: bytes) -> None:
        """Write a transmit descriptor as it was before it was answered."""
        entry = _TX + index % _TX_ENTRIES * _ENTRY
        self._memory[entry : entry + _ENTRY] = descriptor

    def operation(self, index: int) -> int:
        """Return what a transmit descriptor asks for, unchecked; it is read again when served."""
        entry = _TX + index % _TX_ENTRIES * _ENTRY
        return int(_U16.unpack_from(self._memory, entry)[0])

    def copy_letter(self, index: int) -> tuple[int, int, bytes] | None:
        """Copy a transmit descriptor that does no more than send a payload: receiver, tag, payload.

        None for any other; what has been read of it is forgotten then. Each byte is read once.
        """
        entry = _TX + index % _TX_ENTRIES * _ENTRY
        kind, _, receiver, tag, length, _, counts, r0, r1, r2 = _LETTER.unpack_from(
            self._memory, entry
        )
        size = counts >> 16
        if kind != _SEND or length or counts & 0xFFFF or size > _PAYLOAD_MAX or r0 or r1 or r2:
            return None
        entry += _PAYLOAD
        return receiver, tag, bytes(self._memory[entry : entry + size])

    def stamp(self, index: int, sender: int, number: int, status: int = 0) -> None:
        """Answer a descriptor with a status, and nothing but the message's number."""
        entry, memory = _TX + index % _TX_ENTRIES * _ENTRY, self._memory
        _STAMP.pack_into(memory, entry + _STATUS, status, sender)
        _U64.pack_into(memory, entry + _MESSAGE, number)
        self._tx_tail = tail = (index + 1) & _MASK
        _U32.pack_into(memory, _TX_TAIL, tail)

    def answer(self, index: int, sender: int, answer: Answer) -> None:
        """Write the monitor's answer to a transmit descriptor, and move tx_tail past it."""
        status, number, spans, payload, _ = answer
        if spans or payload:
            entry, memory = _TX + index % _TX_ENTRIES * _ENTRY, self._memory
            for place, span in enumerate(spans):
                _U64.pack_into(memory, entry + _EXTENTS + place * _EXTENT, span.gpa)
            entry += _PAYLOAD
            memory[entry : entry + len(payload)] = payload
        self.stamp(index, sender, number, status)

    # ---- Receive ring ----

    def pending(self) -> int:
        """Return how many delivered messages the guest has not taken. Raises Refusal(E_RING)."""
        count: int = (self._rx_head - _U32.unpack_from(self._memory, _RX_TAIL)[0]) & _MASK
        if count > _RX_ENTRIES:
            raise Refusal(Status.E_RING)
        return count

    def deliver(self, descriptor: bytes) -> None:
        """Put a message, a whole struct pf_descriptor, into the receive ring, which has room, and
        move rx_head past it.
        """
        head = self._rx_head
        entry = _RX + head % _RX_ENTRIES * _ENTRY
        self._memory[entry : entry + _ENTRY] = descriptor
        self._rx_head = head = (head + 1) & _MASK
        _U32.pack_into(self._memory, _RX_HEAD, head)

    # ---- Peers ----

    def put_peer(self, index: int, peer: int, name: str, flags: int, room: int) -> None:
        """Write one entry of the peer table; `index` is at most the number of entries there are.

        `flags` are PeerFlags.
        """
        entry = _PEERS + index * _PEER
        _PEER_ENTRY.pack_into(self._memory, entry, peer, flags, room, 0, name.encode())
        if index == self._peers:
            self._peers += 1
            _U32.pack_into(self._memory, _PEER_COUNT, self._peers)

    def put_flags(self, index: int, flags: int, room: int) -> None:
        """Write the abi.PeerFlags of an entry that is there, and the free places in its queue."""
        _FLAGS.pack_into(self._memory, _PEERS + index * _PEER + _PEER_FLAGS, flags, room)

    def put_room(self, index: int, room: int) -> None:
        """Write the free places in a peer's queue into its entry, and nothing else."""
        _U32.pack_into(self._memory, _PEERS + index * _PEER + _ROOM, room)

    # ---- Doorbell ----

    @property
    def wait(self) -> Wait:
        """What the guest's wait is for, unchecked."""
        return tuple.__new__(Wait, _WAIT.unpack_from(self._memory, _WAIT_TIMEOUT))

    @property
    def log(self) -> tuple[int, int]:
        """Where the guest's text is: address and length, unchecked."""
        return self._u64(_offset(abi.Control, "log_gpa")), self._u32(
            _offset(abi.Control, "log_length")
        )

    @property
    def exit_code(self) -> int:
        """The guest's exit code, any 32-bit signed value."""
        return int(_I32.unpack_from(self._memory, _offset(abi.Control, "exit_code"))[0])

    @property
    def progress(self) -> tuple[int, int]:
        """What the guest says of its progress: done and total, in units of its own."""
        done = self._u64(_offset(abi.Control, "progress_done"))
        return done, self._u64(_offset(abi.Control, "progress_total"))

    def bell_status(self, status: Status) -> None:
        """Answer a doorbell as a whole."""
        _I32.pack_into(self._memory, _BELL_STATUS, status)

    # ---- Notices ----

    def notice(self, kind: Notice, bits: int = 0) -> None:
        """Count a notice, and set bits whose meaning is between the host and the guest."""
        self._bits |= bits & _MASK
        self._noticed[kind] += 1
        counts = [count & _MASK for count in self._noticed.values()]
        self._news = (self._bits, self.notice_count, *counts)
        _U32.pack_into(self._memory, _offset(abi.Control, "notices"), self._bits)
        _U32.pack_into(self._memory, _offset(abi.Control, kind.value), self._noticed[kind] & _MASK)
        _U32.pack_into(self._memory, _offset(abi.Control, "notice_count"), self.notice_count)

    def write_again(self) -> None:
        """Write all notices, and how many peers there are: what is there may be older."""
        _U32.pack_into(self._memory, _PEER_COUNT, self._peers)
        _NEWS.pack_into(self._memory, _NOTICES, *self._news)

    @property
    def notice_count(self) -> int:
        """Notices of all kinds so far, modulo 2^32."""
        return sum(self._noticed.values()) & _MASK
