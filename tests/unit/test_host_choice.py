"""Ring, doorbell and mover, and the reasons, from what canaries did on hosts of each kind."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from vmm.errors import HostError
from vmm.guest.abi import Doorbell
from vmm.host import canary, choice
from vmm.host.canary import LATE, SLOW, Song, timed
from vmm.host.choice import Songs
from vmm.host.facts import Host
from vmm.host.hugepages import HugePages
from vmm.host.module import Backend
from vmm.host.quirks import QUIRKS, Probed, applying, table

MMIO, PIO, VMCALL, VMMCALL = Doorbell.MMIO, Doorbell.PIO, Doorbell.VMCALL, Doorbell.VMMCALL
WELL = Song(5.0, True, "", 1.0)
LATE_ONE = Song(5.0, False, LATE)
SLOW_ONE = Song(40.0, False, SLOW, 700.0)
GAVE_UP = Song(40.0, False, "the instruction emulator gave up", 700.0)

NATIVE: Songs = {(0, VMMCALL): WELL, **{(r, b): WELL for r in (0, 3) for b in (PIO, MMIO)}}
OLD: Songs = {(r, b): WELL for r in (0, 3) for b in (PIO, MMIO)}
TAKEN: Songs = {**NATIVE, (0, VMMCALL): Song(None, False, "no answer in time")}
EMULATED: Songs = {
    (0, VMCALL): Song(None, False, choice.NOT_TRIED),
    (0, PIO): GAVE_UP,
    (0, MMIO): GAVE_UP,
    (3, PIO): Song(None, False, "#GP general protection"),
    (3, MMIO): WELL,
}
DEAD: Songs = {(r, MMIO): Song(None, False, "triple fault") for r in (0, 3)}


def test_a_native_ring_0_is_used_and_else_ring_3() -> None:
    native, emulated = choice.ring(NATIVE), choice.ring(EMULATED)
    assert (native.value, emulated.value) == (0, 3)
    assert "native" in native.why
    assert "1.0 ns" in native.why
    for words in ("ring 0 is emulated", "emulator gave up", "700.0 ns", "ring 3 is native"):
        assert words in emulated.why
    with pytest.raises(HostError, match="triple fault") as raised:
        choice.ring(DEAD)
    assert "less busy" not in raised.value.fix
    late = {key: song._replace(why=LATE) for key, song in DEAD.items()}
    with pytest.raises(HostError, match="less busy"):
        choice.ring(late)


@pytest.mark.parametrize(
    ("songs", "ring", "best", "words"),
    [
        (NATIVE, 0, VMMCALL, ("registers",)),
        (OLD, 0, PIO, ("decode", "hypercall: the kernel hands none to user space")),
        (TAKEN, 0, PIO, ("hypercall: no answer in time",)),
        (NATIVE, 3, PIO, ("hypercall: KVM refuses it in ring 3",)),
        (EMULATED, 3, MMIO, ("every host", "pio: #GP general protection")),
        (EMULATED, 0, PIO, ("hypercall: not tried: ring 0 is not native",)),
    ],
)
def test_the_doorbell_is_the_best_that_rang_and_the_reason_names_the_better_ones(
    songs: Songs, ring: int, best: Doorbell, words: tuple[str, ...]
) -> None:
    value, why = choice.doorbell(songs, ring)
    assert value is best
    assert all(word in why for word in words), why


def test_a_doorbell_by_name_is_given_where_it_rang_and_refused_elsewhere() -> None:
    assert choice.named_doorbell(NATIVE, 0, "hypercall") is VMMCALL
    assert choice.named_doorbell(EMULATED, 0, "mmio") is MMIO
    with pytest.raises(HostError, match=r"pio doorbell does not work in ring 3.*use mmio"):
        choice.named_doorbell(EMULATED, 3, "pio")
    with pytest.raises(HostError, match=r"guests cannot run in ring 3.*--ring 0"):
        choice.named_doorbell({(3, MMIO): GAVE_UP._replace(exit_us=None)}, 3, "mmio")


@pytest.mark.parametrize(
    ("anonymous", "memfd", "strict", "best", "words"),
    [
        (False, False, False, "memfd", "no memory gets huge pages"),
        (False, True, False, "memfd", "memfds get huge pages"),
        (True, True, False, "memfd", "memfds get huge pages"),
        (True, False, False, "remap", "anonymous memory gets huge pages"),
        (True, False, True, "memfd", "overcommit_memory is 2"),
    ],
)
def test_the_mover_is_one_that_moves_huge_pages_and_the_reason_names_the_memslots(
    anonymous: bool, memfd: bool, strict: bool, best: str, words: str
) -> None:
    value, why = choice.mover(509, HugePages(anonymous, memfd), strict=strict)
    assert value == best
    assert words in why
    assert "509" in why


# ---- The canary's times ----


def test_a_whole_song_is_timed_by_its_last_loop() -> None:
    took = [900.0, *[5.0] * 23, 5.0, 5.0, 5.0, 105.0]
    assert timed(took, whole=True) == Song(5.0, True, "", 1.0)


def test_one_that_stops_is_timed_by_the_quickest_of_its_short_loops() -> None:
    took = [900.0, *[40.0] * 23, 141.0, 140.0, 9000.0]
    assert timed(took, whole=False) == Song(40.0, False, "", 100.0)
    assert timed(took[:25], whole=False) == Song(40.0)
    assert timed([900.0], whole=False) == timed([], whole=False) == Song(None)


def test_noise_never_makes_a_loop_take_less_than_nothing() -> None:
    assert timed([9.0, *[5.0] * 23, 4.0, 4.0, 4.0], whole=False).loop_ns == 0


def test_one_whose_instructions_are_emulated_is_not_native_however_whole_it_is() -> None:
    took = [900.0, *[40.0] * 23, 741.0, 740.0, 9000.0]
    assert timed(took, whole=False) == Song(40.0, False, SLOW, 700.0)
    assert timed([*took, 90_000.0], whole=True) == Song(40.0, False, SLOW, 700.0)


@pytest.mark.parametrize(
    ("songs", "tries"),
    [
        ([WELL], 1),
        ([GAVE_UP], 1),
        ([LATE_ONE, WELL], 2),
        ([SLOW_ONE, WELL], 2),
        ([SLOW_ONE, SLOW_ONE], 2),
        ([LATE_ONE, LATE_ONE, LATE_ONE], 3),
        ([LATE_ONE, SLOW_ONE, WELL], 3),
    ],
)
def test_a_busy_host_gets_more_time(
    monkeypatch: pytest.MonkeyPatch, songs: list[Song], tries: int
) -> None:
    given: list[float] = []

    def once(kvm: object, ring: int, doorbell: Doorbell, seconds: float) -> Song:
        given.append(seconds)
        return songs[len(given) - 1]

    monkeypatch.setattr(canary, "_sing_once", once)
    kvm: Any = None
    assert canary.sing(kvm, 0, MMIO) == songs[-1]
    assert given == list(canary.PATIENCE[:tries])


# ---- Quirks ----


def probed(
    songs: Songs, kernel: tuple[int, int], *, memfd: bool = False, fault_info: bool = True
) -> Probed:
    host = Host(Backend.SHADOW, choice.ring(songs).value, dict(songs), 509, kernel)
    return Probed(host, HugePages(True, memfd), fault_info, {"kvm.nx_huge_pages": "N"})


def names(what: Probed) -> set[str]:
    return {quirk.name for quirk in applying(what)}


ALWAYS = {"ring-3-hypercall", "hidden-memory", "pending-instruction"}


def test_quirks_apply_by_what_was_probed() -> None:
    assert names(probed(NATIVE, (6, 8), memfd=True)) == ALWAYS
    assert names(probed(NATIVE, (6, 7), fault_info=False)) == ALWAYS | {
        "stale-exit-reason",
        "no-fault-address",
        "small-memfd",
    }
    assert names(probed(EMULATED, (6, 13), memfd=True)) == ALWAYS | {
        "emulated-ring",
        "lost-iopl",
        "hypercall-livelock",
        "recovery-task",
    }


def test_what_the_kernel_does_not_promise_cannot_livelock() -> None:
    silent = {key: song for key, song in EMULATED.items() if key[1] is not VMCALL}
    assert "hypercall-livelock" not in names(probed(silent, (6, 8)))


def test_recovery_tasks_do_not_come_where_the_mitigation_is_off_for_good() -> None:
    what = probed(NATIVE, (6, 13))._replace(parameters={"kvm.nx_huge_pages": "never"})
    assert "recovery-task" not in names(what)


def test_every_quirk_says_all_there_is_to_say_and_can_be_named() -> None:
    assert len({quirk.name for quirk in QUIRKS}) == len(QUIRKS)
    for quirk in QUIRKS:
        assert all(quirk.as_json().values()), quirk.name
        assert "|" not in "".join(quirk.as_json().values())


def test_the_table_in_the_manual_is_the_programs_own() -> None:
    manual = Path(__file__).resolve().parent.parent.parent / "docs" / "hosts.md"
    assert table() in manual.read_text(), "python -m vmm.host.quirks prints it"
