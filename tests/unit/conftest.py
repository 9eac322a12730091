"""What several unit tests share: peers with windows in this process."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from unit.compilers import no_cc, no_zig
from unit.exchange_scene import Scene
from unit.remap_scene import FRAMES, LARGE

from vmm.guest.abi import PAGE_SIZE
from vmm.guest.compiler import Compiler, find_compiler
from vmm.memory.movers import RemapWindow
from vmm.memory.movers.park import Park


@pytest.fixture
def scene(no_leaks: None) -> Iterator[Scene]:
    """Peers, an exchange between them, and a host that can be made to refuse."""
    with Scene() as scene:
        yield scene


@pytest.fixture(params=["memfd", "anonymous"])
def each_pool(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Scenes whose pages are the memfd's, and scenes whose pages are moved, each of them."""
    if request.param == "anonymous":
        monkeypatch.setattr(Scene, "make_pool", lambda self, frames: Park(frames, large=1))


@pytest.fixture
def park(no_leaks: None) -> Iterator[Park]:
    """The memory of a few frames that windows move to and fro."""
    park = Park(FRAMES, LARGE)
    yield park
    park.close()


@pytest.fixture
def a(park: Park) -> Iterator[RemapWindow]:
    """One window of the park."""
    window = RemapWindow(park, FRAMES * PAGE_SIZE)
    yield window
    window.close()


@pytest.fixture
def b(park: Park) -> Iterator[RemapWindow]:
    """Another one."""
    window = RemapWindow(park, FRAMES * PAGE_SIZE)
    yield window
    window.close()


@pytest.fixture(
    scope="module",
    params=[
        pytest.param("cc", marks=pytest.mark.skipif(no_cc, reason="no cc")),
        pytest.param("ziglang", marks=pytest.mark.skipif(no_zig, reason="no ziglang wheel")),
    ],
)
def compiler(request: pytest.FixtureRequest) -> Compiler:
    """Each C compiler that guests are built with: the system's, and the wheel's."""
    return find_compiler(request.param)
