"""Which C compilers are here to build guests and programs with."""

from __future__ import annotations

import importlib.util
import shutil

no_cc = shutil.which("cc") is None
no_zig = importlib.util.find_spec("ziglang") is None
