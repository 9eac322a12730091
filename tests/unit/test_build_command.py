"""`pageferry build`, as a user runs it: no KVM needed."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from pathlib import Path

import pytest
from command import TIMEOUT, Ended, one_line, pageferry, started

from vmm.guest.image import load_image

HELLO = '#include "pf.h"\nint main(void) { pf_log("hello"); return 3; }\n'


def test_a_guest_of_the_users_is_built_beside_its_source_from_any_directory(
    tmp_path: Path,
) -> None:
    (tmp_path / "hello.c").write_text(HELLO)
    assert pageferry("build", "hello.c", cwd=tmp_path) == Ended(0, "hello.elf\n", "")
    made = pageferry("build", "hello.c", "-o", "new/one.elf", cwd=tmp_path)
    assert made == Ended(0, "new/one.elf\n", "")
    assert (tmp_path / "new" / "one.elf").is_file()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["hello.c", "hello.elf", "new"]


def test_a_compile_error_is_one_line_and_then_the_compilers_own(tmp_path: Path) -> None:
    source = tmp_path / "wrong.c"
    source.write_text("int main(void)\n{\n    return nothing_of_this_name;\n}\n")
    ended = pageferry("build", source)
    first, *rest = ended.err.splitlines()
    assert (ended.code, ended.out) == (1, "")
    assert first == f"pageferry: cannot compile {source}:"
    assert any("wrong.c:3" in line and "nothing_of_this_name" in line for line in rest)
    assert len(rest) > 1
    assert "Traceback" not in ended.err
    assert list(tmp_path.iterdir()) == [source]


def test_a_link_error_names_sources_and_no_file_that_is_not_the_users(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    wants, twice = Path("sub", "wants.c"), Path("twice.c")
    (tmp_path / wants).write_text(
        "int nowhere(void);\nint main(void)\n{\n    return nowhere();\n}\n"
    )
    (tmp_path / twice).write_text("int main(void)\n{\n    return 1;\n}\n")
    ended = pageferry("build", wants, twice, cwd=tmp_path)
    assert ended.code == 1
    assert "nowhere" in ended.err
    assert f"{wants}:4" in ended.err
    assert str(twice) in ended.err
    assert "pageferry-build-" not in ended.err
    assert ".o:" not in ended.err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["sub", "twice.c"]


def test_build_overwrites_no_source_and_names_what_it_cannot_write(tmp_path: Path) -> None:
    source = tmp_path / "guest.c"
    source.write_text("int main(void) { return 0; }\n")
    ended = pageferry("build", source, "-o", source)
    assert (ended.code, "would be overwritten" in one_line(ended.err)) == (1, True)
    assert source.read_text().startswith("int main")
    ended = pageferry("build", source, "-o", tmp_path)
    assert (ended.code, "is a directory" in one_line(ended.err)) == (1, True)
    ended = pageferry("build", source, "--cc", "no-such-compiler")
    assert (ended.code, "'no-such-compiler' not found" in one_line(ended.err)) == (1, True)


@pytest.mark.parametrize("moment", [0.05, 0.15, 0.3])
def test_ctrl_c_leaves_nothing_of_a_build(tmp_path: Path, moment: float) -> None:
    temporary, source = tmp_path / "temporary", tmp_path / "guest.c"
    temporary.mkdir()
    source.write_text("int main(void) { return 0; }\n")
    with started(temporary, "build", source) as process:
        time.sleep(moment)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGINT)
        _, err = process.communicate(timeout=TIMEOUT)
    # It was done before that, or at the very moment: the guest is whole then.
    assert process.returncode in (0, 130, -signal.SIGINT)
    assert err in ("", "pageferry: interrupted\n")
    left = [path for path in tmp_path.iterdir() if path not in (temporary, source)]
    assert left in ([], [tmp_path / "guest.elf"])
    assert left or process.returncode == 130
    assert all(load_image(path) for path in left)
    assert list(temporary.iterdir()) == []
