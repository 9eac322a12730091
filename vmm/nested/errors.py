"""What can go wrong with a lane beyond a host that cannot run it (`vmm.errors.HostError`)."""

from __future__ import annotations

from vmm.errors import PageferryError


class LaneError(PageferryError):
    """The emulator did not do its work.

    It could not be built for, died, or never said how it ended.
    """


class LaneTimeout(LaneError):
    """The command, or the boot before it, took longer than it was given.

    The emulator has been killed.
    """
