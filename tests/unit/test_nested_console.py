"""What a lane says, and what becomes of a run that says too little. A script plays the emulator."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest

from vmm.errors import HostError
from vmm.nested.console import Tail, Watch, follow, parse
from vmm.nested.emulator import emulator
from vmm.nested.errors import LaneError, LaneTimeout
from vmm.nested.lanes import CONSOLE, OUTPUT

ROOT = Path(__file__).resolve().parent.parent.parent
PATIENCE = 20.0


@pytest.mark.parametrize(
    ("text", "ready", "status", "failed"),
    [
        (b"", False, None, None),
        (b"pageferry-lane: ready\r\n", True, None, None),
        (b"\r\npageferry-lane: ready\r\n\npageferry-lane: exit 0\n", True, 0, None),
        (b"pageferry-lane: exit 255\r\r\n", False, 255, None),
        (b"pageferry-lane: exit 25", False, None, None),  # there may be more of the number to come
        (b"  pageferry-lane: exit 1\n", False, None, None),
        (b"pageferry-lane: exit 1234\n", False, None, None),
        (b"pageferry-lane: failed insmod /modules/kvm.ko\n", False, None, "insmod /modules/kvm.ko"),
        (b"pageferry-lane: failed: no disk sda\r\n", False, None, "no disk sda"),
        (b"[ 1.0] noise \xff\npageferry-lane: exit 7\n[ 2.0] noise", False, 7, None),
    ],
)
def test_parse(text: bytes, ready: bool, status: int | None, failed: str | None) -> None:
    progress = parse(text)
    assert (progress.ready, progress.status, progress.failed) == (ready, status, failed)


def test_a_tail_gives_every_byte_once(tmp_path: Path) -> None:
    path = tmp_path / "file"
    tail = Tail(path)
    assert tail.read() == b""
    path.write_bytes(b"one")
    assert tail.read() == b"one"
    with path.open("ab") as file:
        file.write(b"two")
    assert (tail.read(), tail.read()) == (b"two", b"")


def play(
    tmp_path: Path, script: str, *, boot: float = PATIENCE, limit: float | None = PATIENCE
) -> tuple[int, bytes]:
    """Run a script in an emulator's place; return the status and the output that came of it."""
    got: list[bytes] = []
    command = ["sh", "-c", f'say() {{ echo "pageferry-lane: $*" >> {CONSOLE}; }}; {script}']
    with emulator(command, tmp_path) as started:
        watch = Watch(started, tmp_path, boot, limit)
        status = follow(watch, tmp_path / OUTPUT, got.append)
    assert started.ended() is not None
    return status, b"".join(got)


def test_output_and_status_come_through(tmp_path: Path) -> None:
    script = f"say ready; printf 'a\\0b\\r\\n\\377' > {OUTPUT}; say exit 42; sleep 60"
    assert play(tmp_path, script) == (42, b"a\0b\r\n\xff")


def test_output_that_comes_late_is_not_lost(tmp_path: Path) -> None:
    script = f"say ready; for n in 1 2 3; do echo $n >> {OUTPUT}; sleep 0.1; done; say exit 0"
    assert play(tmp_path, script) == (0, b"1\n2\n3\n")


def test_an_emulator_that_dies_is_an_error_that_says_its_last_words(tmp_path: Path) -> None:
    with pytest.raises(LaneError, match=r"ended \(status 1\) without .* status: no KVM here"):
        play(tmp_path, "echo no KVM here; exit 1")


def test_the_consoles_last_lines_are_the_ones_that_count(tmp_path: Path) -> None:
    script = f"echo from qemu; echo Kernel panic - not syncing >> {CONSOLE}"
    with pytest.raises(LaneError, match="status: Kernel panic - not syncing"):
        play(tmp_path, script)


def test_a_silent_death_is_said_to_be_one(tmp_path: Path) -> None:
    with pytest.raises(LaneError, match="it said nothing"):
        play(tmp_path, "exit 0")


def test_a_boot_that_hangs_is_ended(tmp_path: Path) -> None:
    with pytest.raises(LaneTimeout, match=r"the emulator hangs: .* within 0.3 seconds"):
        play(tmp_path, "sleep 60", boot=0.3)


def test_a_command_that_takes_too_long_is_ended_and_its_output_kept(tmp_path: Path) -> None:
    with pytest.raises(LaneTimeout, match=r"not done within 0.3 seconds: .*--limit"):
        play(tmp_path, f"say ready; echo so far > {OUTPUT}; sleep 60", limit=0.3)


def test_the_limit_counts_from_the_commands_start(tmp_path: Path) -> None:
    assert play(tmp_path, "sleep 0.5; say ready; say exit 0", limit=0.4) == (0, b"")


def test_a_lane_that_gives_up_says_why(tmp_path: Path) -> None:
    with pytest.raises(LaneError, match="could not be set up: no disk vda"):
        play(tmp_path, "say failed: no disk vda; sleep 60")


def test_an_emulator_that_is_not_there_is_a_fault_of_the_host(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shutil.which", lambda *_, **__: None)
    with pytest.raises(HostError, match="cannot be run"), emulator(["/no"], tmp_path):
        pass


def test_an_emulator_that_draws_is_not_held_up_by_its_screen(tmp_path: Path) -> None:
    bochs = (
        "import os, pty, sys; ours, theirs = pty.openpty()\n"
        "name = os.ttyname(theirs)\n"
        "print(f'Bochs connected to screen \"{name}\"', file=sys.stderr, flush=True)\n"
        "os.close(theirs)\n"
        "for _ in range(300): os.write(ours, bytes(1000))\n"
        "print('pageferry-lane: exit 5', file=open(sys.argv[1], 'w'))"
    )
    with emulator([sys.executable, "-c", bochs, CONSOLE], tmp_path) as started:
        watch = Watch(started, tmp_path, PATIENCE, None)
        assert follow(watch, tmp_path / OUTPUT, bytes) == 5


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_the_emulator_does_not_outlive_us(tmp_path: Path, number: signal.Signals) -> None:
    child = (
        "import sys, time; from pathlib import Path; from vmm.nested.emulator import emulator\n"
        "with emulator(['sh', '-c', 'echo $$ > pid; exec sleep 60'], Path(sys.argv[1])): "
        "time.sleep(60)"
    )
    command = [sys.executable, "-c", child, str(tmp_path)]
    process = subprocess.Popen(command, env={**os.environ, "PYTHONPATH": str(ROOT)})
    deadline = time.monotonic() + PATIENCE
    while not (text := _text(tmp_path / "pid")) and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(number)
    process.wait(PATIENCE)
    while _runs(int(text)) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not _runs(int(text)), shlex.join(command)


def _text(path: Path) -> str:
    return path.read_text().strip() if path.exists() else ""


def _runs(pid: int) -> bool:
    with suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    return False
