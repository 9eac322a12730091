"""A machine that the protocol's model can tell what to do, on the real device."""

from __future__ import annotations

import struct
from collections.abc import Sequence

from kvm.protocol_pages import Wish
from kvm.puppets import DESK, GATHER, KEPT, SCATTER, TAKE, TRANSMIT, Desk, Puppet, descriptor

from vmm.guest import abi
from vmm.guest.abi import PAGE_SIZE, Flags, Operation

_PATIENCE = 60
_SIZE = struct.calcsize("<Q")


class Hand(Puppet):
    """A puppet that is told by its desk, so that its queue holds nothing but the messages of
    others, and that takes no message unless it is told to.
    """

    desk_is_read = False

    def boot(self) -> None:
        super().boot()
        self.served = 0
        self.send_order(DESK)
        self.monitor.run(_PATIENCE)
        self.desk_is_read = True

    def look(self, field: str, length: int = _SIZE) -> bytes:
        """Read from the beginning of a field of its desk."""
        return self.machine.guest.memory.read(self._desk + getattr(Desk, field).offset, length)

    def put(self, field: str, data: bytes) -> None:
        self.machine.guest.memory.write(self._desk + getattr(Desk, field).offset, data)

    def send_order(self, order: int, count: int = 0, address: int = 0, value: int = 0) -> None:
        if not self.desk_is_read:
            super().send_order(order, count, address, value)
            return
        self.put("next", struct.pack("<IIQQ", order, count, address, value))
        self.monitor.notice(self.machine, 1)

    def done(self) -> None:
        assert self.machine.fault is None, self.machine.fault
        self.served += 1
        assert struct.unpack("<Q", self.look("served")) == (self.served,)

    def _order(self, order: int, count: int = 0, address: int = 0, value: int = 0) -> int:
        self.send_order(order, count, address, value)
        self.monitor.run(_PATIENCE)
        self.done()
        return int(struct.unpack("<q", self.look("result"))[0])

    def ask(self, *descriptors: abi.Descriptor) -> list[abi.Descriptor]:
        self.put("descriptors", b"".join(bytes(made) for made in descriptors))
        self._order(TRANSMIT, len(descriptors))
        size = len(bytes(descriptors[0]))
        data = self.look("descriptors", size * len(descriptors))
        return [
            abi.Descriptor.from_buffer_copy(data, size * index) for index in range(len(descriptors))
        ]

    def words(self, places: Sequence[int]) -> list[int]:
        """Return what a GATHER of these places has found."""
        return list(struct.unpack(f"<{len(places)}Q", self.look("words", _SIZE * len(places))))

    def begin_to_gather(self, places: Sequence[int]) -> None:
        self.put("words", struct.pack(f"<{len(places)}Q", *map(self.page, places)))
        self.send_order(GATHER, len(places))

    def scatter(self, words: dict[int, int]) -> None:
        pairs = [part for place, word in words.items() for part in (self.page(place), word)]
        self.put("words", struct.pack(f"<{len(pairs)}Q", *pairs))
        self._order(SCATTER, len(words))

    def take(self, count: int) -> list[abi.Descriptor]:
        """Let it take messages; return those that it has got."""
        self._order(TAKE, count)
        (kept,) = struct.unpack("<Q", self.look("kept"))
        base, size = Desk.messages.offset, Desk.messages.size // KEPT
        read = self.machine.guest.memory.read
        taken = [read(self._desk + base + n % KEPT * size, size) for n in range(self.seen, kept)]
        self.seen = kept
        return [abi.Descriptor.from_buffer_copy(data) for data in taken]


def descriptor_of(wish: Wish, base: int) -> abi.Descriptor:
    offset = 0 if wish.operation == Operation.ALLOC else base
    spans = [((offset + at) % (1 << 64), pages) for at, pages in wish.spans]
    return descriptor(
        wish.operation,
        wish.receiver,
        *spans,
        payload=wish.payload,
        tag=wish.tag,
        length=wish.length,
        flags=wish.reserved | (0 if wish.writable else Flags.READONLY),
    )


def told(taken: abi.Descriptor, base: int) -> tuple[object, ...]:
    """Return what a descriptor says: first what the host would be told as well."""
    extents = taken.extents[: taken.extent_count]
    return (
        *(taken.operation, taken.sender, taken.tag, taken.status, taken.length),
        bytes(taken.payload[: taken.payload_length]),
        [((extent.gpa - base) // PAGE_SIZE, extent.pages) for extent in extents],
        *(taken.message, taken.receiver, taken.flags),
    )
