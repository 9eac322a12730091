"""Where things are kept between runs, and by what name: what a lane boots, what a host is like."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path


def cache_root() -> Path:
    """Return the cache's directory.

    $PAGEFERRY_CACHE, or pageferry in the user's cache directory.
    """
    if own := os.environ.get("PAGEFERRY_CACHE"):
        return Path(own).absolute()
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache").absolute() / "pageferry"


def content_key(*parts: str | bytes) -> str:
    """Return a short name for all of `parts`, in their order."""
    digest = hashlib.sha256()
    for part in parts:
        data = part.encode() if isinstance(part, str) else part
        digest.update(len(data).to_bytes(8, "little") + data)
    return digest.hexdigest()[:16]
