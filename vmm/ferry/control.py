"""The control structure: the block of memory that one machine shares with the monitor.

What the guest writes is read once and checked; what the monitor writes it keeps on its own side
too, and never reads back. Source: guests/include/pageferry.h.
"""

from __future__ import annotations

import dataclasses
import enum
from array import array
from collections.abc import Sequence
from typing import NamedTuple

from vmm.ferry.layout import (
    BELL_STATUS,
    CONTROL_BYTES,
    DESCRIPTOR,
    EXIT_CODE,
    EXTENT,
    EXTENTS,
    FLAGS,
    I32,
    LOG_GPA,
    LOG_LENGTH,
    MASK,
    MESSAGE,
    NEWS,
    NOTICE_COUNT,
    NOTICES,
    PAYLOAD,
    PEER,
    PEER_COUNT,
    PEER_ENTRY,
    PEER_FLAGS,
    PEERS,
    PROGRESS_DONE,
    PROGRESS_TOTAL,
    ROOM,
    RX,
    RX_HEAD,
    RX_TAIL,
    SENDER,
    STAMP,
    START,
    STATUS,
    TX,
    TX_HEAD,
    TX_TAIL,
    U32,
    U64,
    WAIT,
    WAIT_TIMEOUT,
    offset_of,
)
from vmm.ferry.message import Answer, Message, lay_out
from vmm.ferry.rules import Refusal
from vmm.guest import abi
from vmm.guest.abi import Status

