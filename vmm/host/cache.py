"""Where things are kept between runs, and by what name: what a lane boots, what a host is like."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

from vmm.errors import ConfigError


def cache_root() -> Path:
    """Return the cache's directory.

    $PAGEFERRY_CACHE, or pageferry in the user's cache directory. Raises ConfigError if neither is
    known.
    """
    if own := os.environ.get("PAGEFERRY_CACHE"):
        return Path(own).absolute()
    if base := os.environ.get("XDG_CACHE_HOME"):
        return Path(base).absolute() / "pageferry"
    try:
        home = Path.home()
    except RuntimeError as error:
        what = "no HOME is set, and this user has none: name a directory for what is kept"
        raise ConfigError(f"{what} (PAGEFERRY_CACHE)") from error
    return home.absolute() / ".cache" / "pageferry"


def content_key(*parts: str | bytes) -> str:
    """Return a short name for all of `parts`, in their order."""
    digest = hashlib.sha256()
    for part in parts:
        data = part.encode() if isinstance(part, str) else part
        digest.update(len(data).to_bytes(8, "little") + data)
    return digest.hexdigest()[:16]
