"""Machines where streams, variables and limits are not what they should be."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from command import Ended, one_line, pageferry
from environments import ENVIRONMENTS, check, through_a_pipe_that_does_not_block, within

Elf = Callable[[str], Path]
NAMELESS = "no name, no home"  # who may not use KVM as a rule
ELSEWHERE = {NAMELESS, "no columns", "odd columns", "no standard input"}
LINES = [f"says_much: line {i} of a thousand" for i in range(1000)]

pytestmark = pytest.mark.not_in_lanes("what the command makes of its environment")


@pytest.mark.parametrize("name", sorted(ENVIRONMENTS.keys() - ELSEWHERE))
def test_guests_run_everywhere(guest_elf: Elf, tmp_path: Path, name: str) -> None:
    guests = (guest_elf("echo_client"), guest_elf("echo_server"))
    check(name, within(name, tmp_path, "run", *guests, "--window", "2M"))


@pytest.mark.parametrize(
    "name",
    ["no streams", "full standard output", "C locale", "no columns", "odd columns"],
)
def test_the_demo_runs_everywhere(tmp_path: Path, name: str) -> None:
    check(name, within(name, tmp_path, "demo"))


@pytest.mark.parametrize(
    "name",
    ["no standard output", "full standard output", "ASCII streams", "no columns", "no directory"],
)
def test_the_doctor_examines_every_host(tmp_path: Path, name: str) -> None:
    check(name, within(name, tmp_path, "doctor"))


def test_the_doctor_examines_a_host_for_somebody_without_a_name() -> None:
    ended = within(NAMELESS, Path("/"), "doctor", "--json")
    found = json.loads(ended.out)
    assert (ended.code, ended.err) == (0 if found["permitted"] else 69, "")


def test_guests_wait_for_output_that_does_not_block(test_guest: Elf) -> None:
    guest = test_guest("says_much")
    ended = through_a_pipe_that_does_not_block("run", guest, stream="stdout")
    assert (ended.code, ended.err, ended.out.splitlines()) == (0, "", LINES)
    ended = through_a_pipe_that_does_not_block("run", guest, "--json", stream="stderr")
    assert (ended.code, ended.err.splitlines()) == (0, LINES)


def test_a_trace_waits_for_a_stream_that_does_not_block(guest_elf: Elf) -> None:
    guests = (guest_elf("echo_client"), guest_elf("echo_server"))
    ended = through_a_pipe_that_does_not_block("run", *guests, "--trace", "-", stream="stderr")
    events = [json.loads(line)["event"] for line in ended.err.splitlines()]
    assert (ended.code, events.count("deliver"), events[-1]) == (0, 201, "stop")


def test_a_trace_can_go_where_standard_output_goes(guest_elf: Elf) -> None:
    # A nested lane's initramfs has not the links that udev makes.
    there = "/dev/stdout" if Path("/dev/stdout").exists() else "/proc/self/fd/1"
    ended = pageferry("run", guest_elf("canary"), "--window", "2M", "--trace", there)
    events = [json.loads(line)["event"] for line in ended.out.splitlines()]
    assert (ended.code, ended.err, events[0], events[-1]) == (0, "", "spawn", "stop")


def test_what_nobody_reads_any_more_ends_guests_quietly(test_guest: Elf) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    try:
        ended = pageferry("run", test_guest("says_much"), "--window", "2M", stdout=writer)
    finally:
        os.close(writer)
    assert ended == Ended(1, "", "")


def test_names_that_are_no_text_are_files_like_others(guest_elf: Elf, tmp_path: Path) -> None:
    guest = tmp_path / os.fsdecode(b"caf\xe9\xff.elf")
    guest.symlink_to(guest_elf("canary"))
    trace = tmp_path / os.fsdecode(b"\xff")
    ended = pageferry("run", guest, "--window", "2M", "--json", "--trace", trace)
    assert (ended.code, ended.err, json.loads(ended.out)[0]["name"]) == (0, "", "caf__")
    assert trace.is_file()
    ended = pageferry("demo", guest)
    assert (ended.code, ended.err) == (0, "")
    ended = pageferry("demo", tmp_path / os.fsdecode(b"no\xff"))
    assert (ended.code, "No such file" in one_line(ended.err)) == (1, True)


def test_a_window_is_rounded_up_for_the_command_as_for_the_monitor(guest_elf: Elf) -> None:
    ended = pageferry("run", guest_elf("canary"), "--window", "1", "--audit", "--json")
    assert (ended.code, json.loads(ended.out)["pool"]) == (0, 512)
    assert pageferry("demo", "--window", "4097", "--json").code == 0
