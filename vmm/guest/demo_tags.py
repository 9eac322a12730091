"""The tags of the demo's messages; guests/include/demo.h has the same, and a test compares them."""

from __future__ import annotations

import enum


class DemoTag(enum.IntEnum):
    """What a message of the demo is about."""

    FILE = 1
    ANNOUNCE = 2
    RESULT = 3
    TOUCH = 4
    END = 5
