"""A header's functions, for libraries without debug information: a compiler reads the header, and
writes debug information about pointers to the functions. Parameters have no names then.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from vmm.errors import ConfigError
from vmm.guest import elf
from vmm.guest.compiler import BuildError, Compiler, run, work_directory
from vmm.sandbox.prototype import Prototype
from vmm.sandbox.prototypes import WANTED, variables

_PREFIX = "pageferry_function_"
_FILE = "pageferry-functions"
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_ERROR = re.compile(rf"^{_FILE}:(\d+):(?:\d+:)? (?:fatal )?error", re.MULTILINE)
_FLAGS = ("-x", "c", "-gdwarf-5", "-O0", "-fno-lto", "-w")
# clang stops after 20 errors otherwise, and gcc has no such end.
_FAMILY_FLAGS = {"clang": ("-ferror-limit=0",), "zig": ("-ferror-limit=0", "-fno-sanitize=all")}
_MOST_ROUNDS = 4


def source(header: str, names: Sequence[str]) -> str:
    """Return C in which a variable points to each function; line N of it, as `#line` counts, is
    for name N. Raises ConfigError for a header's name that C cannot include.
    """
    if any(c in header for c in '"\n\r\\\0'):
        raise ConfigError(f"header {header!r} is no name that C can include")
    rows = [f"__typeof__({name}) *{_PREFIX}{name};" for name in names]
    return "\n".join([f'#include "{header}"', f'#line 1 "{_FILE}"', *rows, ""])


def undeclared(said: str, names: Sequence[str]) -> set[str]:
    """Return the names that a compiler complains about."""
    lines = {int(match[1]) for match in _ERROR.finditer(said)}
    return {name for number, name in enumerate(names, 1) if number in lines}


def read_header(
    header: str, names: Iterable[str], compiler: Compiler, flags: Sequence[str] = ()
) -> dict[str, Prototype]:
    """Return those functions that a header declares; they have no addresses.

    header    as C includes it, from the current directory, too
    flags     the compiler's, such as -I and -D; paths in them are absolute

    Raises BuildError with what the compiler says about the header itself.
    """
    with work_directory("pageferry-header-") as work:
        given, made = work / "functions.c", work / "functions.o"
        options = (*_FLAGS, *_FAMILY_FLAGS.get(compiler.family, ()), "-iquote", str(Path.cwd()))
        start = [*compiler.for_linux, *options, *flags, str(given)]
        failure = f"cannot read {header}"
        given.write_text(source(header, ()))
        # gcc looks for what each undeclared name may be meant to be, which takes 5 ms.
        seen = set(_NAME.findall(run([*start, "-E", "-dD"], failure, cwd=work).stdout))
        left = [name for name in names if name in seen]
        for _ in range(_MOST_ROUNDS):
            given.write_text(source(header, left))
            try:
                run([*start, "-c", "-o", str(made)], failure, cwd=work)
                break
            except BuildError as error:
                wrong = undeclared(str(error), left)
                if not wrong:
                    raise
                left = [name for name in left if name not in wrong]
        else:
            raise BuildError(f"{failure}: the compiler makes no sense of it")
        return variables(elf.sections(elf.Source.of(made.read_bytes()), WANTED), _PREFIX)
