"""What errors say."""

from __future__ import annotations

import copy
import json
import pickle
import threading

import pytest

from vmm import errors
from vmm.errors import GuestFault, HostError, PageferryError, Place
from vmm.guest.abi import Status


@pytest.mark.parametrize(
    ("place", "text"),
    [
        (Place(), ""),
        (Place("main", 0x1C, "echo.c", 20), "main+0x1c at echo.c:20"),
        (Place("main", 0), "main+0x0"),
        (Place(file="echo.c", line=20), "echo.c:20"),
    ],
)
def test_a_place_is_said_as_far_as_it_is_known(place: Place, text: str) -> None:
    assert str(place) == text


def test_a_fault_says_machine_reason_instruction_and_place_in_one_line() -> None:
    fault = GuestFault(
        "access", "bob", "write of 0x100000000", rip=0x201010, place=Place("main", 4, "b.c", 9)
    )
    assert str(fault) == "bob: write of 0x100000000, rip 0x201010 (main+0x4 at b.c:9)"


def test_what_a_fault_does_not_know_it_leaves_out() -> None:
    assert str(GuestFault("killed", "bob", "killed by the host")) == "bob: killed by the host"
    assert str(GuestFault("halt", "bob", "HLT", rip=0)) == "bob: HLT, rip 0x0"


def test_the_details_of_a_fault_are_lines_and_none_where_nothing_is_known() -> None:
    assert GuestFault("killed", "bob", "killed").details() == ""
    fault = GuestFault(
        "signal",
        "bob",
        "SIGABRT",
        registers={"rax": 1, "rbx": 2, "rcx": 3, "rip": 1 << 47},
        calls=["getpid() = 1"],
        printed=["one", "", "\x1b[2J"],
    )
    assert fault.details().splitlines() == [
        *("registers:", f"  rax    {1:016x}  rbx    {2:016x}  rcx    {3:016x}"),
        *(
            f"  rip    {1 << 47:016x}",
            "last printed:",
            "  one",
            "",
            "  \N{REPLACEMENT CHARACTER}[2J",
        ),
        *("last calls:", "  getpid() = 1"),
    ]


def test_a_fault_as_json_has_every_field_known_or_not() -> None:
    fault = GuestFault(
        "exception",
        "bob",
        "#PF page fault",
        vector=14,
        error_code=2,
        address=0,
        access="write",
        rip=0x201010,
        place=Place("main", 4, "b.c", 9),
    )
    assert json.loads(json.dumps(fault.as_json())) == {
        "kind": "exception",
        "machine": "bob",
        "reason": "#PF page fault",
        "vector": 14,
        "error_code": 2,
        "address": 0,
        "access": "write",
        "rip": 0x201010,
        "symbol": "main",
        "file": "b.c",
        "line": 9,
        "signal": None,
        "registers": None,
        "calls": [],
        "printed": [],
    }
    unknown = GuestFault("killed", "bob", "killed").as_json()
    assert unknown.keys() == fault.as_json().keys()
    assert unknown["symbol"] is unknown["line"] is unknown["vector"] is None


def test_a_host_error_says_what_is_wrong_and_what_to_do() -> None:
    error = HostError("no /dev/kvm", "load the kvm module")
    assert str(error) == "no /dev/kvm: load the kvm module"
    assert (error.what, error.fix) == ("no /dev/kvm", "load the kvm module")


def test_every_error_can_be_caught_as_one_of_ours() -> None:
    kinds = [kind for kind in vars(errors).values() if isinstance(kind, type)]
    raised = {kind for kind in kinds if issubclass(kind, Exception)}
    assert len(raised) > 5
    assert all(issubclass(kind, PageferryError) for kind in raised)


# ---- The place of a fault ----


def fault_at(place: object) -> GuestFault:
    return GuestFault("exception", "bob", "#UD invalid opcode", rip=0x201010, place=place)  # type: ignore[arg-type]


def test_the_place_is_looked_up_when_it_is_asked_for_and_only_once() -> None:
    asked = []

    def place() -> Place:
        asked.append(threading.get_ident())
        return Place("main", 4, "b.c", 9)

    fault = fault_at(place)
    assert (fault.kind, fault.rip, fault.args[1]) == ("exception", 0x201010, "bob")
    assert "bob" in repr(fault)
    assert asked == []
    text = str(fault)
    assert text == "bob: #UD invalid opcode, rip 0x201010 (main+0x4 at b.c:9)"
    assert str(fault) == text
    assert fault.as_json()["line"] == fault.place.line == 9
    assert asked == [threading.get_ident()]


def test_a_look_up_that_is_interrupted_begins_again() -> None:
    answers: list[Place | None] = [None, Place("main")]

    def place() -> Place:
        answer = answers.pop(0)
        if answer is None:
            raise KeyboardInterrupt
        return answer

    fault = fault_at(place)
    with pytest.raises(KeyboardInterrupt):
        str(fault)
    assert fault.place == Place("main")


@pytest.mark.parametrize("again", [lambda e: pickle.loads(pickle.dumps(e)), copy.copy])
def test_every_error_can_be_pickled(again: object) -> None:
    assert callable(again)
    fault = fault_at(lambda: Place("main", 4, "b.c", 9))
    other = again(fault)
    assert (type(other), str(other), other.as_json()) == (GuestFault, str(fault), fault.as_json())
    assert other.place == fault.place
    host = again(HostError("no /dev/kvm", "load the kvm module"))
    assert (str(host), host.fix) == ("no /dev/kvm: load the kvm module", "load the kvm module")
    refused = again(errors.GuestError("cannot send: E_DEAD", Status.E_DEAD))
    assert (str(refused), refused.status) == ("cannot send: E_DEAD", Status.E_DEAD)
    for kind in (errors.ConfigError, errors.GuestImageError, errors.ClosedError):
        assert str(again(kind("x: wrong"))) == "x: wrong"


def test_what_is_said_of_a_fault_is_printable() -> None:
    mark = "\N{REPLACEMENT CHARACTER}"
    fault = GuestFault("killed", "bob", "by\x1b[2J\nalice")
    assert fault.reason == fault.as_json()["reason"] == f"by{mark}[2J{mark}alice"
    assert str(fault) == f"bob: by{mark}[2J{mark}alice"
    assert str(errors.ConfigError("a\nb\u202ec")) == f"a{mark}b{mark}c"
