"""Where things lie in a control structure, as offsets and struct formats. Pure.

One call reads or writes several fields, where ctypes takes one for each. The tests hold all of it
against the ABI's own structures. Source: guests/include/pageferry.h.
"""

from __future__ import annotations

import ctypes
import struct

from vmm.guest import abi


def offset_of(structure: type[ctypes.Structure], field: str) -> int:
    """Return where a field of a structure is."""
    return int(getattr(structure, field).offset)


U32 = struct.Struct("<I")
I32 = struct.Struct("<i")
U64 = struct.Struct("<Q")
MASK = 0xFFFFFFFF  # of what is counted modulo 2^32

# ---- The control structure ----

CONTROL_BYTES = ctypes.sizeof(abi.Control)
START = struct.Struct(f"<QHHIIIIIQQQQ{abi.NAME_MAX}s")  # from `magic` to `name`
TX_HEAD = offset_of(abi.Control, "tx_head")
TX_TAIL = offset_of(abi.Control, "tx_tail")
RX_HEAD = offset_of(abi.Control, "rx_head")
RX_TAIL = offset_of(abi.Control, "rx_tail")
TX = offset_of(abi.Control, "tx")
RX = offset_of(abi.Control, "rx")
WAIT = struct.Struct("<Q32xIII")  # wait_timeout_us; wait_for, wait_peer, notices_seen
WAIT_TIMEOUT = offset_of(abi.Control, "wait_timeout_us")
BELL_STATUS = offset_of(abi.Control, "bell_status")
NEWS = struct.Struct("<IIIII")  # notices, notice_count, and one count for each kind
NOTICES = offset_of(abi.Control, "notices")
NOTICE_COUNT = offset_of(abi.Control, "notice_count")
LOG_GPA = offset_of(abi.Control, "log_gpa")
LOG_LENGTH = offset_of(abi.Control, "log_length")
EXIT_CODE = offset_of(abi.Control, "exit_code")
PROGRESS_DONE = offset_of(abi.Control, "progress_done")
PROGRESS_TOTAL = offset_of(abi.Control, "progress_total")
PEER_COUNT = offset_of(abi.Control, "peer_count")

# ---- A peer's entry ----

PEERS = offset_of(abi.Control, "peers")
PEER = ctypes.sizeof(abi.Peer)
PEER_ENTRY = struct.Struct(f"<IIII{abi.NAME_MAX}s")  # from `id` to `name`
PEER_FLAGS = offset_of(abi.Peer, "flags")
ROOM = offset_of(abi.Peer, "room")
FLAGS = struct.Struct("<II")  # a peer's flags and room

# ---- A descriptor ----

DESCRIPTOR = ctypes.sizeof(abi.Descriptor)
STATUS = offset_of(abi.Descriptor, "status")
SENDER = offset_of(abi.Descriptor, "sender")
STAMP = struct.Struct("<iI")  # status and sender
MESSAGE = offset_of(abi.Descriptor, "message")
EXTENTS = offset_of(abi.Descriptor, "extents")
PAYLOAD = offset_of(abi.Descriptor, "payload")
EXTENT = ctypes.sizeof(abi.Extent)
SPANS = [struct.Struct("<" + "QII" * count) for count in range(abi.EXTENTS_MAX + 1)]
# Its fields before its extents, those together that are beside each other, as each costs time:
# operation and flags, the numbers of extents and of bytes of payload.
LETTER = struct.Struct("<IqIQQQIIQQ")
# What is asked, with the first extent; of one descriptor after the other.
ASKED = struct.Struct(f"<I8xIQQ8xQQQQQ{DESCRIPTOR - EXTENTS - EXTENT}x")
# All of it, as it is delivered, with no extent or one, as most have: the rest are zeros.
LAID = struct.Struct(f"<IiIIQQQI20xQI{PAYLOAD - EXTENTS - EXTENT + 4}x{DESCRIPTOR - PAYLOAD}s")
