"""What happens while the command is being loaded: it ends in one line, as everything else does."""

from __future__ import annotations

import contextlib
import os
import signal
import time

import pytest
from command import TIMEOUT, one_line, pageferry, start

CODE = """import os
from vmm.__main__ import main
os.close(int(os.environ['READY']))
main()"""
FAILING = """import sys
class Finder:
    def find_spec(name, *rest):
        if name == {name!r}:
            raise {error}
sys.meta_path.insert(0, Finder)
from vmm.__main__ import main
main()"""


@pytest.mark.parametrize("moment", [0.02, 0.04, 0.08, 0.12, 0.16])
def test_ctrl_c_while_it_is_loaded_is_one_line(moment: float) -> None:
    reader, writer = os.pipe()
    process = start("--help", code=CODE, env={"READY": str(writer)}, pass_fds=[writer])
    os.close(writer)
    with process, os.fdopen(reader, "rb") as ready:
        ready.read()
        time.sleep(moment)
        with contextlib.suppress(ProcessLookupError):
            process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=TIMEOUT)
    if process.returncode == 130:
        assert err == "pageferry: interrupted\n"
    else:  # it was done before that, or at the very moment
        assert (process.returncode in (0, -signal.SIGINT), err) == (True, "")
        assert out.startswith("Usage: ")


@pytest.mark.parametrize(
    ("name", "error", "said"),
    [
        ("click", "ModuleNotFoundError(\"No module named 'click'\")", "install the package again"),
        (
            "rich",
            "ImportError('librich.so: failed to map segment')",
            "failed to map segment: raise",
        ),
        ("ctypes", "MemoryError", "out of memory: raise the limits"),
        ("ctypes", "OSError(24, 'Too many open files')", "Too many open files: raise the limits"),
        ("ctypes", "SystemError('returned NULL without setting an exception')", "out of memory"),
    ],
)
def test_what_cannot_be_loaded_is_one_line(name: str, error: str, said: str) -> None:
    ended = pageferry("--help", code=FAILING.format(name=name, error=error))
    assert (ended.code, ended.out) == (1, "")
    line = one_line(ended.err)
    assert line.startswith("cannot be loaded: ")
    assert said in line


def test_it_is_loaded_before_anything_that_takes_time() -> None:
    code = "import sys; old = {*sys.modules}; import vmm.__main__; print(*{*sys.modules} - old)"
    loaded = pageferry(code=code).out.split()
    assert not {"typing", "importlib.util", "ctypes", "click"} & set(loaded)
