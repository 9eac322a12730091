"""Whatever a function takes and returns, it does in a machine what it does here."""

from __future__ import annotations

import ctypes
import subprocess
from pathlib import Path
from typing import Any

import pytest
from kvm.random_functions import Library, Made, numbers

from vmm import Sandbox
from vmm.guest.compiler import find_compiler

np: Any = pytest.importorskip("numpy", reason="a nested lane has no more than the package needs")
FLAGS = ("-O1", "-fwrapv", "-w")
CALLS = 4  # of each function


@pytest.mark.not_in_lanes("there is no compiler")
@pytest.mark.parametrize("seed", [1, 2])
def test_a_function_of_any_prototype_does_what_it_does_in_process(
    tmp_path: Path, seed: int
) -> None:
    made = Library(seed, 60)
    source, caller, here = (tmp_path / name for name in ("f.c", "caller.c", "f.so"))
    source.write_text(made.source)
    caller.write_text(made.caller)
    compiler = find_compiler(None)
    command = [*compiler.command, *FLAGS, "-shared", "-fPIC", "-o", here, source, caller]
    subprocess.run(command, check=True)
    native = ctypes.CDLL(str(here))
    with Sandbox(source, cflags=FLAGS, pool="32M", fresh=seed % 2 == 0) as lib:
        for function in made.functions:
            for _ in range(CALLS):
                check(made, function, getattr(native, f"by_{function.name}"), lib)


def check(made: Library, function: Made, native: Any, lib: Sandbox) -> None:
    """Call a function in both ways, and compare what it returns and what it has written."""
    ours: list[Any] = []
    theirs: list[Any] = []
    for one in function.taken:
        if not one.count:
            ours.append(made.value(one.kind))
            theirs.append(ours[-1])
            continue
        values = np.array([made.value(one.kind).value for _ in range(one.count)], one.kind)
        ours.append((one.kind * one.count)(*values.tolist()))
        theirs.append(lib.array(values) if made.random.random() < 0.5 else values)
    pointers = (ctypes.c_void_p * (len(ours) + 1))(*map(ctypes.addressof, ours))
    result = function.result and function.result.kind()
    native(pointers, None if result is None else ctypes.byref(result))
    found = lib[function.name](*theirs)
    said = lib[function.name].__doc__
    if function.result is None:
        assert found is None
    else:
        kind = function.result.kind
        assert numbers(kind, found) == numbers(kind, result), said
    for one, mine, other in zip(function.taken, ours, theirs, strict=True):
        assert not one.count or bytes(mine) == other.tobytes(), said
    if function.result is not None and not any(one.count for one in function.taken):
        again = lib[function.name](*[getattr(value, "value", value) for value in theirs])
        assert numbers(function.result.kind, again) == numbers(function.result.kind, found), said
