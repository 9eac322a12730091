"""What has to be installed for sandboxes on Dask, and is not needed by anything else."""

from __future__ import annotations

import importlib
import re

LEAST = (2024, 12, 1)  # as pyproject.toml has it
_INSTALL = "pip install 'pageferry[dask]'"


def check() -> None:
    """Raise ImportError if there is no Dask that is new enough."""
    for name in ("numpy", "distributed"):
        try:
            found = importlib.import_module(name)
        except ModuleNotFoundError as error:
            raise ImportError(f"vmm.dask needs {error.name or name}: {_INSTALL}") from None
    check_version(found.__version__)


def check_version(version: str) -> None:
    """Raise ImportError for a version of `distributed` that is too old."""
    numbers = tuple(int(number) for number in re.findall(r"\d+", version)[:3])
    if numbers < LEAST:
        least = ".".join(map(str, LEAST))
        raise ImportError(f"distributed {version} is older than {least}: {_INSTALL}")
