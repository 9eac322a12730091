"""Ask an SQLite database, by an SQLite in a virtual machine: python3 query.py FILE SQL..."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from vmm import CallError, Sandbox


class Database:
    """A database that is read once. Whatever is asked, nobody can change it, or get elsewhere."""

    def __init__(self, path: Path, seconds: float = 10) -> None:
        shim = Path(__file__).with_name("sqlite_shim.c")
        self.lib = Sandbox(shim, libraries=["sqlite3"], timeout=seconds)
        self.bytes = self.lib.empty(path.stat().st_size, np.uint8)  # where it stays
        with path.open("rb") as file:
            file.readinto(self.bytes)

    def query(self, sql: str) -> list[list[Any]]:
        """Return all rows. Raises ValueError for what SQLite refuses, CallError if it breaks."""
        answer = self.lib.query(self.bytes, self.bytes.nbytes, sql)
        rows: list[list[Any]] | str = json.loads(answer)
        if isinstance(rows, str):
            raise ValueError(rows)
        return rows

    def __enter__(self) -> Database:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.lib.close()


def main(name: str, *queries: str) -> None:
    """Print the rows of each query."""
    with Database(Path(name)) as database:
        for sql in queries:
            try:
                for row in database.query(sql):
                    print(*row, sep="\t")
            except (ValueError, CallError) as error:
                print(error)
        print(f"copied: {database.lib.stats.copied_bytes} bytes")


if __name__ == "__main__":
    main(*sys.argv[1:])
