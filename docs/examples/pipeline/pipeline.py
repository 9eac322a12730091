"""A file through three machines, whose blocks move from each to the next: pipeline.py FILE"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from io import BufferedReader
from pathlib import Path
from typing import NamedTuple

from vmm import Buffer, LinuxMachine, Machine, Monitor

STAGES = ("lower", "words", "checksum")
BLOCK = 2 << 20  # bytes; so large that a huge page moves as one
BLOCKS = 8  # that there are, whatever the size of the file


class Report(NamedTuple):
    """What the stages found: the most frequent words, the checksum of the text in small letters."""

    bytes: int
    words: str
    checksum: int


def build(folder: Path) -> list[Path]:
    """Build the stages: programs for Linux that know of peers."""
    made = [folder / f"{name}.elf" for name in STAGES]
    for elf in made:
        source = Path(__file__).with_name(f"{elf.stem}.c")
        line = [sys.executable, "-m", "vmm", "build", "--libc", str(source), "-o", str(elf)]
        subprocess.run(line, check=True, stdout=subprocess.DEVNULL)
    return made


def run(path: Path, programs: list[Path]) -> Report:
    """Send a file through the stages, in blocks that come back and are filled again."""
    with Monitor(pool="64M", workers=2) as m, path.open("rb") as file:
        lower, words, checksum = stages = [
            m.spawn(elf, name=elf.stem, window="64M") for elf in programs
        ]
        m.connect(lower, words)
        m.connect(words, checksum)
        free = [m.host.alloc(BLOCK) for _ in range(BLOCKS)]
        total = 0
        while count := feed(m, lower, free, file):
            total += count
            settle(m, stages)
            while answer := m.host.receive():
                free += answer.buffers
        m.host.send(lower)  # no pages: that is all
        settle(m, stages)
        last = m.host.receive()
        assert last is not None
        assert isinstance(words, LinuxMachine)
        return Report(total, words.stdout.decode(), last.tag)


def feed(m: Monitor, to: Machine, free: list[Buffer], file: BufferedReader) -> int:
    """Fill blocks and send them off, as many as are free; return how many bytes that were."""
    sent = 0
    while free:
        count = 0
        while more := free[-1].fill(file, count):
            count += more
        if not count:
            break
        m.host.send(to, free.pop(), tag=count)
        sent += count
    return sent


def settle(m: Monitor, stages: list[Machine]) -> None:
    """Let the machines run until all of them wait, or have ended; raise what stopped one."""
    m.run(timeout=60)
    for stage in stages:
        if stage.fault is not None:
            raise stage.fault


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        report = run(Path(sys.argv[1]), build(Path(folder)))
    print(report.words, end="")
    print(f"{report.bytes} bytes, CRC-32 {report.checksum:08x}")
