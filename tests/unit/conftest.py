"""What several unit tests share: peers with windows in this process."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from unit.exchange_scene import Scene


@pytest.fixture
def scene(no_leaks: None) -> Iterator[Scene]:
    """Peers, an exchange between them, and a host that can be made to refuse."""
    with Scene() as scene:
        yield scene
