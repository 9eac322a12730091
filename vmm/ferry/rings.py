"""The two rings of a control structure: what a machine asks for, and what it is sent.

Not thread-safe, but for the guest, which may be running.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence

from vmm.ferry.layout import (
    DESCRIPTOR,
    EXTENT,
    EXTENTS,
    MASK,
    MESSAGE,
    PAYLOAD,
    RX,
    RX_HEAD,
    RX_TAIL,
    SENDER,
    STAMP,
    STATUS,
    TX,
    TX_HEAD,
    TX_TAIL,
    U32,
    U64,
)
from vmm.ferry.message import Answer, Message, lay_out
from vmm.ferry.rules import Refusal
from vmm.guest import abi
from vmm.guest.abi import Status

_WORDS, _LONGS = DESCRIPTOR // 4, DESCRIPTOR // 8  # from one to the same of the next
_TX_ENTRIES, _RX_ENTRIES = abi.TX_ENTRIES, abi.RX_ENTRIES


class Rings:
    """The monitor's side of them, in its hand on a control structure's memory."""

    def __init__(self, memory: memoryview) -> None:
        self.memory = memory
        self.tx_tail = 0
        self.rx_head = 0

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
