"""The project's modules compiled for the lanes' Python, kept file by file.

Tests are also kept as pytest compiles them, with their assertions rewritten: of a start in Bochs,
it is this that takes longest.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from vmm.host.cache import content_key
from vmm.nested.cache import Cache
from vmm.nested.errors import LaneError
from vmm.nested.python import Python

MTIME = 1_600_000_000  # of every file in a payload: pytest before 9.2 compares it

_COMPILE = """
import py_compile, sys
for line in sys.stdin.read().splitlines():
    source, target = line.split("\\0")
    try:
        py_compile.compile(source, target, source, doraise=True,
                           invalidation_mode=py_compile.PycInvalidationMode.UNCHECKED_HASH)
    except (py_compile.PyCompileError, ValueError):
        pass  # what cannot be compiled says so when it is imported
"""

# What is pytest's own: should it have changed, tests are rewritten in the lane, as ever. By what it
# knows a source again is its own too: from 9.2 on a hash of it, before that size and time.
_REWRITE = """
import os, sys, types
sys.path.insert(0, sys.argv[1])
from pathlib import Path
from _pytest.assertion import rewrite
config = types.SimpleNamespace(getini=lambda name: False)
for line in sys.stdin.read().splitlines():
    source, target = line.split("\\0")
    known_by, code = rewrite._rewrite_test(Path(source), config)
    if isinstance(known_by, os.stat_result):
        known_by = types.SimpleNamespace(st_mtime=int(sys.argv[2]), st_size=known_by.st_size)
    with open(target, "wb") as file:
        rewrite._write_pyc_fp(file, known_by, code)
"""


class Compiler:
    """Compiles for a Python, with the pytest in the directory `site`, into a cache."""

    def __init__(self, python: Python, site: Path, cache: Cache) -> None:
        self._python = python
        self._site = site
        self._version = python.version()
        self._tag = f"cpython-{self._version.replace('.', '')}"
        self._store = cache.directory("compiled")

    def compiled(self, files: list[Path]) -> Iterator[tuple[Path, Path]]:
        """Give (path in the lane, file here) for every module among the files and what it is
        compiled to.
        """
        sources = [path for path in files if path.suffix == ".py"]
        yield from self._kept(sources, self._tag, ("-c", _COMPILE))
        tests = [path for path in sources if path.match("test_*.py") or path.name == "conftest.py"]
        if pytest := self._pytest():
            script = ("-c", _REWRITE, str(self._site), str(MTIME))
            yield from self._kept(tests, f"{self._tag}-pytest-{pytest}", script)

    def _pytest(self) -> str | None:
        """Return pytest's version."""
        found = [path.name.split("-")[1] for path in self._site.glob("pytest-*.dist-info")]
        return found[0].removesuffix(".dist") if found else None

    def _kept(
        self, sources: list[Path], tag: str, script: tuple[str, ...]
    ) -> Iterator[tuple[Path, Path]]:
        kept = {
            path: self._store / f"{content_key(str(path), tag, path.read_bytes())}.pyc"
            for path in sources
        }
        lines = [f"{path}\0{target}" for path, target in kept.items() if not target.exists()]
        if lines:
            try:
                self._python.run(*script, text="\n".join(lines))
            except LaneError:
                return  # the lane compiles for itself what it does not find compiled
        for path, target in kept.items():
            if target.exists():
                os.utime(target)
                yield path.parent / "__pycache__" / f"{path.stem}.{tag}.pyc", target
