"""`pageferry bench`, as a user runs it. The host is made up, and what machines cost is left out: no
KVM is needed.
"""

from __future__ import annotations

import json
import os
import signal
import stat
import time
from pathlib import Path

import pytest
from command import TIMEOUT, Ended, one_line, pageferry, start
from unit.bench_scene import HOST, results, row

from vmm.bench import describe
from vmm.bench.plan import QUICK, QUICK_IN_LANE
from vmm.bench.results import Results, load
from vmm.command.failure import EXIT_FAILED, EXIT_INTERRUPTED, EXIT_USAGE

CODE = f"""from vmm.command import bench as command
command.describe = lambda: {HOST!r}
command.ours.columns = command.programs.columns = lambda case, stack: {{}}
from vmm.command.cli import main
main(prog_name='pageferry')"""
WITHOUT_MATPLOTLIB = f"import sys; sys.modules['matplotlib'] = None\n{CODE}"


def bench(*arguments: str | Path, code: str = CODE) -> Ended:
    return pageferry("bench", *arguments, code=code)


@pytest.fixture
def measured(tmp_path: Path) -> Path:
    """The file of an earlier bench."""
    file = tmp_path / "earlier.json"
    file.write_text(json.dumps(results().as_json()))
    return file


def test_rows_are_measured_shown_and_written(tmp_path: Path) -> None:
    file = tmp_path / "new.json"
    ended = bench("--quick", "--rows", "inline_64B,rate_1_worker", "--json", file)
    assert (ended.code, ended.err) == (0, "")
    assert "A Processor" in ended.out
    found = load(file)
    assert found.host == HOST
    assert [one.name for one in found.rows] == ["inline_64B", "rate_1_worker"]
    for one in found.rows:
        for column in (one.pipe, one.socket, one.shared_memory):
            assert column is not None
            assert column.p50 > 0
            assert column.n >= 3
    assert os.listdir(tmp_path) == ["new.json"]  # noqa: PTH208
    umask = os.umask(0)
    os.umask(umask)
    assert stat.S_IMODE(file.stat().st_mode) == 0o666 & ~umask


def test_less_is_measured_in_a_lane(tmp_path: Path) -> None:
    counts = []
    for lane in ({}, {describe.LANE: "npt"}):
        file = tmp_path / "new.json"
        with start(
            "bench", "--quick", "--rows", "inline_64B", "--json", file, code=CODE, env=lane
        ) as process:
            _, err = process.communicate(timeout=TIMEOUT)
        assert (process.returncode, err) == (0, "")
        (one,) = load(file).rows
        assert one.pipe is not None
        counts.append(one.pipe.n)
    assert counts == [3 * QUICK.most, 3 * QUICK_IN_LANE.most]


def test_json_on_standard_output_is_all_that_is_there(measured: Path) -> None:
    ended = bench("--from", measured, "--json", "-")
    assert (ended.code, ended.err) == (0, "")
    assert Results.from_json(json.loads(ended.out)) == results()


def test_from_a_file_come_the_table_and_the_picture(measured: Path, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="pip install 'pageferry[plot]'")
    picture = tmp_path / "new.svg"
    ended = bench("--from", measured, "--plot", picture)
    assert (ended.code, ended.err) == (0, "")
    assert "extent_untouched" in ended.out
    first = picture.read_bytes()
    assert first.startswith(b"<?xml")
    assert bench("--from", measured, "--plot", picture).code == 0
    assert picture.read_bytes() == first


def test_from_measures_nothing_and_says_so(measured: Path) -> None:
    for more in (["--quick"], ["--rows", "page"]):
        ended = bench("--from", measured, *more)
        assert ended.code == EXIT_USAGE
        assert "--from measures nothing" in ended.err


def test_from_a_file_that_is_none_of_ours_is_one_line(tmp_path: Path) -> None:
    file = tmp_path / "other.json"
    ended = bench("--from", file)
    assert (ended.code, one_line(ended.err)) == (1, f"{file}: No such file or directory")
    file.write_text('{"rows": []}')
    ended = bench("--from", file)
    said = f"{file}: the whole: has no 'host': give a file that pageferry bench --json has written"
    assert (ended.code, one_line(ended.err)) == (1, said)


def test_from_a_device_without_an_end_is_one_line() -> None:
    ended = bench("--from", "/dev/zero")
    assert (ended.code, ended.out) == (1, "")
    assert one_line(ended.err).startswith("/dev/zero: is longer than results are: give a file")


def test_a_row_that_is_unknown_is_a_usage_error_that_lists_them() -> None:
    ended = bench("--rows", "page,pages")
    assert ended.code == EXIT_USAGE
    assert "there is no row 'pages'" in ended.err
    assert "extent_touched" in ended.err


def test_files_are_looked_at_before_anything_is_measured(measured: Path, tmp_path: Path) -> None:
    # All rows, and every size: it would take minutes.
    there = tmp_path / "file"
    there.write_text("kept")
    for option, name, said in (
        ("--json", tmp_path, "is a directory: name a file to write"),
        ("--json", tmp_path / "none" / "a.json", "No such file or directory"),
        ("--json", there / "a.json", "Not a directory"),
    ):
        ended = bench(option, name)
        assert (ended.code, one_line(ended.err)) == (1, f"{name}: {said}")
    assert there.read_text() == "kept"
    ended = bench("--from", measured, "--json", measured)
    assert (ended.code, "would be overwritten" in one_line(ended.err)) == (1, True)
    Results.from_json(json.loads(measured.read_text()))


