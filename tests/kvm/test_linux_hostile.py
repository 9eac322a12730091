"""Programs that ask the system for nonsense, call after call: it is their own affair.

Each makes every call from 0 to 1000, and then any, with edges and at random
(tests/linux/hostile.c). PAGEFERRY_HOSTILE says how many calls in all, PAGEFERRY_HOSTILE_SEED which
ones. A million: `PAGEFERRY_HOSTILE=1000000 scripts/test tests/kvm/test_linux_hostile.py`.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import re
import socket
import stat
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random

import pytest
from guest_elfs import FOR_LINUX
from kvm import mappings
from kvm.innocent import Innocent
from kvm.ways import WAYS
from tests_support import held, sized

from vmm import Monitor, State
from vmm.errors import GuestError, ResourceError
from vmm.ferry.events import Event
from vmm.guest.abi import Hold
from vmm.linux.machine import LinuxMachine
from vmm.linux.process import Process

COUNT = int(os.environ.get("PAGEFERRY_HOSTILE", sized(40_000, 1_500)))
SEED = int(os.environ.get("PAGEFERRY_HOSTILE_SEED", "1"))
SHARE = 3  # movers, at least, that share the calls
EACH, LONGEST = sized((5_000, 25_000), (1_100, 1_100))  # of a program's calls; of every fifth's
REAL = 4  # one in so many has a real clock
MOMENT, LONG = 0.5, 5.0  # seconds for a pair, as it may wait: with one that has, and without
ROUNDS = sized(100, 20)  # of the innocent, meanwhile
PATIENCE = 120  # seconds for a batch

SECRET = b"\x01Nobody has offered this: \xfe%s" % os.urandom(8).hex().encode()
PUBLIC = b"all may see this\n"

# What no program sees: nor the first line of what this system has, wherever it looks for that.
UNSEEN = (SECRET, *Path("/etc/passwd").read_bytes().splitlines()[:1])
_AT_FDCWD, _RENAME_EXCHANGE = -100, 2
DEVICES = ("null", "zero", "full", "random", "urandom", "tty", "kvm")


class Ground:
    """Directories of the host's: one that programs are shown, with ways out; what is beside it."""

    def __init__(self, work: Path) -> None:
        self.work = work
        self.secret = work / "secret"
        self.root = work / "shown"
        for folder in ("shown", "shown/sub", "shown/closed", "beside"):
            (work / folder).mkdir()
        for file in (self.secret, work / "beside" / "secret", work / "beside" / "passwd"):
            file.write_bytes(SECRET * 64)
        for name in ("file", "sub/file", "closed/in"):
            (self.root / name).write_bytes(PUBLIC)
        (self.root / "closed").chmod(0)
        with (self.root / "sparse").open("wb") as file:
            file.truncate(1 << 40)
        links = {
            **{"outside": "../beside", "absolute": self.secret, "parent": "..", "loop": "loop"},
            **{"chain": "sub/chain", "sub/chain": "../parent/beside", "system": "/proc"},
            **{"devices": "/dev", "environment": "/proc/self/environ", "memory": "/proc/self/mem"},
        }
        for name, target in links.items():
            (self.root / name).symlink_to(target)
        os.mkfifo(self.root / "pipe")
        with socket.socket(socket.AF_UNIX) as server, contextlib.chdir(self.root):
            server.bind("socket")
        self.moving = self.root / "moving"  # whose names are files' now, and links' then
        (self.moving / "folder").mkdir(parents=True)
        for name in ("file", "folder/secret"):
            (self.moving / name).write_bytes(PUBLIC)
        for name, target in (("file", "../../secret"), ("folder", "../../beside")):
            (self.moving / f"other {name}").symlink_to(target)
        self.offered = work / "offered"
        self.offered.write_bytes(PUBLIC)

    def seen(self) -> dict[str, tuple[object, ...]]:
        """Return all there is of it: names, modes, times, contents; and the system's devices."""
        found = {}
        for path in (self.work, *sorted(self.work.rglob("*"))):
            if path.is_relative_to(self.moving):
                continue
            now = path.lstat()
            whole = stat.S_ISREG(now.st_mode) and now.st_size < 1 << 20
            found[str(path)] = (
                *(now.st_mode, now.st_uid, now.st_gid, now.st_nlink, now.st_size, now.st_blocks),
                *(
                    now.st_ino,
                    now.st_mtime_ns,
                    now.st_ctime_ns,
                    os.listxattr(path, follow_symlinks=False),
                ),
                path.read_bytes() if whole else b"",
                path.readlink() if path.is_symlink() else "",
            )
        for name in DEVICES:
            with contextlib.suppress(FileNotFoundError):
                now = Path("/dev", name).lstat()
                found[name] = (now.st_mode, now.st_uid, now.st_gid, now.st_rdev, now.st_ino)
        return found

    @contextlib.contextmanager
    def keeps_moving(self) -> Iterator[None]:
        """Exchange what moves with links out of the directory, all the time."""
        over = threading.Event()
        rename = ctypes.CDLL(None, use_errno=True).renameat2
        names = [os.fsencode(self.moving / name) for name in ("file", "folder")]
        others = [os.fsencode(self.moving / f"other {name}") for name in ("file", "folder")]

        def move() -> None:
            while not over.wait(0.001):
                for name, other in zip(names, others, strict=True):
                    assert rename(_AT_FDCWD, name, _AT_FDCWD, other, _RENAME_EXCHANGE) == 0

        thread = threading.Thread(target=move)
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()


