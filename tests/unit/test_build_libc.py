"""`pageferry build --libc`: programs for Linux that are peers, in C and C++, by either compiler."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from command import Ended, one_line, pageferry
from unit.compilers import no_cc

from vmm.guest.build import build_guest
from vmm.guest.compiler import BuildError, Compiler, find_compiler
from vmm.linux import kinds, loader

GUESTS = Path(__file__).resolve().parents[2] / "guests"
FILTER = r"""
#include <math.h>
#include <pf.h>
#include <stdio.h>
#include <stdlib.h>

int main(int argc, char **argv)
{
    double *roots = malloc(100 * sizeof *roots);
    for (int i = 0; i < 100; i++)
        roots[i] = sqrt(i);
    printf("%s %.4f\n", argv[argc - 1], roots[2]);
    if (argc > 2) {
        pf_message m;
        while (pf_receive(&m, PF_FOREVER) == PF_OK)
            if (pf_reply(&m, &roots[m.tag % 100], 8) != PF_OK)
                pf_drop(&m);
        pf_printf("%u is done", PF->self);
    }
    pf_exit(3);
}
"""
CPP = r"""
#include <iostream>
#include <pf.h>
#include <stdexcept>
#include <vector>

int main(int argc, char **)
{
    std::vector<int> all{1, 2, 3};
    pf_message m{};
    PF_CHECK(all.size() == 3);
    try {
        all.at(argc + 7) = 0;
    } catch (const std::out_of_range &) {
        std::cout << "caught" << std::endl;
    }
    return argc > 1 ? pf_send(pf_peer("x"), pf_data(&m), 1, 4096, 0) + pf_owned(&m) : 4;
}
"""
PLAIN = '#include "pf.h"\nint main(void) { return pf_log("hello"); }\n'

Build = Callable[..., Path]

# The first time, ziglang builds a C library, and one of C++.
pytestmark = pytest.mark.timeout(900)


@pytest.fixture
def build(compiler: Compiler, tmp_path: Path) -> Build:
    """Build a program of sources in a folder of their own."""

    def make(*sources: str, by: Compiler = compiler, **options: Any) -> Path:
        return build_guest(
            [tmp_path / source for source in sources],
            tmp_path / "out.elf",
            include_dirs=[GUESTS / "include"],
            library_dir=GUESTS / "lib",
            compiler=by,
            libc=True,
            **options,
        )

    for name, text in (("filter.c", FILTER), ("caught.cpp", CPP), ("plain.c", PLAIN)):
        (tmp_path / name).write_text(text)
    return make


def ended(program: Path, *arguments: str) -> tuple[int, str]:
    done = subprocess.run([program, *arguments], capture_output=True, text=True)
    return done.returncode, done.stdout


def test_one_c_file_is_a_static_program_that_is_a_peer(build: Build) -> None:
    said: list[str] = []
    program = build("filter.c", report=said.append)
    assert said == []
    loaded = loader.load(program)
    assert isinstance(loaded, loader.Program)
    assert (loaded.peer, loaded.interpreter, loaded.stack_code) == (True, None, False)
    assert loaded.place(loaded.entry).symbol == "_start"
    assert ended(program, "last") == (3, "last 1.4142\n")  # as long as it wants nothing of a peer


def test_cpp_has_its_exceptions_and_streams(build: Build) -> None:
    said: list[str] = []
    program = build("caught.cpp", report=said.append, flags=["-Wpedantic", "-std=c++17"])
    assert said == []
    loaded = loader.load(program)
    assert isinstance(loaded, loader.Program)
    assert loaded.peer
    assert ended(program) == (4, "caught\n")


def test_c_and_cpp_together_each_with_its_standard(build: Build, tmp_path: Path) -> None:
    (tmp_path / "old.c").write_text(
        "#if __STDC_VERSION__ != 199901L\n#error not C99\n#endif\nint old(void) { return 8; }\n"
    )
    (tmp_path / "new.cc").write_text(
        "#if __cplusplus != 201703L\n#error not C++17\n#endif\n"
        'extern "C" int old(void);\nint main() { return old(); }\n'
    )
    said: list[str] = []
    program = build("old.c", "new.cc", flags=["-std=c99", "-std=c++17"], report=said.append)
    assert (ended(program)[0], said) == (8, [])


def test_the_calls_are_the_guests_and_what_has_a_name_in_c_is_the_c_librarys(build: Build) -> None:
    names = subprocess.run(["nm", build("filter.c")], capture_output=True, text=True).stdout
    if not names:
        pytest.skip("no nm")
    assert {"pf_receive", "pf_reply", "pf_drop", "pf_printf", "pf_panic"} <= set(names.split())
    assert not {"pf_format", "pf_constructors", "pf_halt"} & set(names.split())


def test_the_headers_have_no_warnings_of_any_kind(build: Build) -> None:
    strict = ["-Wpedantic", "-Wconversion", "-Wshadow", "-Werror"]
    said: list[str] = []
    build("plain.c", flags=["-std=c11", *strict], report=said.append)
    build("caught.cpp", flags=["-std=c++11", "-Wpedantic", "-Werror"], report=said.append)
    assert said == []


def test_where_the_c_library_has_no_static_files_it_says_so(build: Build, tmp_path: Path) -> None:
    if no_cc:
        pytest.skip("no cc")
    pretender = tmp_path / "cc-without"
    pretender.write_text(
        '#!/bin/sh\nfor word; do if [ "$word" = -static ] && [ -n "$PRETEND" ]; then\n'
        'echo "ld: cannot find -lc: No such file" >&2; exit 1; fi; done\nexec cc "$@"\n'
    )
    pretender.chmod(0o755)
    with pytest.MonkeyPatch.context() as patch:
        other = find_compiler(str(pretender))
        patch.setenv("PRETEND", "1")
        with pytest.raises(BuildError, match=r"cannot link out.elf: the C library's static files"):
            build("filter.c", by=other)
    with pytest.raises(BuildError, match=r"(?s)cannot link out.elf:\n.*-lcrooked"):
        build("filter.c", libraries=["crooked"], by=find_compiler("cc"))


def test_the_command_builds_one(tmp_path: Path) -> None:
    (tmp_path / "filter.c").write_text(FILTER)
    (tmp_path / "caught.cpp").write_text(CPP)
    made = pageferry("build", "filter.c", "--libc", "-o", "filter.elf", cwd=tmp_path)
    assert made == Ended(0, "filter.elf\n", "")
    assert ended(tmp_path / "filter.elf", "x") == (3, "x 1.4142\n")
    refused = pageferry("build", "caught.cpp", cwd=tmp_path)
    assert (refused.code, refused.out) == (1, "")
    assert one_line(refused.err).endswith(
        "caught.cpp: C++ wants a C library: give --libc, or write it in C"
    )


def test_what_the_manual_shows_is_built(build: Build, tmp_path: Path) -> None:
    shown = re.search(
        r"^```c\n(.*?)```", (GUESTS.parent / "docs/linux.md").read_text(), re.S | re.M
    )
    assert shown is not None
    (tmp_path / "shown.c").write_text(shown[1])
    said: list[str] = []
    loaded = loader.load(build("shown.c", report=said.append))
    assert isinstance(loaded, loader.Program)
    assert (loaded.peer, said) == (True, [])


def test_a_guest_is_not_what_it_was_not_asked_to_be(tmp_path: Path) -> None:
    (tmp_path / "plain.c").write_text(PLAIN)
    for flags, kind in ((["--libc"], kinds.Kind.PEER), ([], kinds.Kind.GUEST)):
        assert pageferry("build", "plain.c", *flags, cwd=tmp_path).code == 0
        source = loader.Source.of((tmp_path / "plain.elf").read_bytes())
        assert kinds.detect(source, "plain.elf") is kind
    assert shutil.which("cc") is None or loader.load(tmp_path / "plain.elf")
