"""docs/dask.md: its programs are saved as it says, and print what it says, on a cluster."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from kvm.doc_examples import DOCS, examples, run_example, save_programs

np: Any = pytest.importorskip("numpy", reason="a nested lane has no more than the package needs")
pytest.importorskip("distributed", reason="a nested lane has no more than the package needs")

import dask  # noqa: E402
from distributed.cli.dask_scheduler import main as scheduler  # noqa: E402
from distributed.cli.dask_worker import main as worker  # noqa: E402
from kvm.dask_cluster import Cluster  # noqa: E402

PAGE = (DOCS / "dask.md").read_text()
FIRST, *EXAMPLES = examples("dask.md")
SOURCES = examples("dask.md", "c")
SCHEDULER = "tcp://scheduler:8786"  # as the page calls it
ON_CLUSTERS = [example for example in EXAMPLES if SCHEDULER in example]
HERE = [example for example in EXAMPLES if SCHEDULER not in example]

pytestmark = pytest.mark.not_in_lanes("no Dask there, and no compiler")


@pytest.fixture
def no_leaks() -> None:
    """A client's connections and threads come and go."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Save the programs under the names that their first lines say."""
    return save_programs(SOURCES, tmp_path_factory.mktemp("dask"))


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Of the scheduler of a cluster, which has one worker."""
    made = Cluster(tmp_path_factory.mktemp("cluster"))
    try:
        made.worker("one")
        yield made.address()
        assert made.end("one") == 0
    finally:
        made.close()


def title(example: str) -> str:
    """Return the heading that an example stands under."""
    return re.findall(r"^## (.*)$", PAGE.partition(example)[0], re.M)[-1]


def test_the_first_example_is_the_one_that_is_run() -> None:
    program = (DOCS / "examples/dask/tiles.py").read_text()
    assert program == FIRST
    assert (DOCS / "examples/dask/tiles.c").read_text() == SOURCES[0]
    ended = subprocess.run(
        [sys.executable, DOCS / "examples/dask/tiles.py"], capture_output=True, text=True
    )
    assert ended.stdout.splitlines() == re.findall(r"print\(.*\)  # (.*)$", program, re.M)
    assert ended.returncode == 0


@pytest.mark.parametrize("example", HERE, ids=map(title, HERE))
def test_an_example_prints_what_it_says(
    example: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if "dask.dataframe" in example:
        pytest.importorskip("pandas", reason="for dataframes, Dask wants pandas and pyarrow")
        pytest.importorskip("pyarrow", reason="for dataframes, Dask wants pandas and pyarrow")
    monkeypatch.chdir(folder)
    with ThreadPoolExecutor(2) as threads, dask.config.set(pool=threads):
        run_example(example, "docs/dask.md")


@pytest.mark.parametrize("example", ON_CLUSTERS, ids=map(title, ON_CLUSTERS))
def test_an_example_prints_what_it_says_on_a_cluster(
    example: str, folder: Path, address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)
    run_example(example.replace(SCHEDULER, address), "docs/dask.md")


def test_the_commands_have_the_options_that_are_shown() -> None:
    shown = re.findall(r"^dask (scheduler|worker) (.*)$", PAGE, re.M)
    assert [name for name, _ in shown] == ["scheduler", "worker"]
    for (_, words), command in zip(shown, (scheduler, worker), strict=True):
        context = command.make_context("dask", words.split(), resilient_parsing=False)
        assert context.params["preload"] == ("vmm.dask",)
    assert context.params["scheduler"] == SCHEDULER
