"""Hatch build hook: compiles the guests into ``vmm/_guests`` for wheels and editable installs.

The same directory gets the guest headers and library sources, so that an installed package can
build further guests.
"""

from __future__ import annotations

import importlib
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
        guest = _guest_package(Path(self.root))
        return [ZIGLANG] if guest.compiler.needs_ziglang() else []

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Build into the source tree; hatch picks the files up as artifacts."""
        root = Path(self.root)
        guest = _guest_package(root)
        output = root / "vmm" / "_guests"
        for name in COPIED:
            shutil.rmtree(output / name, ignore_errors=True)
            shutil.copytree(root / "guests" / name, output / name)
        compiler = guest.compiler.find_compiler()
        guest.build.build_bundled(root / "guests", output, compiler)
        self._build_floor(root, output, guest, compiler)

    def _build_floor(self, root: Path, output: Path, guest: ModuleType, compiler: Any) -> None:
        """Take the bench's C programs along, built as far as they can be: a freestanding compiler
        has no C library.
        """
        shutil.rmtree(output / "bench", ignore_errors=True)
        shutil.copytree(root / "scripts" / "bench", output / "bench")
        for source in sorted((output / "bench").glob("*.c")):
            try:
                guest.build.build_program(
                    source,
                    source.with_suffix(""),
                    include_dirs=[output / "include"],
                    compiler=compiler,
                )
            except guest.compiler.BuildError as error:
                what = f"pageferry bench will have no {source.stem}: {error}"
                self.app.display_warning(what)


def _guest_package(root: Path) -> ModuleType:
    """``vmm.guest`` without ``vmm``, whose dependencies are not there at build time."""
    name = f"_guest_package_of_{root}".replace(".", "_")  # each checkout has its own
    package = sys.modules.setdefault(name, ModuleType(name))
    package.__path__ = [str(root / "vmm" / "guest")]
    for module in ("build", "compiler"):
        importlib.import_module(f"{name}.{module}")
    return package
