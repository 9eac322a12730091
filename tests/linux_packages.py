"""What the tests' programs for Linux are built with, and the Debian packages that have it.

`python3 tests/linux_packages.py [--missing]` prints the packages' names, one per line: all of them,
or those that this host lacks. It uses the standard library only.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

# A program on PATH, or a file, and its package. The shared busybox is another package's.
NEEDS = {
    "cc": "gcc",
    "c++": "g++",
    "/usr/include/stdio.h": "libc6-dev",
    "/usr/share/doc/busybox-static": "busybox-static",
    "/usr/include/sqlite3.h": "libsqlite3-dev",
    "/usr/include/lua5.4/lua.h": "liblua5.4-dev",
    "/usr/include/zstd.h": "libzstd-dev",
    "/usr/include/zlib.h": "zlib1g-dev",
    "/usr/include/png.h": "libpng-dev",
    "/usr/bin/bc": "bc",
    "/usr/bin/mawk": "mawk",
    "/usr/bin/xz": "xz-utils",
    "/usr/bin/python3": "python3-minimal",
}


def is_there(need: str) -> bool:
    """Whether a program or file is on this host."""
    return Path(need).exists() if need.startswith("/") else shutil.which(need) is not None


if __name__ == "__main__":
    for need, package in NEEDS.items():
        if "--missing" not in sys.argv or not is_there(need):
            print(package)