def descriptors() -> list[str]:
    """Return this process's open descriptors, and what each is of."""
    return sorted(what for what in held() if what.startswith("descriptor"))


class Looks:
    """Looks at each program's memory and files just before they are let go of."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.found: list[str] = []
        self.looks = 0
        close = Process.close

        def look_and_close(process: Process) -> None:
            try:
                self.look(process)
            finally:
                close(process)

        patch.setattr(Process, "close", look_and_close)

    def look(self, process: Process) -> None:
        """Note where there is what should not be."""
        self.looks += 1
        memory = process.memory
        for area in memory.areas.spans:
            self.search(memory.raw(area.start, area.end - area.start), f"{area}")
        self.search(memory.low.view(0, memory.areas.spans.next(0).start), "its own system area")
        for name in process.files.written:
            with contextlib.suppress(KeyError, ResourceError):  # too deep, or made of holes
                self.search(process.files.written[name], name)
        for output in process.outputs:
            self.search(output.contents(), "its output")

    def search(self, data: bytes | memoryview, where: str) -> None:
        """Search one piece."""
        self.found += [
            f"{what!r} in {where}" for what in UNSEEN if re.search(re.escape(what), data)
        ]


class Scene:
    """One monitor, with the innocent; pairs of hostile programs come and go."""

    def __init__(self, monitor: Monitor, elf: Callable[[str], Path], ground: Ground, looks: Looks):
        self.monitor = monitor
        self.ground = ground
        self.looks = looks
        self.innocent = Innocent(monitor, elf)
        self.seeds = Random(f"{SEED} {monitor.mover}")
        self.calls = self.through = 0
        self.ends: Counter[str] = Counter()
        self.not_served: Counter[str] = Counter()
        self.innocents_at_end = 0
        monitor.remove(self.spawn("first", 0))  # what programs of one file share is kept
        monitor.trace.listen(self.note)

    def note(self, event: Event) -> None:
        """Count what the innocent have said to each other by the time that a program ends."""
        if event.kind == "stop" and event.fields["machine"] in ("hostile", "other"):
            self.innocents_at_end = self.said()

    def said(self) -> int:
        """How many messages the innocent have sent."""
        return sum(machine.peer.sent for machine in self.innocent.machines)

    def spawn(self, name: str, seed: int) -> LinuxMachine:
        """Make a program."""
        real = seed % REAL == 0
        ground = self.ground
        machine = self.monitor.spawn(
            FOR_LINUX / "hostile.elf",
            name=name,
            args=[
                str(seed),
                str(EACH if seed % 5 else LONGEST),
                ground.secret,
                ground.work,
                ground.root / "outside",
            ],
            files={"/in/offered": PUBLIC, "/in/host": ground.offered},
            root=ground.root,
            stdin=PUBLIC * 100,
            disk="2M",
            memory="16M",
            stack="256K",
            window="2M",
            queue=8,
            quota="1M",
            clock="real" if real else "frozen",
            seed=seed,
        )
        assert isinstance(machine, LinuxMachine)
        return machine

    def batch(self) -> None:
        """Let two run, to their ends, and look at what has become of all others."""
        monitor, before = self.monitor, descriptors()
        seeds = self.seeds.randrange(1 << 32), self.seeds.randrange(1 << 32)
        pair = [
            self.spawn(name, seed) for name, seed in zip(("hostile", "other"), seeds, strict=True)
        ]
        monitor.connect(*pair)
        self.innocent.begin(ROUNDS)
        said = self.said()
        limit = MOMENT if any(seed % REAL == 0 for seed in seeds) else LONG
        patience = threading.Timer(limit, lambda: [monitor.kill(machine) for machine in pair])
        patience.start()
        try:
            monitor.run(PATIENCE)
        finally:
            patience.cancel()
            patience.join()
        self.innocent.check(list(self.received()))
        self.through += self.innocents_at_end - said
        for machine in pair:
            self.count(machine)
            monitor.remove(machine)
        monitor.audit(mappings=True)
        assert descriptors() == before, f"seeds {seeds}"
        assert not self.looks.found, f"seeds {seeds}"

    def received(self) -> Iterator[int]:
        """Take all messages for the host; return who has sent them."""
        host = self.monitor.host
        while (received := host.receive()) is not None:
            for buffer in received.buffers:
                with contextlib.suppress(GuestError):
                    borrowed = buffer.hold in (Hold.BORROWED, Hold.VIEWED)
                    (host.give_back if borrowed else host.release)(buffer)
            yield received.sender

    def count(self, machine: LinuxMachine) -> None:
        """Note how a program has ended."""
        fault = machine.fault
        if machine.state is not State.STOPPED:
            how = "waits for ever"
        else:
            how = f"exit {machine.exit_code}" if fault is None else f"{fault.kind} {fault.signal}"
        assert fault is None or fault.kind != "internal", (fault, fault.calls)
        self.ends[how] += 1
        self.calls += machine.guest.process.serial
        self.not_served.update(machine.not_served)


@pytest.mark.smaller_in_lanes("2,000 calls instead of 40,000: who answers them is the same there")
@pytest.mark.parametrize("mover", sized(WAYS, WAYS[:1]), indirect=True)
@pytest.mark.timeout(max(60, COUNT // 500))
def test_nonsense_is_read_and_written_nowhere_and_nobody_else_notices(
    open_monitor: Callable[..., Monitor],
    test_guest: Callable[[str], Path],
    mover: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    ground = Ground(tmp_path)
    before = ground.seen()
    monitor = open_monitor(mover=mover, pool="4M", audit=True, workers=2)
    scene = Scene(monitor, test_guest, ground, Looks(monkeypatch))
    batches = 0
    with ground.keeps_moving():
        while scene.calls < COUNT // SHARE:
            scene.batch()
            batches += 1
            mappings.check(monitor)
    print(f"{mover}: {scene.calls} calls, {batches} batches, {dict(scene.ends.most_common())}")
    print(f"{len(scene.not_served)} not served; the innocent: {scene.through} messages meanwhile")
    assert ground.seen() == before
    assert scene.looks.looks == 2 * batches + 1  # the first, which did not run, too
    assert len(scene.not_served) > sized(100, 50)
    assert scene.through > 0
