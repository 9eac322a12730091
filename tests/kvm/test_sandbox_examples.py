"""The programs of docs/examples, on real data.

PAGEFERRY_SWEEP=all decodes 10,000 corrupted pictures instead of some hundred.
"""

from __future__ import annotations

import collections
import importlib.util
import io
import os
import random
import re
import sqlite3
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from kvm.doc_examples import DOCS
from linux_programs import need

from vmm import CallError, CallTimeout

pytestmark = pytest.mark.not_in_lanes("what the manual shows; no compiler there")

# Also so that its threads are there before they are counted.
np: Any = pytest.importorskip("numpy", reason="a nested lane has no more than the package needs")
EXAMPLES = DOCS / "examples"
CORRUPTED = 10_000 if os.environ.get("PAGEFERRY_SWEEP") == "all" else 300


def example(path: str) -> Any:
    """Import a program of docs/examples."""
    spec = importlib.util.spec_from_file_location(f"example_{Path(path).stem}", EXAMPLES / path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


# ---- libpng ----


def pictures() -> list[Path]:
    """Return real pictures: those that matplotlib comes with."""
    matplotlib: Any = pytest.importorskip("matplotlib")
    found = sorted(Path(matplotlib.get_data_path()).rglob("*.png"))
    assert len(found) > 10
    return found


def as_pillow_has_it(file: bytes) -> Any:
    """Decode a picture in this process."""
    image: Any = pytest.importorskip("PIL.Image")
    with image.open(io.BytesIO(file)) as opened:
        return np.asarray(opened.convert("RGBA"))


def repaired(file: bytes) -> bytes:
    """Give each chunk of a PNG the checksum that it should have: so libpng looks further."""
    made, at = bytearray(file[:8]), 8
    while at + 12 <= len(file):
        size = int.from_bytes(file[at : at + 4], "big")
        body = file[at + 4 : at + 8 + size]
        made += file[at : at + 4] + body + zlib.crc32(body).to_bytes(4, "big")
        at += 12 + size
    return bytes(made + file[at:])


def corrupted(file: bytes, chance: random.Random) -> bytes:
    """Spoil some bytes of a file, or cut it off; half of the time so that its checksums hold."""
    made = bytearray(file)
    for _ in range(chance.choice((1, 2, 8, 40))):
        made[chance.randrange(8, min(len(made), chance.choice((60, len(made)))))] = (
            chance.randrange(256)
        )
    if chance.random() < 0.2:
        del made[chance.randrange(len(made)) :]
    return repaired(made) if chance.random() < 0.5 else bytes(made)


@pytest.fixture
def decoder() -> Iterator[Any]:
    need("/usr/include/png.h")
    with example("png/png.py").Decoder(machines=2, seconds=10) as made:
        yield made


def test_somebody_elses_decoder_in_machines_decodes_as_pillow_does(decoder: Any) -> None:
    files = [path.read_bytes() for path in pictures()]
    decoded = list(decoder.decode_all(files))
    for file, pixels in zip(files, decoded, strict=True):
        assert np.array_equal(pixels, as_pillow_has_it(file))
    # What was copied are the files, twice each: the pixels are where the machine has put them.
    assert decoder.lib.stats.copied_bytes == 2 * sum(map(len, files))


@pytest.mark.timeout(1800)
def test_corrupted_pictures_can_do_no_more_than_raise(decoder: Any) -> None:
    files = [file for path in pictures() if len(file := path.read_bytes()) < 20_000]
    chance = random.Random(14)
    broken = [corrupted(chance.choice(files), chance) for _ in range(CORRUPTED)]

    outcomes = collections.Counter(
        type(result).__name__ if isinstance(result, Exception) else "pixels"
        for result in decoder.decode_all(broken)
    )
    assert set(outcomes) <= {"pixels", "ValueError", "CallCrash", "CallTimeout"}
    assert outcomes["ValueError"] > CORRUPTED / 4
    assert outcomes["pixels"] > CORRUPTED / 100  # so that what was spoilt has been looked at
    (first, *_) = files
    assert np.array_equal(decoder.decode(first), as_pillow_has_it(first))


def test_the_decoder_is_a_command(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    need("/usr/include/png.h")
    (tmp_path / "none.png").write_bytes(b"no picture")
    logo = next(path for path in pictures() if path.name == "logo2.png")
    example("png/png.py").main([str(logo), str(tmp_path / "none.png")])
    height, width, _ = as_pillow_has_it(logo.read_bytes()).shape
    assert capsys.readouterr().out.splitlines() == [
        f"{logo}: {width} x {height}",
        f"{tmp_path}/none.png: no PNG, or one that is too large (0 x 0)",
    ]


# ---- SQLite ----

QUERIES = (
    "select count(*), sum(line), avg(length(text)), min(text) from lines",
    "select file, count(*) from lines group by file order by 2 desc, 1",
    "select a.text, b.line from lines a join lines b on a.text = b.text and a.line < b.line "
    "where length(a.text) > 60 order by 1, 2 limit 20",
    "select null, 1.5, -9223372036854775808, 'say \"\\ä\n'",
)


@pytest.fixture
def database(tmp_path: Path) -> Path:
    """The lines of this project's own tests, as a database."""
    path = tmp_path / "lines.db"
    base = sqlite3.connect(path)
    base.execute("create table lines(file text, line integer, text text)")
    for file in sorted(Path(__file__).parent.glob("test_*.py")):
        rows = enumerate(file.read_text().splitlines(), 1)
        base.executemany("insert into lines values (?, ?, ?)", ((file.name, *row) for row in rows))
    base.commit()
    base.close()
    return path


def test_sqlite_is_a_function_of_a_database_that_stays_in_its_memory(database: Path) -> None:
    need("/usr/include/sqlite3.h")
    before = database.read_bytes()
    with example("sqlite/query.py").Database(database) as guest, sqlite3.connect(database) as host:
        for sql in QUERIES:
            assert guest.query(sql) == [list(row) for row in host.execute(sql)]
        for sql, error in (
            ("insert into lines values ('', 0, '')", "readonly"),
            ("attach '/etc/passwd' as other", "unable to open"),
            ("selct", "syntax error"),
            ("select load_extension('x')", "not authorized"),
        ):
            with pytest.raises(ValueError, match=error):
                guest.query(sql)
        assert guest.bytes.tobytes() == before
        stats = guest.lib.stats
        assert stats.copied_bytes < 1000  # the queries
        assert stats.shared_bytes == (len(QUERIES) + 4) * len(before)
        count = guest.lib.query.with_timeout(0.3)
        with pytest.raises(CallTimeout):
            endless = "with recursive r(n) as (select 1 union all select n + 1 from r) "
            count(guest.bytes, guest.bytes.nbytes, endless + "select count(*) from r")
        assert guest.query("select 1") == [[1]]
    host.close()


# ---- A pipeline ----


def test_a_large_file_goes_through_three_machines_in_pages_that_move(tmp_path: Path) -> None:
    text = "".join(path.read_text() for path in sorted(Path(__file__).parent.glob("*.py")))
    content = (text * (1 + (20 << 20) // len(text))).encode()
    (tmp_path / "large.txt").write_bytes(content)
    pipeline = example("pipeline/pipeline.py")
    report = pipeline.run(tmp_path / "large.txt", pipeline.build(tmp_path))
    small = content.lower()
    counted = collections.Counter(re.findall(rb"[a-z]+", small))
    expected = sorted(counted.items(), key=lambda item: (-item[1], item[0]))[:5]
    assert report.words == "".join(f"{n} {word.decode()}\n" for word, n in expected)
    assert (report.bytes, report.checksum) == (len(content), zlib.crc32(small))


# ---- A plug-in that means no good ----

CRASH = r"CallCrash: {}: SIG.*"
OUTCOMES = {
    "run_for_ever": r"CallTimeout: run_for_ever: .*",
    "take_all_memory": r"returned ([4-5]\d|6[0-3])",  # of 64 MiB
    "fill_the_disk": r"returned 1[56]",  # of 16 MiB
    "print_for_ever": r"returned 6[34]",  # of what is kept
    "remember": r"returned 7",
    "leave": r"CallExit: leave: it called exit\(0\)",
    "return_nonsense": r"ConfigError: .*",
    "forge_answers": r"returned 0|CallCrash: .*",
    "print_escape_codes": r"CallCrash: print_escape_codes: SIGABRT.*",
}


def children() -> list[str]:
    """Return the processes that this one has started, and not waited for."""
    files = Path("/proc/self/task").glob("*/children")
    return sorted(pid for file in files for pid in file.read_text().split())


def test_a_plugin_that_tries_everything_harms_nobody(tmp_path: Path) -> None:
    hostile = example("hostile/hostile.py")
    attacked = hostile.Attacked()
    before = children()
    with attacked.lib:
        for name in attacked.calls:
            came = attacked.attack(name)
            refused = name in hostile.SYSTEM or name == "send_it_away"
            expected = r"refused: E\w+" if refused else OUTCOMES.get(name, CRASH.format(name))
            assert re.fullmatch(expected, came), f"{name}: {came}"
            assert came.isprintable(), name
            assert attacked.unharmed(), name
        with pytest.raises(CallError) as raised:
            attacked.lib.print_escape_codes()
        assert raised.value.fault is not None
        assert "owned" in raised.value.fault.details()
        assert all(line.isprintable() for line in raised.value.fault.details().splitlines())
    assert not Path("/tmp/pageferry-was-here").exists()
    assert children() == before
