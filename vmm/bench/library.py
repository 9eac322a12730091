"""The C functions that rows of calls call, built for each who calls them: scripts/bench/sandbox."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

from vmm.bench.plan import Unavailable
from vmm.guest.build import build_guest
from vmm.guest.bundled import ROOT
from vmm.guest.compiler import BuildError, find_compiler

_SOURCES = ROOT / "bench" / "sandbox"
_FLAGS = ("-O3",)
_WASM_FLAGS = (
    *("-target", "wasm32-freestanding", "-msimd128", "-nostdlib", "-Wl,--no-entry"),
    *("-Wl,--export=empty", "-Wl,--export=contrast", "-Wl,--export=__heap_base"),
)


class Library:
    """One of the sources. What is built goes into a directory; each raises Unavailable.

    libraries   what it is linked with
    """

    def __init__(self, name: str, directory: Path, libraries: Sequence[str] = ()) -> None:
        self._source = _SOURCES / f"{name}.c"
        self._directory = directory
        self._libraries = tuple(libraries)

    @cached_property
    def program(self) -> Path:
        """For a Sandbox."""
        try:
            return build_guest(
                [self._source],
                self._directory / f"{self._source.stem}.elf",
                include_dirs=[ROOT / "include"],
                library_dir=ROOT / "lib",
                compiler=find_compiler(),
                sandbox=True,
                flags=_FLAGS,
                libraries=self._libraries,
                report=_unheard,
            )
        except BuildError as error:
            raise Unavailable(f"no sandbox: {str(error).splitlines()[0]}") from error

    @cached_property
    def native(self) -> Path:
        """For ctypes: the same compiler, with the same options."""
        path = self._directory / f"{self._source.stem}.so"
        try:
            command = [*find_compiler().for_linux, "-O2", "-g", *_FLAGS, "-shared", "-fPIC"]
        except BuildError as error:
            raise Unavailable(f"no library: {str(error).splitlines()[0]}") from error
        named = [f"-l{name}" for name in self._libraries]
        _run([*command, "-o", str(path), str(self._source), *named])
        return path

    @cached_property
    def wasm(self) -> Path:
        """For a WebAssembly engine, with its vector instructions; by the ziglang package."""
        if importlib.util.find_spec("ziglang") is None:
            raise Unavailable("no WebAssembly: pip install ziglang")
        path = self._directory / f"{self._source.stem}.wasm"
        command = [sys.executable, "-m", "ziglang", "cc", *_FLAGS, *_WASM_FLAGS]
        _run([*command, "-o", str(path), str(self._source)])
        return path


def _unheard(said: str) -> None:
    pass


def _run(command: Sequence[str]) -> None:
    try:
        subprocess.run(command, capture_output=True, text=True, check=True)
    except OSError as error:
        raise Unavailable(f"{command[0]}: {error.strerror}") from error
    except subprocess.CalledProcessError as error:
        said = error.stderr.strip() or f"status {error.returncode}"
        raise Unavailable(f"cannot be built: {said.splitlines()[0]}") from error
