"""What sandboxes on Dask are made of, without Dask: bounds, processors, versions, room."""

from __future__ import annotations

import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

pytest.importorskip("distributed", reason="a nested lane has no more than the package needs")

from vmm.dask import needed, processors, shapes
from vmm.dask.room import Room
from vmm.errors import ConfigError, ResourceError
from vmm.sandbox.crew import Ticket

# ---- bounds ----


def test_each_dimension_is_its_bound() -> None:
    bounds = {"pixels": ("height", "width", "3")}
    assert shapes.filled("f", bounds, {"pixels": (4, 5, 3)}) == {"height": 4, "width": 5}


def test_one_bound_is_the_number_of_items() -> None:
    assert shapes.filled("f", {"v": ("count",)}, {"v": (4, 5)}) == {"count": 20}


def test_a_bound_that_is_computed_is_nothing_that_a_shape_gives() -> None:
    assert shapes.filled("f", {"v": ("height", "3 * width")}, {"v": (4, 6)}) == {"height": 4}


@pytest.mark.parametrize(
    ("bounds", "given", "said"),
    [
        ({"v": ("h", "w")}, {"v": (1, 2, 3)}, "f: v has 3 dimensions, and is to have 2: h, w"),
        ({"v": ("h", "3")}, {"v": (1, 4)}, "f: v has 4 where it is to have 3"),
        ({"v": ("n",), "u": ("n",)}, {"v": (4,), "u": (5,)}, "f: n is 4 by v, and 5 by u"),
    ],
)
def test_shapes_that_do_not_fit_are_refused(
    bounds: dict[str, shapes.Bounds], given: dict[str, tuple[int, ...]], said: str
) -> None:
    with pytest.raises(ConfigError) as error:
        shapes.filled("f", bounds, given)
    assert str(error.value) == said


def test_bounds_are_given_as_text_or_as_a_list() -> None:
    assert shapes.parse("height, width,3", "it") == shapes.parse(["height", "width", 3], "it")
    with pytest.raises(ConfigError, match="length"):
        shapes.parse("height, sizeof(int)", "it")


# ---- processors ----


@pytest.mark.parametrize(
    ("options", "found"),
    [
        (["-O2", "-g"], set()),
        (["-mavx2"], {"avx2"}),
        (["-mavx2", "-mno-avx2"], set()),
        (["-march=x86-64-v2"], {"pni", "ssse3", "sse4_1", "sse4_2", "popcnt"}),
        (["-mbmi", "-msha", "-mtune=znver3"], {"bmi1", "sha_ni"}),
    ],
)
def test_options_say_what_a_processor_must_have(options: list[str], found: set[str]) -> None:
    assert processors.of_options(options) == found


def test_a_program_says_how_it_was_compiled() -> None:
    said = b"\x7fELF..\0GNU C17 12.2.0 -mavx2 -O2\0GNU C17 12.2.0 -O2 -mfma -g\0"
    assert processors.of_program(said) == {"avx2", "fma"}


def test_native_is_what_this_processor_has() -> None:
    assert processors.of_options(["-march=native"]) <= processors.present()


# ---- what has to be installed ----


def test_a_version_that_is_too_old_is_named_with_what_installs_another() -> None:
    with pytest.raises(ImportError, match=r"2023\.1\.0 is older.*pip install 'pageferry\[dask\]'"):
        needed.check_version("2023.1.0")
    needed.check_version("2024.12.1")
    needed.check_version("2025.1.0+3.gabc")


def test_the_least_version_is_that_of_the_extra() -> None:
    text = (Path(__file__).parents[2] / "pyproject.toml").read_text()
    assert f'"distributed>={".".join(map(str, needed.LEAST))}"' in text


def test_without_dask_it_is_said_what_installs_it() -> None:
    code = "import sys; sys.modules['distributed'] = None; import vmm.dask"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    last = done.stderr.splitlines()[-1]
    assert last == "ImportError: vmm.dask needs distributed: pip install 'pageferry[dask]'"


def test_the_package_without_it_loads_nothing_of_dask() -> None:
    code = "import sys, vmm.sandbox.pool; print({'dask', 'distributed'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


# ---- who finds no room ----


def test_who_finds_no_room_is_called_again_when_no_other_is_under_way() -> None:
    room, entered, go_on = Room(), threading.Event(), threading.Event()
    seen: list[str] = []

    def long() -> str:
        entered.set()
        go_on.wait(20)
        seen.append("long")
        return "long"

    def large() -> str:
        if "long" not in seen:
            seen.append("refused")
            go_on.set()
            raise ResourceError("there is no room")
        seen.append("large")
        return "large"

    with ThreadPoolExecutor(1) as threads:
        other = threads.submit(room.call, long, Ticket())
        assert entered.wait(20)
        assert room.call(large, Ticket()) == "large"
        assert other.result() == "long"
    assert seen == ["refused", "long", "large"]


def test_what_does_not_fit_alone_is_refused_after_two_tries() -> None:
    room, calls = Room(), []

    def large() -> None:
        calls.append(1)
        raise ResourceError("there is no room")

    for count in (2, 4):  # and it is done with
        with pytest.raises(ResourceError):
            room.call(large, Ticket())
        assert len(calls) == count
    assert room.call(lambda: 5, Ticket()) == 5


def test_who_is_cancelled_waits_for_no_room() -> None:
    room, entered, go_on, ticket = Room(), threading.Event(), threading.Event(), Ticket()

    def long() -> None:
        entered.set()
        go_on.wait(20)

    def large() -> str:
        if not ticket.cancelled:
            ticket.cancel()
            raise ResourceError("there is no room")
        return "what a cancelled call does"

    with ThreadPoolExecutor(1) as threads:
        other = threads.submit(room.call, long, Ticket())
        assert entered.wait(20)
        assert room.call(large, ticket) == "what a cancelled call does"
        assert not other.done()
        go_on.set()
