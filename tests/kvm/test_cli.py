"""`pageferry run` and `pageferry build`, as a user runs them."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from command import Ended, one_line, pageferry

from vmm import __version__
from vmm.guest.abi import Status

Elf = Callable[[str], Path]
SMALL = ("--window", "2M")
KEYS = {"name", "exit_code", "fault", "messages_sent", "messages_received"}

pytestmark = pytest.mark.not_in_lanes("options, names, output and exit codes of the command")


def called(folder: Path, name: str, guest: Path) -> Path:
    """Return a guest's ELF under another name, which is its machine's."""
    link = folder / f"{name}.elf"
    link.symlink_to(guest)
    return link


def outcomes(ended: Ended) -> dict[str, dict[str, Any]]:
    """Return what `run --json` printed, by name."""
    machines = json.loads(ended.out)
    assert all(machine.keys() == KEYS for machine in machines)
    return {machine["name"]: machine for machine in machines}


def test_an_echo_pair_runs_with_its_console_named_and_exits_0(guest_elf: Elf, mover: str) -> None:
    ended = pageferry("run", guest_elf("echo_client"), guest_elf("echo_server"), "--mover", mover)
    assert ended == Ended(0, "echo_client: 100 messages there and back\n", "")


def test_json_has_an_object_per_machine_and_the_console_goes_to_standard_error(
    guest_elf: Elf,
) -> None:
    ended = pageferry("run", guest_elf("echo_client"), guest_elf("echo_server"), "--json")
    assert (ended.code, ended.err) == (0, "echo_client: 100 messages there and back\n")
    server = {"name": "echo_server", "exit_code": 0, "fault": None}
    assert outcomes(ended)["echo_server"] == {
        **server,
        "messages_sent": 100,
        "messages_received": 101,
    }


def test_the_stack_is_as_large_as_asked_for(test_guest: Elf, tmp_path: Path) -> None:
    guest = called(tmp_path, "fits-900", test_guest("frames"))
    ended = pageferry("run", guest, *SMALL, "--memory", "18M", "--stack", "1M")
    assert ended == Ended(0, "fits-900: fits-900 was no more than the stack\n", "")
    ended = pageferry("run", guest, *SMALL, "--memory", "18M", "--stack", "64K")
    assert (ended.code, ended.out) == (70, "")
    assert "the guard area below the stack: stack overflow, rip" in one_line(ended.err)
    ended = pageferry("run", guest, *SMALL, "--stack", "32M")
    assert (ended.code, ended.out) == (1, "")
    assert "with a stack of 32 MiB is too small: give more" in one_line(ended.err)


def test_guests_of_the_same_name_are_numbered(
    guest_elf: Elf, test_guest: Elf, tmp_path: Path
) -> None:
    again = tmp_path / "canary.elf"
    again.symlink_to(guest_elf("canary"))
    ended = pageferry("run", guest_elf("canary"), test_guest("says_hello"), again, *SMALL, "--json")
    assert list(outcomes(ended)) == ["canary", "says_hello", "canary-2"]


@pytest.mark.parametrize(
    ("stem", "name"),
    [("host", "host-2"), ("x" * 60, "x" * 27), ("ü" * 30, "ü" * 13), ("a\tb\n", "a_b_")],
)
def test_a_file_whose_name_no_machine_may_have_runs_all_the_same(
    guest_elf: Elf, tmp_path: Path, stem: str, name: str
) -> None:
    link = tmp_path / f"{stem}.elf"
    link.symlink_to(guest_elf("canary"))
    ended = pageferry("run", link, *SMALL, "--json")
    assert (ended.code, list(outcomes(ended))) == (0, [name])


@pytest.mark.parametrize(("returned", "code"), [(256, 1), (-1, 255), (300, 44)])
def test_a_guests_exit_code_becomes_the_commands_modulo_256(
    test_guest: Elf, tmp_path: Path, returned: int, code: int
) -> None:
    guest = called(tmp_path, f"exit{returned}", test_guest("exit_as_named"))
    ended = pageferry("run", guest, *SMALL, "--json")
    assert (ended.code, outcomes(ended)[guest.stem]["exit_code"]) == (code, returned)


def test_the_first_exit_code_that_is_not_0_is_the_commands(test_guest: Elf, tmp_path: Path) -> None:
    elf = test_guest("exit_as_named")
    guests = [called(tmp_path, f"exit{code}", elf) for code in (0, 5, 6)]
    assert pageferry("run", *guests, *SMALL).code == 5


def test_a_fault_is_one_line_and_code_70(guest_elf: Elf) -> None:
    ended = pageferry("run", guest_elf("faults/wild_pointer"))
    assert (ended.code, ended.out) == (70, "")
    assert re.fullmatch(
        r"wild_pointer: #PF page fault, read of 0x[0-9a-f]+, "
        r"rip 0x[0-9a-f]+ \(main\+0x[0-9a-f]+ at wild_pointer\.c:\d+\)",
        one_line(ended.err),
    )


def test_a_fault_is_in_the_json_too(guest_elf: Elf) -> None:
    ended = pageferry("run", guest_elf("faults/divide_by_zero"), "--json")
    machine = outcomes(ended)["divide_by_zero"]
    assert (ended.code, machine["exit_code"]) == (70, None)
    assert (machine["fault"]["kind"], machine["fault"]["vector"]) == ("exception", 0)
    assert machine["fault"]["file"] == "divide_by_zero.c"


def test_the_time_out_is_code_124_and_says_where_the_guest_was(guest_elf: Elf) -> None:
    ended = pageferry("run", guest_elf("faults/endless_loop"), "--timeout", "0.2")
    assert ended.code == 124
    assert re.match(r"endless_loop: still running after 0\.2 seconds", one_line(ended.err))


def test_guests_that_wait_for_each_other_for_ever_are_told_apart_and_ended(
    test_guest: Elf, tmp_path: Path
) -> None:
    guests = [called(tmp_path, name, test_guest("idle")) for name in ("tick", "tock")]
    ended = pageferry("run", *guests, *SMALL)
    lines = ended.err.splitlines()
    assert (ended.code, len(lines)) == (70, 2)
    for name, line in zip(("tick", "tock"), lines, strict=True):
        assert line.startswith(
            f"pageferry: {name}: waits for a message, and nobody is left to send one"
        )


def test_all_guests_are_peers_of_one_another(test_guest: Elf, tmp_path: Path) -> None:
    elf = test_guest("greet_third")
    guests = [called(tmp_path, name, elf) for name in ("first", "second")]
    third = called(tmp_path, "third", test_guest("greeted_twice"))
    ended = pageferry("run", *guests, third, *SMALL, "--workers", "2")
    assert ended == Ended(0, "third: 2 bytes\n", "")


def pair(test_guest: Elf, folder: Path) -> tuple[Path, Path]:
    """Return two guests, "a" and "b": each sends to the other, and exits with the status."""
    elf = test_guest("one_way")
    return called(folder, "a", elf), called(folder, "b", elf)


def test_connect_opens_a_channel_both_ways_and_is_all_that_there_is(
    test_guest: Elf, tmp_path: Path
) -> None:
    guests = pair(test_guest, tmp_path)
    third = called(tmp_path, "third", test_guest("exit_as_named"))
    ended = pageferry("run", *guests, third, *SMALL, "--connect", "b:a", "--json")
    codes = [outcomes(ended)[name]["exit_code"] for name in ("a", "b")]
    assert sorted(codes) in ([0, 0], [0, -Status.E_DEAD])  # the other had exited already
    ended = pageferry("run", *guests, third, *SMALL, "--connect", "b:third", "--json")
    codes = [outcomes(ended)[name]["exit_code"] for name in ("a", "b")]
    assert codes == [-Status.E_PEER, -Status.E_PEER]


def test_one_way_opens_a_channel_in_one_direction(test_guest: Elf, tmp_path: Path) -> None:
    guests = pair(test_guest, tmp_path)
    ended = pageferry("run", *guests, *SMALL, "--one-way", "a:b", "--json")
    assert outcomes(ended)["a"]["exit_code"] in (0, -Status.E_DEAD)  # it may have exited already
    assert outcomes(ended)["b"]["exit_code"] == -Status.E_PEER


def test_a_channel_that_cannot_be_is_one_line_and_code_2(guest_elf: Elf) -> None:
    guests = (guest_elf("canary"), guest_elf("canary"))
    ended = pageferry("run", *guests, "--one-way", "canary:canary-2", "--connect", "canary:cannery")
    assert (ended.code, ended.out) == (2, "")
    assert one_line(ended.err) == (
        "--connect 'canary:cannery': no machine is called 'cannery': there are canary, canary-2"
    )


def test_the_audit_is_in_the_json_beside_the_machines(guest_elf: Elf) -> None:
    ended = pageferry("run", guest_elf("canary"), *SMALL, "--audit", "--json")
    printed = json.loads(ended.out)
    assert (ended.code, printed.keys()) == (0, {"machines", "pages", "pool"})
    assert [machine["name"] for machine in printed["machines"]] == ["canary"]
    states = {"free", "owned", "in_flight", "lent", "shared", "orphaned"}
    assert printed["pages"] == {**dict.fromkeys(states, 0), "free": 512}
    assert printed["pool"] == 512


@pytest.mark.parametrize(("quota", "code"), [("8K", 0), ("4K", 70)])
def test_a_quota_bounds_what_a_machine_may_own(guest_elf: Elf, quota: str, code: int) -> None:
    guests = [guest_elf(name) for name in ("lender", "worker")]
    ended = pageferry("run", *guests, *SMALL, "--quota", quota)
    assert (ended.code, "pf_alloc(PAGES, &buffer) == PF_OK" in ended.err) == (code, code != 0)


def test_a_queue_bounds_what_waits_for_a_machine(guest_elf: Elf, tmp_path: Path) -> None:
    trace = tmp_path / "trace"
    guests = [guest_elf(f"stage_{name}") for name in ("source", "filter", "sink")]
    assert pageferry("run", *guests, *SMALL, "--queue", "2", "--trace", trace).code == 0
    waiting = 0
    for event in map(json.loads, trace.read_text().splitlines()):
        if event.get("receiver") == "stage_filter" and event["status"] == "OK":
            waiting += -1 if event["event"] == "deliver" else 1
            assert 0 <= waiting <= 2
    assert waiting == 0


def test_a_guest_in_the_current_directory_needs_no_path(test_guest: Elf, tmp_path: Path) -> None:
    called(tmp_path, "hello", test_guest("says_hello"))
    assert pageferry("run", "hello.elf", *SMALL, cwd=tmp_path) == Ended(3, "hello: hello\n", "")


def test_the_run_has_a_trace_too(guest_elf: Elf, tmp_path: Path) -> None:
    trace = tmp_path / "trace"
    ended = pageferry("run", guest_elf("canary"), *SMALL, "--trace", trace)
    assert ended.code == 0
    events = [json.loads(line)["event"] for line in trace.read_text().splitlines()]
    assert (events[-1], "exit" in events) == ("stop", True)


def test_the_trace_can_go_to_standard_error(guest_elf: Elf) -> None:
    ended = pageferry("run", guest_elf("echo_client"), guest_elf("echo_server"), "--trace", "-")
    assert (ended.code, ended.out) == (0, "echo_client: 100 messages there and back\n")
    events = [json.loads(line) for line in ended.err.splitlines()]
    assert [event["event"] for event in events].count("deliver") == 201
    assert (events[0]["event"], events[-1]["event"]) == ("spawn", "stop")


def test_a_guest_cannot_steer_the_terminal(guest_elf: Elf) -> None:
    ended = pageferry("run", guest_elf("faults/panic"))
    assert ended.code == 70
    assert "\x1b" not in one_line(ended.err)


def test_version_and_help_need_nothing() -> None:
    assert pageferry("--version") == Ended(0, f"pageferry, version {__version__}\n", "")
    for arguments, words in (
        (("--help",), ("demo", "run", "build")),
        (("demo", "-h"), ("[FILE]", "--json", "--trace", "--mover", "--window")),
        (("run", "--help"), ("FILE", "--memory", "--workers", "--connect", "--audit", "--strace")),
        (("build", "--help"), ("SOURCES", "--output", "--cc")),
    ):
        ended = pageferry(*arguments)
        assert (ended.code, ended.err) == (0, "")
        assert all(word in ended.out for word in words), ended.out
