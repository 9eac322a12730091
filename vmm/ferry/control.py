"""The control structure: the block of memory that one machine shares with the monitor.

What the guest writes is read once and checked; what the monitor writes it keeps on its own side
too, and never reads back. Source: guests/include/pageferry.h.
"""

from __future__ import annotations

import dataclasses
import enum
from typing import NamedTuple

from vmm.ferry.layout import (
    BELL_STATUS,
    CONTROL_BYTES,
    EXIT_CODE,
    FLAGS,
    I32,
    LOG_GPA,
    LOG_LENGTH,
    MASK,
    NEWS,
    NOTICE_COUNT,
    NOTICES,
    PEER,
    PEER_COUNT,
    PEER_ENTRY,
    PEER_FLAGS,
    PEERS,
    PROGRESS_DONE,
    PROGRESS_TOTAL,
    ROOM,
    START,
    U32,
    U64,
    WAIT,
    WAIT_TIMEOUT,
    offset_of,
)
from vmm.ferry.rings import Rings
from vmm.guest import abi
from vmm.guest.abi import Status


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


class ControlStructure(Rings):
    """The monitor's hand on one machine's control structure.

    memory    CONTROL_BYTES writable bytes. Release it with `release()` before unmapping.

    Thread-safety: one thread at a time; the guest may be running.
    """

    def __init__(self, memory: memoryview, identity: Identity) -> None:
        super().__init__(memory)
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

    def _u32(self, offset: int) -> int:
        return int(U32.unpack_from(self.memory, offset)[0])

    def _u64(self, offset: int) -> int:
        return int(U64.unpack_from(self.memory, offset)[0])

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
