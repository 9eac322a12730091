"""What a program asks of a processor, as far as that can be told before it runs. Pure, but for the
look at what this processor has.

A machine that lacks an instruction crashes at the first one, in whatever task that is. GCC writes
down with which options it has compiled (the producer, in the debug information); where it does not,
the options that a user gives are known.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable
from pathlib import Path

# By the compiler's options, what /proc/cpuinfo calls it.
_FEATURES = {
    **{name: name for name in ("ssse3", "popcnt", "avx", "avx2", "fma", "f16c", "movbe", "adx")},
    **{name: name for name in ("aes", "bmi2", "vaes", "gfni", "vpclmulqdq", "fma4", "xop")},
    **{"sse3": "pni", "sse4.1": "sse4_1", "sse4.2": "sse4_2", "bmi": "bmi1", "lzcnt": "abm"},
    **{"pclmul": "pclmulqdq", "sha": "sha_ni", "sse4": "sse4_2", "abm": "abm"},
    **{name: name for name in ("avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl")},
}
_V2 = ("pni", "ssse3", "sse4_1", "sse4_2", "popcnt")
_V3 = (*_V2, "avx", "avx2", "bmi1", "bmi2", "f16c", "fma", "abm", "movbe")
_V4 = (*_V3, "avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl")
_LEVELS = {"x86-64-v2": _V2, "x86-64-v3": _V3, "x86-64-v4": _V4}
_PRODUCER = re.compile(rb"(?:GNU C|GNU GIMPLE|clang version )[^\0]{0,8192}")


def of_options(options: Iterable[str]) -> frozenset[str]:
    """Return the features that a compiler's options allow it to use.

    `-march=native` is what this processor has. Other processors by name are not looked up.
    """
    found: set[str] = set()
    for option in options:
        if option.startswith("-march="):
            level = option.removeprefix("-march=")
            known = set(_FEATURES.values()) & present() if level == "native" else ()
            found |= {*_LEVELS.get(level, known)}
        elif option.startswith("-mno-"):
            found.discard(_FEATURES.get(option.removeprefix("-mno-"), ""))
        elif option.startswith("-m") and option[2:] in _FEATURES:
            found.add(_FEATURES[option[2:]])
    return frozenset(found)


def of_program(content: bytes) -> frozenset[str]:
    """Return the features that any part of a program was compiled for, as it says itself."""
    producers = {found.decode(errors="replace") for found in _PRODUCER.findall(content)}
    return frozenset().union(*(of_options(producer.split()) for producer in producers))


@functools.cache
def present() -> frozenset[str]:
    """Return what this processor has, and a machine gets of it: nothing that needs more state than
    AVX has.
    """
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        name, _, flags = line.partition(":")
        if name.strip() == "flags":
            return frozenset(flag for flag in flags.split() if not flag.startswith("avx512"))
    return frozenset()