def test_a_picture_is_refused_before_anything_is_measured(tmp_path: Path) -> None:
    ended = bench("--plot", tmp_path / "a.svg", code=WITHOUT_MATPLOTLIB)
    said = "--plot needs matplotlib: pip install 'pageferry[plot]'"
    assert (ended.code, one_line(ended.err)) == (1, said)
    pytest.importorskip("matplotlib", reason="pip install 'pageferry[plot]'")
    ended = bench("--plot", tmp_path / "a.json")
    assert (ended.code, "name it .svg" in one_line(ended.err)) == (1, True)
    ended = bench("--plot", tmp_path / "a.svg", "--json", tmp_path / "a.svg")
    assert (ended.code, "would be written twice" in one_line(ended.err)) == (1, True)
    assert list(tmp_path.iterdir()) == []


def test_a_check_that_holds_says_so_and_one_that_does_not_names_what(tmp_path: Path) -> None:
    file = tmp_path / "checked.json"
    file.write_text(json.dumps(results(row("page", ours=10, floor=9)).as_json()))
    ended = bench("--from", file, "--check")
    assert ended.code == 0
    assert "pageferry: check: 1 ratios are within bounds" in ended.err
    assert "skipped: extent_untouched" in ended.err
    file.write_text(json.dumps(results(row("page", ours=10_000, floor=9)).as_json()))
    ended = bench("--from", file, "--check")
    assert ended.code == EXIT_FAILED
    assert "pageferry: check: 1 of 1 ratios are out of bounds:\npage: ours is 1111.1" in ended.err
    assert "page" in ended.out  # the table is there all the same
    file.write_text(json.dumps(results(row("share")).as_json()))
    ended = bench("--from", file, "--check")
    assert (ended.code, "there was nothing to compare" in ended.err) == (EXIT_FAILED, True)


# In rounds that are disturbed, ours takes a thousand times as long.
DISTURBED = CODE.replace(
    "command.ours.columns = command",
    """import itertools, sys
disturbed, rounds = int(sys.argv.pop()), itertools.count()
def ours(case, stack):
    slow = next(rounds) < disturbed
    return {"ours": lambda: [10_000.0 if slow else 10.0], "floor": lambda: [9.0]}
command.ours.columns = ours
command""",
)


def test_a_row_beyond_its_bounds_is_measured_again_and_fails_if_it_always_is() -> None:
    for disturbed in (0, 1, 2, 3):
        ended = bench("--quick", "--check", "--rows", "share", str(disturbed), code=DISTURBED)
        assert ended.code == (EXIT_FAILED if disturbed == 3 else 0), ended.err
        assert ended.err.count("once more: share\n") == min(disturbed, 2)
        assert ("share: ours is 1111.1" in ended.err) == (disturbed == 3)
    both = bench("--quick", "--check", "--rows", "lend_return,share", "1", code=DISTURBED)
    assert (both.code, both.err.count("once more: lend_return\n")) == (0, 1)
    assert "2 ratios are within bounds" in both.err


@pytest.mark.parametrize("moment", [0.05, 0.4, 1.0, 1.6])
def test_ctrl_c_leaves_nothing_of_a_bench(tmp_path: Path, moment: float) -> None:
    file = tmp_path / "new.json"
    shared = set(os.listdir("/dev/shm"))  # noqa: PTH208
    process = start(
        "bench",
        "--rows",
        "extent_touched,page",
        "--json",
        file,
        code="import os, sys; print('here', flush=True)\n" + CODE,
        start_new_session=True,
    )
    with process:
        try:
            assert process.stdout.readline() == "here\n"
            _wait_for_a_file(tmp_path)
            time.sleep(moment)
            os.killpg(process.pid, signal.SIGINT)  # as a terminal does: to its children, too
            out, err = process.communicate(timeout=TIMEOUT)
        finally:
            process.kill()
    assert (process.returncode, out, one_line(err)) == (EXIT_INTERRUPTED, "", "interrupted")
    assert list(tmp_path.iterdir()) == []
    assert set(os.listdir("/dev/shm")) <= shared  # noqa: PTH208
    assert _group(process.pid) == []


def _wait_for_a_file(folder: Path) -> None:
    until = time.monotonic() + TIMEOUT
    while not list(folder.iterdir()):
        assert time.monotonic() < until
        time.sleep(0.01)


def _group(leader: int) -> list[str]:
    """Return the commands of the processes of a group, after those that end anyway have ended."""
    until = time.monotonic() + 5
    while found := list(_members(leader)):
        if time.monotonic() > until:
            break
        time.sleep(0.01)
    return found


def _members(leader: int) -> list[str]:
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                if os.getpgid(int(entry.name)) == leader:
                    found.append((entry / "cmdline").read_text())
            except OSError:
                continue
    return found


def test_without_kvm_it_ends_as_all_commands_do() -> None:
    code = """from vmm.command import bench as command
from vmm.errors import HostError
def describe():
    raise HostError("no /dev/kvm", "load it")
command.describe = describe
from vmm.command.cli import main
main(prog_name='pageferry')"""
    ended = bench("--quick", code=code)
    assert (ended.code, one_line(ended.err)) == (69, "no /dev/kvm: load it")


def test_what_the_kernel_says_of_the_host_is_read_and_a_lane_is_known() -> None:
    assert describe.cpu_model("vendor_id\t: X\nmodel name\t: A: B\n") == "A: B"
    assert describe.cpu_model("") is None
    assert describe.chosen("always [madvise] never") == "madvise"
    assert (describe.chosen("madvise"), describe.chosen(None)) == (None, None)
    assert describe.LANE == "PAGEFERRY_LANE"
    run = Path(describe.__file__).parents[1] / "nested" / "run.sh"
    assert f'export {describe.LANE}="$lane"' in run.read_text()
