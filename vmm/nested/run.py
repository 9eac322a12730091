"""A run: a lane booted for one job, and all of it gone afterwards."""

from __future__ import annotations

import contextlib
import shutil
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path

from vmm.errors import ConfigError
from vmm.nested import console, image, lanes, packages, payload, shell, stages
from vmm.nested.cache import Cache, disk_errors
from vmm.nested.compiled import Compiler
from vmm.nested.emulator import Emulator, emulator
from vmm.nested.errors import LaneError
from vmm.nested.lanes import LANES, OUTPUT, PAYLOAD, RESULT, Lane
from vmm.nested.payload import Job


def run(job: Job, cache: Cache, limit: float | None, write: Callable[[bytes], None]) -> int:
    """Run a job and return its exit status.

    limit  seconds for the command, once it has started; None for ever
    write  takes the command's output as it comes; a shell uses the terminal instead

    Raises HostError if this host cannot, LaneTimeout and LaneError as `console.Watch` does.
    """
    lane = LANES[job.lane]
    packages.check(lane.name)
    built = stages.build(lane, cache)
    with cache.run_directory() as directory:
        with disk_errors(cache.root):
            _prepare(job, lane, cache, built, directory)
        status = _boot(job, lane, directory, limit, write)
        if job.output is not None:
            fetch(directory / RESULT, job.output)
    return status


def _prepare(job: Job, lane: Lane, cache: Cache, built: stages.Built, directory: Path) -> None:
    """Fill the run's directory.

    Links to what is made once, the payload, and an empty disk for the result.
    """
    lanes.link_inputs(lane, built.boot, built.root, directory)
    compiler = Compiler(built.python, built.site, cache)
    tree = directory / "payload"
    tree.mkdir()
    payload.write(job, compiler, lane.disks[2], tree)
    image.make(tree, directory / PAYLOAD)
    shutil.rmtree(tree)
    if job.output is not None:
        with (directory / RESULT).open("wb") as file:
            file.truncate(lane.result_bytes)


def _boot(
    job: Job, lane: Lane, directory: Path, limit: float | None, write: Callable[[bytes], None]
) -> int:
    if job.shell:
        with (
            shell.serial_terminal() as (line, path),
            _started(job, lane, directory, path) as started,
        ):
            return shell.converse(_watch(started, lane, directory, None), line)
    with _started(job, lane, directory, None) as started:
        watch = _watch(started, lane, directory, limit)
        return console.follow(watch, directory / OUTPUT, write)


def _watch(started: Emulator, lane: Lane, directory: Path, limit: float | None) -> console.Watch:
    return console.Watch(started, directory, lane.boot_seconds, limit)


@contextlib.contextmanager
def _started(job: Job, lane: Lane, directory: Path, terminal: str | None) -> Iterator[Emulator]:
    """Start the lane's emulator, with ttyS1 at a terminal or in the file OUTPUT."""
    result = job.output is not None
    if lane.name == "npt":
        command = lanes.qemu(terminal or f"file:{OUTPUT}", result=result)
    else:
        command = lanes.bochs()
        serial = f"mode=term, dev={terminal}" if terminal else f"mode=file, dev={OUTPUT}"
        for name, text in lanes.bochs_files(serial, result=result).items():
            (directory / name).write_text(text)
    with emulator(command, directory) as started:
        yield started


def fetch(archive: Path, target: Path) -> None:
    """Unpack the files of a lane's tar into a directory, which is made if need be.

    Only regular files come back, and only to places below `target`. Raises LaneError for what is no
    tar.
    """
    try:
        with tarfile.open(archive, "r:") as tar:
            for member in tar:
                if member.isreg():
                    _fetch_file(tar, member, target)
    except tarfile.TarError as error:
        raise LaneError(f"the lane's output cannot be read back: {error}") from error


def _fetch_file(tar: tarfile.TarFile, member: tarfile.TarInfo, target: Path) -> None:
    path = target / member.name
    if ".." in path.parts or not path.resolve().is_relative_to(target.resolve()):
        raise LaneError(f"the lane's output has a file outside its directory: {member.name}")
    source = tar.extractfile(member)
    assert source is not None, "a regular file"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("wb") as file:
            shutil.copyfileobj(source, file)
    except OSError as error:
        raise ConfigError(
            f"{path}: cannot be written: {error.strerror}: name another directory (--output)"
        ) from error
