"""The guests that come with the package, built when it was built."""

from __future__ import annotations

from pathlib import Path

from vmm.errors import GuestImageError

ROOT = Path(__file__).resolve().parent.parent / "_guests"


def bundled_guest(name: str) -> Path:
    """Return the path of a bundled guest's ELF: "canary", "faults/wild_pointer".

    Raises GuestImageError.
    """
    path = ROOT / "bin" / f"{name}.elf"
    if not path.is_file():
        raise GuestImageError(
            f"{path}: the bundled guests are not built: install the package again (pip install .)"
        )
    return path
