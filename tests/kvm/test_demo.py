"""`pageferry demo`: what it prints for people and for machines, and that it is true."""

from __future__ import annotations

import functools
import hashlib
import json
import os
import random
import re
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from command import ROOT, Ended, pageferry, start
from kvm.other_hosts import WITHOUT_SYS_ADMIN
from tests_support import sized

from vmm.guest.demo_tags import DemoTag

MIB = 1 << 20
PAGE = 4096
SMALLER = pytest.mark.smaller_in_lanes("1 MiB instead of 40 or 100, and fewer sizes")
LARGE = pytest.param(sized(100 * MIB, MIB + 1), marks=SMALLER)
SIZES = (*sized([1, 4095, 4096, MIB + 1], []), 4097, LARGE)
KEYS = {"file", "bytes", "sha256", "digest_ok", "backend", "ring", "doorbell", "mover", "steps"}
KEYS |= {"sender_fault", "pfn_before", "pfn_after"}
STEP_KEYS = {"step", "op", "from", "to", "gpa", "pages", "us"}
FAULT_KEYS = {"machine", "gpa", "access", "rip"}
# The file's way, the announcement's, the page's of the proof, and the end's.
ROUTES = [
    ("host", "a", "file"),
    ("a", "b", "inline"),
    ("a", "b", "file"),
    ("b", "a", "file"),
    ("a", "host", "file"),
    ("host", "a", "page"),
    ("a", "b", "page"),
    ("b", "host", "page"),
    ("host", "b", "inline"),
]

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="frame numbers are for root")


def random_file(path: Path, size: int) -> Path:
    """Write a file of random bytes, the same ones each time; large ones repeat every MiB + 1."""
    block = random.Random(size).randbytes(min(size, MIB + 1))
    with path.open("wb") as file:
        for offset in range(0, size, len(block)):
            file.write(block[: size - offset])
    return path


def demo_json(*arguments: str | Path) -> dict[str, Any]:
    ended = pageferry("demo", "--json", *arguments)
    assert ended.code == 0, ended.err
    report: dict[str, Any] = json.loads(ended.out)
    return report