_WORDS, _LONGS = DESCRIPTOR // 4, DESCRIPTOR // 8  # from one to the same of the next
_TX_ENTRIES, _RX_ENTRIES = abi.TX_ENTRIES, abi.RX_ENTRIES


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
        self.memory = memory
        self.tx_tail = 0
        self.rx_head = 0
        self._bits = 0
        self._noticed = dict.fromkeys(Notice, 0)
        self._news = (0, 0, *self._noticed.values())  # as they are in the structure
        self._peers = 0
        START.pack_into(
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
        self.memory.release()

    @property
    def places(self) -> tuple[int, int]:
        """How far both rings have come: tx_tail and rx_head."""
        return self.tx_tail, self.rx_head

    @places.setter
    def places(self, places: tuple[int, int]) -> None:
        self.tx_tail, self.rx_head = places
        U32.pack_into(self.memory, TX_TAIL, self.tx_tail)
        U32.pack_into(self.memory, RX_HEAD, self.rx_head)

    def _u32(self, offset: int) -> int:
        return int(U32.unpack_from(self.memory, offset)[0])

    def _u64(self, offset: int) -> int:
        return int(U64.unpack_from(self.memory, offset)[0])

    # ---- Transmit ring ----

    def transmit_indices(self) -> range:
        """Return the indices that the guest has put since the last answer.

        Raises Refusal(E_RING).
        """
        (head,) = U32.unpack_from(self.memory, TX_HEAD)
        count = (head - self.tx_tail) & MASK
        if count > _TX_ENTRIES:
            raise Refusal(Status.E_RING)
        return range(self.tx_tail, self.tx_tail + count)

    def copy_descriptors(self, indices: range) -> bytes:
        """Copy transmit descriptors out of shared memory, each once.

        Only the copy is ever looked at.
        """
        copy, memory = b"", self.memory
        for start, end, _ in _pieces(TX, _TX_ENTRIES, indices.start, len(indices)):
            copy += memory[start:end]
        return copy

    def descriptor(self, index: int) -> bytes:
        """Return a transmit descriptor's bytes, to be put back and not to be looked at."""
        entry = TX + index % _TX_ENTRIES * DESCRIPTOR
        return bytes(self.memory[entry : entry + DESCRIPTOR])

    def put_descriptor(self, index: int, descriptor: bytes) -> None:
        """Write a transmit descriptor as it was before it was answered."""
        entry = TX + index % _TX_ENTRIES * DESCRIPTOR
        self.memory[entry : entry + DESCRIPTOR] = descriptor

    def stamp(self, index: int, sender: int, number: int, status: int = 0) -> None:
        """Answer a descriptor with a status, and nothing but the message's number."""
        entry, memory = TX + index % _TX_ENTRIES * DESCRIPTOR, self.memory
        STAMP.pack_into(memory, entry + STATUS, status, sender)
        U64.pack_into(memory, entry + MESSAGE, number)
        self.tx_tail = tail = (index + 1) & MASK
        U32.pack_into(memory, TX_TAIL, tail)

    def answer(self, index: int, sender: int, answer: Answer) -> None:
        """Write the monitor's answer to a transmit descriptor, and move tx_tail past it."""
        status, number, spans, payload, _ = answer
        if spans or payload:
            entry, memory = TX + index % _TX_ENTRIES * DESCRIPTOR, self.memory
            for place, span in enumerate(spans):
                U64.pack_into(memory, entry + EXTENTS + place * EXTENT, span.gpa)
            entry += PAYLOAD
            memory[entry : entry + len(payload)] = payload
        self.stamp(index, sender, number, status)

    def stamp_all(
        self, index: int, sender: int, statuses: Sequence[int], numbers: Sequence[int]
    ) -> None:
        """Stamp descriptors from this one on, each with a status and a number."""
        memory, count = self.memory, len(statuses)
        with memory.cast("i") as words, memory.cast("I") as unsigned, memory.cast("Q") as longs:
            for start, end, part in _pieces(TX, _TX_ENTRIES, index, count):
                some = numbers[part]
                words[(start + STATUS) // 4 : end // 4 : _WORDS] = array("i", statuses[part])
                unsigned[(start + SENDER) // 4 : end // 4 : _WORDS] = array(
                    "I", [sender] * len(some)
                )
                longs[(start + MESSAGE) // 8 : end // 8 : _LONGS] = array("Q", some)
        self.tx_tail = tail = (index + count) & MASK
        U32.pack_into(memory, TX_TAIL, tail)

    # ---- Receive ring ----

    def pending(self) -> int:
        """Return how many delivered messages the guest has not taken. Raises Refusal(E_RING)."""
        count: int = (self.rx_head - U32.unpack_from(self.memory, RX_TAIL)[0]) & MASK
        if count > _RX_ENTRIES:
            raise Refusal(Status.E_RING)
        return count

    def deliver(self, messages: Sequence[Message]) -> None:
        """Put messages into the receive ring, which has room, and move rx_head past them."""
        head, laid, done = self.rx_head, lay_out(messages), 0
        for start, end, _ in _pieces(RX, _RX_ENTRIES, head, len(messages)):
            self.memory[start:end] = laid[done : done + end - start]
            done += end - start
        self.rx_head = head = (head + len(messages)) & MASK
        U32.pack_into(self.memory, RX_HEAD, head)

    # ---- Peers ----

    def put_peer(self, index: int, peer: int, name: str, flags: int, room: int) -> None:
        """Write one entry of the peer table; `index` is at most the number of entries there are.

        `flags` are PeerFlags.
        """
        entry = PEERS + index * PEER
        PEER_ENTRY.pack_into(self.memory, entry, peer, flags, room, 0, name.encode())
        if index == self._peers:
            self._peers += 1
            U32.pack_into(self.memory, PEER_COUNT, self._peers)

    def put_flags(self, index: int, flags: int, room: int) -> None:
        """Write the abi.PeerFlags of an entry that is there, and the free places in its queue."""
        FLAGS.pack_into(self.memory, PEERS + index * PEER + PEER_FLAGS, flags, room)

    def put_room(self, index: int, room: int) -> None:
        """Write the free places in a peer's queue into its entry, and nothing else."""
        U32.pack_into(self.memory, PEERS + index * PEER + ROOM, room)

    # ---- Doorbell ----

    @property
    def wait(self) -> Wait:
        """What the guest's wait is for, unchecked."""
        return tuple.__new__(Wait, WAIT.unpack_from(self.memory, WAIT_TIMEOUT))

    @property
    def log(self) -> tuple[int, int]:
        """Where the guest's text is: address and length, unchecked."""
        return self._u64(LOG_GPA), self._u32(LOG_LENGTH)

    @property
    def exit_code(self) -> int:
        """The guest's exit code, any 32-bit signed value."""
        return int(I32.unpack_from(self.memory, EXIT_CODE)[0])

    @property
    def progress(self) -> tuple[int, int]:
        """What the guest says of its progress: done and total, in units of its own."""
        done = self._u64(PROGRESS_DONE)
        return done, self._u64(PROGRESS_TOTAL)

    def bell_status(self, status: Status) -> None:
        """Answer a doorbell as a whole."""
        I32.pack_into(self.memory, BELL_STATUS, status)

    # ---- Notices ----

    def notice(self, kind: Notice, bits: int = 0) -> None:
        """Count a notice, and set bits whose meaning is between the host and the guest."""
        self._bits |= bits & MASK
        self._noticed[kind] += 1
        counts = [count & MASK for count in self._noticed.values()]
        self._news = (self._bits, self.notice_count, *counts)
        U32.pack_into(self.memory, NOTICES, self._bits)
        U32.pack_into(self.memory, offset_of(abi.Control, kind.value), self._noticed[kind] & MASK)
        U32.pack_into(self.memory, NOTICE_COUNT, self.notice_count)

    def write_again(self) -> None:
        """Write all notices, and how many peers there are: what is there may be older."""
        U32.pack_into(self.memory, PEER_COUNT, self._peers)
        NEWS.pack_into(self.memory, NOTICES, *self._news)

    @property
    def notice_count(self) -> int:
        """Notices of all kinds so far, modulo 2^32."""
        return sum(self._noticed.values()) & MASK


def _pieces(ring: int, entries: int, index: int, count: int) -> list[tuple[int, int, slice]]:
    """Return where entries of a ring lie, and which of them, from one index on: in two pieces, if
    the ring begins again in between.
    """
    first = index % entries
    before = min(count, entries - first)
    start = ring + first * DESCRIPTOR
    pieces = [(start, start + before * DESCRIPTOR, slice(before))]
    if before < count:
        pieces.append((ring, ring + (count - before) * DESCRIPTOR, slice(before, count)))
    return pieces
