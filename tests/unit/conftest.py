"""What several unit tests share: peers with windows in this process."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from unit.compilers import no_cc, no_zig
from unit.exchange_scene import Scene

from vmm.guest.compiler import Compiler, find_compiler
from vmm.memory.movers.remap import Park


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
