"""The audit of mappings sees whatever is not as the ledger has it: tampered with, unknown to it."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from unit.refused_scene import RefusedScene, Refuser, small_scenes

from vmm.ferry.books import LedgerError
from vmm.guest.abi import PAGE_SIZE, Operation
from vmm.memory import mapping
from vmm.memory.movers import MappedWindow, SlotsWindow
from vmm.memory.movers.slots import _Slot

__all__ = ["small_scenes"]

pytestmark = pytest.mark.usefixtures("small_scenes")


def scene_of(mover: str) -> RefusedScene:
    """A scene in which `a` owns pages 0 to 3, and lends 4 and 5 to `b`, to be read."""
    scene = RefusedScene(mover, Refuser())
    scene.join_frames()
    _, lent = scene.alloc(scene.a, 4, 2)
    scene.pass_on(scene.a, Operation.LEND, lent, to=scene.b, writable=False)
    scene.check()
    return scene


def hide(scene: RefusedScene, at: int) -> None:
    mapping.hide(at, PAGE_SIZE)


def show_another(scene: RefusedScene, at: int) -> None:
    mapping.show(at, PAGE_SIZE, scene.pool.fd, 20 * PAGE_SIZE)


def only_read(scene: RefusedScene, at: int) -> None:
    mapping.protect(at, PAGE_SIZE, writable=False)


def put_private_memory(scene: RefusedScene, at: int) -> None:
    with mapping.Mapping.anonymous(PAGE_SIZE) as other:
        mapping.move(other.address, at, PAGE_SIZE)


def unmap(scene: RefusedScene, at: int) -> None:
    mapping.Mapping(at, PAGE_SIZE).close()


SHOWN, HIDDEN = 1, 30
EVERYWHERE = (show_another, put_private_memory, unmap)


@pytest.mark.parametrize(
    ("mover", "page", "tamper"),
    [
        *((m, HIDDEN, t) for m in ("memfd", "remap") for t in EVERYWHERE),
        *(("memfd", SHOWN, t) for t in (hide, only_read, *EVERYWHERE)),
        *(("remap", SHOWN, t) for t in (hide, only_read, show_another, unmap)),
    ],
)
def test_a_mapping_that_is_not_what_it_should_be_is_found(
    mover: str, page: int, tamper: Callable[[RefusedScene, int], None]
) -> None:
    with scene_of(mover) as scene:
        window = scene.a.window
        assert isinstance(window, MappedWindow)
        tamper(scene, window.mapping.address + page * PAGE_SIZE)
        with pytest.raises(LedgerError, match=r"^a (reaches|does not reach) "):
            scene.exchange.audit(mappings=True)
        scene.exchange.audit()  # the books alone are sound


@pytest.mark.parametrize("mover", ["memfd", "remap"])
def test_what_was_to_be_read_and_can_be_written_is_found(mover: str) -> None:
    with scene_of(mover) as scene:
        mapping.protect(scene.b.window.address(0), PAGE_SIZE, writable=True)
        with pytest.raises(LedgerError, match=r"b reaches frame .* writable"):
            scene.exchange.audit(mappings=True)


def lost(window: SlotsWindow, slot: _Slot) -> None:
    window._delete(slot)


def elsewhere(window: SlotsWindow, slot: _Slot) -> None:
    window._delete(slot)
    window._create(slot._replace(address=slot.address + PAGE_SIZE))


def writable(window: SlotsWindow, slot: _Slot) -> None:
    window._delete(slot)
    window._create(slot._replace(writable=not slot.writable))


@pytest.mark.parametrize("mover", ["slots", "park"])
@pytest.mark.parametrize("tamper", [lost, elsewhere, writable])
def test_a_memslot_that_is_not_what_it_should_be_is_found(
    mover: str, tamper: Callable[[SlotsWindow, _Slot], None]
) -> None:
    with scene_of(mover) as scene:
        window = scene.b.window
        assert isinstance(window, SlotsWindow)
        tamper(window, window.overlapping(0, 1)[0])
        with pytest.raises(LedgerError, match=r"^b (reaches|does not reach) "):
            scene.exchange.audit(mappings=True)


@pytest.mark.parametrize("mover", ["memfd", "remap", "slots", "park", "both"])
def test_what_the_dead_have_is_not_looked_at(mover: str) -> None:
    with scene_of(mover) as scene:
        scene.exchange.leave(scene.b)
        scene.exchange.audit(mappings=True)