@pytest.fixture(scope="module", params=SIZES)
def file(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return random_file(tmp_path_factory.mktemp("demo") / f"{request.param}.bin", request.param)


@functools.cache
def _report(file: Path, mover: str) -> dict[str, Any]:
    return demo_json(file, "--mover", mover)


@pytest.fixture
def report(file: Path, mover: str) -> dict[str, Any]:
    """The JSON of a demo with a file of each size and with each mover."""
    return _report(file, mover)


def test_the_json_has_every_documented_key_and_says_what_it_ran_on(
    report: dict[str, Any], file: Path, mover: str
) -> None:
    assert report.keys() >= KEYS
    assert (report["file"], report["bytes"]) == (str(file), file.stat().st_size)
    assert report["mover"] == mover
    assert report["backend"] in ("ept", "npt", "shadow")
    assert report["ring"] in (0, 3)
    assert report["doorbell"] in ("mmio", "pio", "hypercall")
    assert all(step.keys() >= STEP_KEYS for step in report["steps"])
    assert report["sender_fault"].keys() >= FAULT_KEYS


def test_the_digest_that_the_guest_computed_is_hashlibs(report: dict[str, Any], file: Path) -> None:
    assert report["sha256"] == hashlib.sha256(file.read_bytes()).hexdigest()
    assert (report["digest_ok"], report["change_ok"], report["touched_ok"]) == (True, True, True)


@needs_root
def test_the_physical_frame_is_the_same_before_and_after(report: dict[str, Any]) -> None:
    assert report["pfn_before"]
    assert report["pfn_before"] == report["pfn_after"]


def test_the_sender_is_stopped_at_the_address_that_it_sent(report: dict[str, Any]) -> None:
    fault = report["sender_fault"]
    sent = [step["gpa"] for step in report["steps"] if (step["op"], step["from"]) == ("send", "a")]
    assert (fault["machine"], fault["access"]) == ("a", "write")
    assert fault["gpa"] == sent[-1]
    assert fault["rip"] > 0
    assert "demo_a.c" in fault["place"]


def test_the_steps_are_numbered_and_take_the_way_of_the_file(
    report: dict[str, Any], file: Path
) -> None:
    steps = report["steps"]
    pages = {"file": -(-file.stat().st_size // PAGE), "page": 1, "inline": 0}
    assert [step["step"] for step in steps] == list(range(1, len(steps) + 1))
    for op in ("send", "deliver"):
        seen = [(s["from"], s["to"], s["pages"]) for s in steps if s["op"] == op]
        assert seen == [(a, b, pages[what]) for a, b, what in ROUTES]
    assert all(step["us"] > 0 for step in steps)


def test_each_send_is_followed_by_a_deliver_of_the_same_pages(report: dict[str, Any]) -> None:
    on_the_way: list[dict[str, Any]] = []
    for step in report["steps"]:
        assert (step["gpa"] is None) == (step["pages"] == 0)
        if step["op"] == "send":
            assert step["owner"] in (None, step["to"] if step["pages"] else None)
            on_the_way.append(step)
            continue
        route = (step["from"], step["to"], step["pages"])
        sent = next(s for s in on_the_way if (s["from"], s["to"], s["pages"]) == route)
        on_the_way.remove(sent)
        assert step["owner"] == (step["to"] if step["pages"] else None)
    assert not on_the_way


def test_a_page_is_sent_from_where_it_was_delivered(report: dict[str, Any]) -> None:
    where: dict[tuple[str, int], int] = {}
    for step in report["steps"]:
        if step["pages"] and step["op"] == "deliver":
            where[step["to"], step["pages"]] = step["gpa"]
        elif step["pages"] and step["from"] != "host":
            assert step["gpa"] == where[step["from"], step["pages"]]


@needs_root
def test_without_the_privilege_the_frame_numbers_are_null_and_the_rest_holds() -> None:
    ended = pageferry("demo", "--json", code=WITHOUT_SYS_ADMIN)
    report = json.loads(ended.out)
    assert (ended.code, report["pfn_before"], report["pfn_after"]) == (0, None, None)
    assert report["digest_ok"]
    assert report["sender_fault"]
    human = pageferry("demo", code=WITHOUT_SYS_ADMIN)
    assert (human.code, "run it as root" in human.out) == (0, True)


@pytest.mark.not_in_lanes("how the report looks")
def test_the_report_shows_steps_owners_times_and_proofs(tmp_path: Path) -> None:
    file = tmp_path / "letters.txt"
    file.write_text("Abc" * 2000)
    ended = pageferry("demo", file, "--mover", "slots")
    assert (ended.code, ended.err) == (0, "")
    assert f"{file}, 6000 B: " in ended.out
    assert "slots mover" in ended.out
    for heading in ("step", "what", "from", "to", "address", "pages", "owner now", "µs"):
        assert heading in ended.out
    rows = [re.split(r"\s*│\s*", line)[1:-1] for line in ended.out.splitlines() if "│" in line]
    assert [(row[0], row[1]) for row in rows[:2]] == [("1", "send"), ("2", "deliver")]
    assert [row[6] for row in rows[:2]] == ["in flight", "a"]
    assert all(row[7].isdigit() for row in rows)
    assert ("before  AbcAbc" in ended.out, "after   aBCaBC" in ended.out) == (True, True)
    assert "✗" not in ended.out
    assert f"SHA-256 {hashlib.sha256(file.read_bytes()).hexdigest()}" in ended.out
    assert re.search(
        r"✓ a touched a page after sending it, and was stopped: write of 0x", ended.out
    )
    assert re.search(r"✓ b has that page", ended.out)
    if os.geteuid() == 0:
        frames = re.findall(r"frame (0x[0-9a-f]+)", ended.out)
        assert (len(frames), len(set(frames))) == (2, 1)


@pytest.mark.not_in_lanes("how the report looks")
def test_what_is_not_a_terminal_gets_no_escapes_and_a_line_for_a_line() -> None:
    out = pageferry("demo").out
    assert "\x1b" not in out
    text = [line for line in out.splitlines() if line[0] not in "┏┃┡│└"]
    starts = ("  a: ", "  b: ", "  before", "  after", "  ✓", "  -", "what ", "is it true?", "/")
    assert [line for line in text if not line.startswith(starts)] == []


@pytest.mark.not_in_lanes("what the command says of a file")
@pytest.mark.parametrize("name", ["a [red]b[bold] ü ☃.bin", "[back\\", "\N{ESCAPE}[31m"])
def test_a_files_name_is_shown_as_it_is_whatever_it_is(tmp_path: Path, name: str) -> None:
    file = random_file(tmp_path / name, 10)
    shown = str(file).replace("\N{ESCAPE}", "\N{REPLACEMENT CHARACTER}")
    ended = pageferry("demo", file)
    assert (ended.code, ended.out.splitlines()[0].split(", 10 B")[0]) == (0, shown)
    assert demo_json(file)["file"] == str(file)


@pytest.mark.not_in_lanes("how the report looks")
def test_a_files_name_may_be_no_text_at_all(tmp_path: Path) -> None:
    file = random_file(Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xff\xfe")), 10)
    assert pageferry("demo", file).code == 0
    assert demo_json(file)["file"] == str(file)


def _events(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_the_trace_has_a_line_of_json_for_every_event(tmp_path: Path) -> None:
    trace = tmp_path / "events.jsonl"
    report = demo_json("--trace", trace)
    events = _events(trace)
    assert events[0]["us"] == 0
    assert [e["us"] for e in events] == sorted(e["us"] for e in events)
    assert {e["event"] for e in events} >= {"spawn", "exit", "send", "deliver", "stop"}
    moves = [e for e in events if e["event"] in ("send", "deliver")]
    assert [(e["event"], e["sender"], e["receiver"]) for e in moves] == [
        (step["op"], step["from"], step["to"]) for step in report["steps"]
    ]
    stops = {e["machine"]: e for e in events if e["event"] == "stop"}
    assert stops["a"]["fault"]["address"] == report["sender_fault"]["gpa"]
    assert (stops["b"]["exit_code"], stops["b"]["fault"]) == (0, None)


def test_without_a_file_it_takes_one_of_its_own() -> None:
    assert demo_json()["bytes"] > 0


def test_the_guests_tags_are_the_hosts() -> None:
    header = (ROOT / "guests" / "include" / "demo.h").read_text()
    tags = {name: int(number) for name, number in re.findall(r"DEMO_([A-Z]+) = (\d+)", header)}
    assert tags == {tag.name: tag.value for tag in DemoTag}


@pytest.mark.not_in_lanes("how the report looks")
def test_progress_is_shown_on_a_terminal_and_gone_when_done(tmp_path: Path) -> None:
    file = random_file(tmp_path / "large", 40 * MIB)
    done = on_a_terminal("demo", file)
    assert done.code == 0, done.out
    progress, report = done.out.split("what moved")
    for bar in ("reading the file", "b works on it in place", "checking what came back"):
        assert bar in progress
        assert bar not in report
    assert progress.rindex("\x1b[?25h") > progress.rindex("\x1b[?25l")  # the cursor is back


def on_a_terminal(*arguments: str | Path) -> Ended:
    """Run the command with a terminal for its output; return what it showed there."""
    ours, theirs = os.openpty()
    process = start(*arguments, stdout=theirs, stderr=theirs, env={"TERM": "xterm"})
    os.close(theirs)
    shown = b""
    with process, suppress(OSError):  # EIO, once nobody has the other side open any more
        while data := os.read(ours, 1 << 16):
            shown += data
    os.close(ours)
    return Ended(process.returncode, shown.decode(), "")
