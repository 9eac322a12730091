"""Hatch build hook: compiles the guests into ``vmm/_guests`` for wheels and editable installs.

The same directory gets the guest headers and library sources, so that an installed package can
build further guests.
"""

from __future__ import annotations

import importlib.util
import shutil
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

# The range that the guests have been built with.
ZIGLANG = "ziglang>=0.13,<0.18"
COPIED = ("include", "lib")


class GuestBuildHook(BuildHookInterface[Any]):
    """Builds the guests with the system's C compiler, or with ziglang's where there is none."""

    def dependencies(self) -> list[str]:
        """What the build needs beyond hatchling: a compiler, if the machine has none."""
        build = _load_build_module(Path(self.root))
        return [ZIGLANG] if build.needs_ziglang() else []

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Build into the source tree; hatch picks the files up as artifacts."""
        root = Path(self.root)
        build = _load_build_module(root)
        output = root / "vmm" / "_guests"
        for name in COPIED:
            shutil.rmtree(output / name, ignore_errors=True)
            shutil.copytree(root / "guests" / name, output / name)
        build.build_bundled(root / "guests", output, build.find_compiler())


def _load_build_module(root: Path) -> ModuleType:
    """``vmm/guest/build.py`` by its path: vmm's dependencies are not there at build time."""
    name = "_pageferry_guest_build"
    spec = importlib.util.spec_from_file_location(name, root / "vmm" / "guest" / "build.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module
