"""A program that leaves things wherever it can (tests/linux/fresh.c), and what is left of them."""

from __future__ import annotations

import struct

from guest_elfs import FOR_LINUX, build_test_guests

from vmm import Monitor
from vmm.guest.abi import PAGE_SIZE
from vmm.linux.address_map import Map
from vmm.linux.files.since import Since
from vmm.linux.machine import LinuxMachine
from vmm.linux.memory import Memory
from vmm.linux.ranges import clipped, pairs
from vmm.linux.rewind import Rewind
from vmm.memory.written import Written

NOTHING, DIRTY, LEAVE, LOOK, SCATTER, PRINT, PAUSE, MAP, RIGHTS, DISCARD = range(10)
ZEROS = bytes(PAGE_SIZE)
USUAL = {"window": "2M", "memory": "64M", "stack": "256K"}


class Scene:
    """One machine of it, which waits for a first order."""

    def __init__(self, monitor: Monitor, **options: object) -> None:
        build_test_guests()
        options = {**USUAL, **options}
        machine = monitor.spawn(FOR_LINUX / "fresh.elf", **options)  # type: ignore[arg-type]
        assert isinstance(machine, LinuxMachine)
        self.monitor, self.machine = monitor, machine
        monitor.run(20)

    def ask(self, what: int, count: int = 0, secret: bytes = bytes(16)) -> int:
        """Let it do something; return what it answers."""
        self.send(what, count, secret)
        return self.answer()

    def send(self, what: int, count: int = 0, secret: bytes = bytes(16)) -> None:
        payload = struct.pack("<II", what, count) + secret
        self.monitor.host.send(self.machine, payload=payload)

    def answer(self) -> int:
        self.monitor.run(20)
        assert self.machine.fault is None, self.machine.fault
        message = self.monitor.host.receive()
        assert message is not None
        (found,) = struct.unpack("<Q", message.payload)
        return int(found)

    def memory(self) -> dict[int, bytes]:
        """Return every page of private memory that is not zeros, by its address."""
        backing = self.machine.guest.process.memory._backing
        written, pages = Written(), dict[int, bytes]()
        written.scans = False
        for start, end in backing.ranges:
            shift = backing.host(start, end - start) - start
            found = pairs(written.find(start + shift, end - start))
            touched = [(low - shift, high - shift) for low, high in found]
            for low, high in (*touched, *clipped(backing.given, start, end)):
                for gpa in range(low, high, PAGE_SIZE):
                    page = bytes(backing.view(gpa, PAGE_SIZE))
                    if page != ZEROS:
                        pages[gpa] = page
        written.close()
        return pages

    def find(self, secret: bytes) -> list[int]:
        """Return the pages of private memory in which something is."""
        return [gpa for gpa, page in self.memory().items() if secret in page]

    @property
    def guest_memory(self) -> Memory:
        return self.machine.guest.process.memory

    @property
    def map(self) -> Map:
        """What has been kept of it."""
        kept = self.machine.guest.kept
        assert kept is not None
        return kept._map

    @property
    def since(self) -> Since:
        kept = self.machine.guest.kept
        assert kept is not None
        return kept.since

    @property
    def rewind(self) -> Rewind:
        kept = self.machine.guest.kept
        assert kept is not None
        return kept.rewind
