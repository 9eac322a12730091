"""Two hosts, as two network namespaces of this one, and a cable between them."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

ADDRESSES = ("10.77.0.1", "10.77.0.2")  # nobody else sees them
CABLE = "eth0"  # as either host calls its end


class Host:
    """One of them. Its processes are in a mount namespace of their own, too.

    address   at which the other one reaches it
    """

    def __init__(self, name: str, address: str) -> None:
        self._name = name
        self.address = address

    def within(self, hidden: Path | None = None) -> tuple[str, ...]:
        """Return the words before a command that is to run there.

        hidden    a directory that is another one there, and empty
        """
        enter = ("ip", "netns", "exec", self._name)
        if hidden is None:
            return enter
        return (*enter, "sh", "-c", 'mount -t tmpfs none "$0" && exec "$@"', str(hidden))

    def cable(self, state: str) -> None:
        """Pull its end of the cable (down), or put it in again (up)."""
        _ip("-n", self._name, "link", "set", CABLE, state)

    def remove(self) -> None:
        """Remove it, with all that still runs there."""
        for pid in _ip("netns", "pids", self._name).split():
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(pid), signal.SIGKILL)
        _ip("netns", "delete", self._name)


@contextlib.contextmanager
def two_hosts() -> Iterator[tuple[Host, Host]]:
    """Give both. Skips the test where there cannot be any."""
    if os.geteuid() != 0:
        pytest.skip("needs root: hosts are network namespaces")
    if shutil.which("ip") is None:
        reason = "no ip: hosts are network namespaces"
        if os.environ.get("PAGEFERRY_REQUIRE_KVM") == "1":
            pytest.fail(f"{reason} (and PAGEFERRY_REQUIRE_KVM=1)", pytrace=False)
        pytest.skip(reason)
    names = [f"pageferry-{os.getpid()}-{which}" for which in ("one", "two")]
    first, second = (Host(*both) for both in zip(names, ADDRESSES, strict=True))
    with contextlib.ExitStack() as made:
        try:
            for host, name in zip((first, second), names, strict=True):
                _ip("netns", "add", name)
                made.callback(host.remove)
            peer = ("peer", "name", CABLE, "netns", names[1])
            _ip("-n", names[0], "link", "add", CABLE, "type", "veth", *peer)
            for host, name in zip((first, second), names, strict=True):
                _ip("-n", name, "address", "add", f"{host.address}/24", "dev", CABLE)
                _ip("-n", name, "link", "set", "lo", "up")
                host.cable("up")
        except subprocess.CalledProcessError as error:
            pytest.skip(f"no network namespaces here: {error.stderr.strip()}")
        yield first, second


def _ip(*words: str) -> str:
    return subprocess.run(["ip", *words], check=True, capture_output=True, text=True).stdout
