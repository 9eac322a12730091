"""Runs of programs as machines, in the terms of `linux_case`: what they did there."""

from __future__ import annotations

import signal
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from linux_case import DIRECTORIES, Case, Outcome

from vmm import Monitor
from vmm.linux.machine import LinuxMachine

Job = tuple[Case, Path]
TIMEOUT = 60  # s


def run_there(
    jobs: Sequence[Job], directory: Path | None = None, root: Path | None = None
) -> list[Outcome]:
    """Run programs as machines of one monitor; return what each did, in order.

    directory    where each gets a directory of its own as its root, an empty one; without, they are
                 given their files as bytes
    root         what they see besides
    """
    with Monitor(pool="2M", console=lambda name, line: None) as monitor:
        machines = [
            spawn(monitor, case, program, f"m{number}", directory, root)
            for number, (case, program) in enumerate(jobs)
        ]
        monitor.run(timeout=TIMEOUT)
        return [outcome(machine) for machine in machines]


def spawn(
    monitor: Monitor,
    case: Case,
    program: Path,
    name: str,
    directory: Path | None = None,
    root: Path | None = None,
) -> LinuxMachine:
    """Make the machine of a case."""
    options: dict[str, Any] = {} if root is None else {"root": root}
    if directory is None:
        options["files"] = {f"/in/{name}": data for name, data in case.files.items()}
    else:
        root = options["root"] = directory / name
        for folder in DIRECTORIES:
            (root / folder).mkdir(parents=True)
        for file, data in case.files.items():
            (root / "in" / file).write_bytes(data)
    machine = monitor.spawn(
        program,
        name=name,
        args=case.argv[1:],
        env=case.environment,
        stdin=case.stdin,
        window="2M",
        memory=case.memory,
        **options,
    )
    assert isinstance(machine, LinuxMachine)
    return machine


def outcome(machine: LinuxMachine) -> Outcome:
    """Return what a machine has done."""
    code, fault = machine.exit_code, machine.fault
    if fault is not None and fault.signal is not None:
        code = -signal.Signals[fault.signal]  # as subprocess has it
    assert code is not None, (fault, machine.stdout, machine.stderr)
    written = {
        name.removeprefix("/out/"): data
        for name, data in sorted(machine.files.items())
        if name.startswith("/out/")
    }
    return Outcome(code, machine.stdout, machine.stderr, written)
