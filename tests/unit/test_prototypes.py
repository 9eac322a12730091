"""C prototypes as compilers write them into debug information, read back."""

from __future__ import annotations

import inspect
import random
import struct
from collections.abc import Mapping
from pathlib import Path

import pytest
from unit.compilers import no_cc, no_zig
from unit.image_scene import costs

from vmm.errors import ConfigError, GuestImageError
from vmm.guest import elf
from vmm.guest.compiler import BuildError, Compiler, find_compiler, run
from vmm.guest.lines import Line
from vmm.sandbox import dwarf, prototypes
from vmm.sandbox.ctype import Array, Field, Float, Int, Opaque, Pointer, Struct
from vmm.sandbox.header import read_header
from vmm.sandbox.prototype import Prototype
from vmm.sandbox.prototypes import Prototypes

# Each function's declaration, and what is read back where that is spelled differently.
FUNCTIONS = {
    "void blur(uint8_t *pixels, int width, int height, double sigma)": "",
    "int none(void)": "",
    "point middle(point a, const point *b)": "",
    "float scaled(float x, enum color c)": "",
    "size_t longest(const char *text, const char *const *others)": "",
    "void walk(const struct node *restrict first, struct opaque *o)": (
        "void walk(const struct node *first, struct opaque *o)"
    ),
    "double total(double a[static 16], int n)": "double total(double *a, int n)",
    "double corner(row *rows)": "double corner(double (*rows)[3])",
    "double first(const double rows[][3])": "double first(const double (*rows)[3])",
    "double trace(int n, const double m[n][n])": "double trace(int n, const double *m)",
    "void paint(int w, pixel p[][w][3])": "void paint(int w, pixel (*p)[3])",
    "void each(void (*visit)(void *, int), void *context)": "",
    "int printed(const char *format, ...)": "",
    "int peek(volatile int *const place, pixel in)": "int peek(int *place, pixel in)",
    "struct bits *masked(struct bits *b)": "",
    "char **names(void **handle)": "",
}
TYPES = """
#include <stddef.h>
#include <stdint.h>
typedef struct { double x, y; } point;
struct node {
    struct node *next;
    union { int i; float f; };
    struct { char tag; short rank; };
    char name[16];
    double m[2][3];
    union { uint64_t whole; uint8_t bytes[8]; } id;
    int8_t rest[];
};
struct opaque;
enum color { RED, GREEN };
struct bits { int a : 3; int b : 5; };
typedef double row[3];
typedef struct node *link;
typedef union { uint32_t all; uint8_t each[4]; } pixel;
struct __attribute__((packed)) tight { char c; double d; };
struct wide { _Alignas(16) char c; };
"""
OTHERS = """
int unpacked(struct tight t, struct wide w, link l) { return t.c + w.c + l->i; }
static int hidden(int x) { return x; }
int shown(int x) { return hidden(x); }
int field(struct bits b) { return b.a; }
long double longer(long double x) { return x; }
_Complex double turned(_Complex double x) { return x; }
unsigned __int128 broad(__int128 x) { return x; }
int original(int given) { return given; }
int other_name(int) __attribute__((alias("original")));
int (*variable)(void);
"""


def body(declared: str) -> str:
    """A definition: what is returned does not matter."""
    result = declared[: declared.index("(")].rpartition(" ")[0]
    stars = "*" * declared[: declared.index("(")].count("*")
    made = f"static {result.rstrip('*')} {stars}made; return made;" if result != "void" else ""
    return f"{declared} {{ {made} }}".replace("static const", "static")


def written() -> str:
    return TYPES + "\n".join(map(body, FUNCTIONS)) + OTHERS


def compiled(compiler: Compiler, made: Path, text: str, *flags: str) -> bytes:
    source = made.with_suffix(".c")
    source.write_text(text)
    shared = "-c" if compiler.family == "zig" or "-c" in flags else "-shared"
    command = [*compiler.for_linux, "-O2", "-g", "-w", "-fPIC", shared, *flags, str(source)]
    run([*command, "-o", str(made)], "cannot compile", cwd=made.parent)
    return made.read_bytes()


def functions(data: bytes) -> Prototypes:
    return prototypes.read(elf.Source.of(data), "x.so")


def refused(prototype: Prototype) -> str:
    with pytest.raises(ConfigError) as caught:
        _ = prototype.layout
    return str(caught.value)


WAYS = [
    pytest.param("cc", flags, id=name, marks=pytest.mark.skipif(no_cc, reason="no C compiler"))
    for name, flags in {
        "dwarf-5": ("-gdwarf-5",),
        "dwarf-4": ("-gdwarf-4",),
        "dwarf-2": ("-gdwarf-2", "-gstrict-dwarf", "-O0"),
        "64-bit-dwarf": ("-gdwarf64",),
        "compressed": ("-gz=zlib",),
        "object": ("-c",),
        "link-time": ("-flto",),
    }.items()
] + [
    pytest.param("ziglang", flags, id=name, marks=pytest.mark.skipif(no_zig, reason="no ziglang"))
    for name, flags in {"zig": (), "zig-dwarf-5": ("-gdwarf-5",)}.items()
]


@pytest.mark.parametrize(("command", "flags"), WAYS)
def test_what_was_written_is_read_back(
    command: str, flags: tuple[str, ...], tmp_path: Path
) -> None:
    data = compiled(find_compiler(command), tmp_path / "x", written(), *flags)
    found = functions(data)
    for declared, otherwise in FUNCTIONS.items():
        name = declared[: declared.index("(")].split()[-1].strip("*")
        assert found[name].signature() == (otherwise or declared)
    assert "hidden" not in found
    assert "variable" not in found
    if "-flto" not in flags:
        line = written().splitlines().index(body("int none(void)")) + 1
        assert found["none"].place == Line("x.c", line)
    check_structures(found, "-gstrict-dwarf" not in flags)  # DWARF 2 has no word for it
    check_what_is_refused(found)


def check_structures(found: Prototypes, aligned: bool) -> None:
    byte, tag, real = Int("", 1, False), Int("", 1, True, "char"), Float("", 8)
    node = found["walk"].parameters[0].type
    assert isinstance(node, Pointer)
    assert node.const
    ident = Struct(
        "", 8, 8, (Field("whole", 0, Int("", 8, False)), Field("bytes", 0, Array(byte, 8)))
    )
    assert node.target == Struct(
        "",
        88,
        8,
        (
            Field("next", 0, Pointer(Opaque(""))),
            Field("i", 8, Int("", 4, True)),
            Field("f", 8, Float("", 4)),
            Field("tag", 12, tag),
            Field("rank", 14, Int("", 2, True)),
            Field("name", 16, Array(tag, 16)),
            Field("m", 32, Array(Array(real, 3), 2)),
            Field("id", 80, ident),
            Field("rest", 88, Array(Int("", 1, True), 0)),
        ),
    )
    tight, wide, link = (parameter.type for parameter in found["unpacked"].parameters)
    assert (tight.size, tight.align) == (9, 1)
    assert wide.size == 16
    assert wide.align == (16 if aligned else 1)
    assert isinstance(link, Pointer)
    assert not link.const


def check_what_is_refused(found: Prototypes) -> None:
    assert refused(found["field"]) == "field: b: struct bits has bit-fields: it cannot be passed"
    assert "longer: the result: long double" in refused(found["longer"])
    assert "turned: the result: " in refused(found["turned"])
    assert "128 bits" in refused(found["broad"])
    assert refused(found["printed"]) == (
        "printed takes arguments of any number: set argtypes first"
    )


# ---- Several files, and what is not described ----


needs_cc = pytest.mark.skipif(no_cc, reason="no C compiler")
needs_zig = pytest.mark.skipif(no_zig, reason="no ziglang")


@needs_cc
def test_a_function_is_described_where_it_is_defined_or_else_where_it_is_declared(
    tmp_path: Path,
) -> None:
    assembly, user = tmp_path / "assembly.S", tmp_path / "user.c"
    assembly.write_text(
        ".globl fast, slow\n.type fast, @function\n.type slow, @function\n"
        "fast: ret\nslow: ret\n.section .note.GNU-stack\n"
    )
    user.write_text("int fast(double); int caller(double x) { return fast(x); }")
    data = compiled(
        find_compiler("cc"),
        tmp_path / "x",
        "static int caller(char c) { return c; }\n"
        'int aliased(int) __attribute__((alias("given")));\n'
        "int given(int number) { return caller(number); }\n",
        *(str(assembly), str(user)),
    )
    found = functions(data)
    assert found["fast"].signature() == "int fast(double)"
    assert found["caller"].signature() == "int caller(double x)"
    assert found["aliased"].signature() == "int aliased(int number)"
    assert found["aliased"].address == found["given"].address != 0
    assert found["slow"].unknown
    assert refused(found["slow"]) == (
        "slow: its types are not known, as it was compiled without -g: set argtypes and restype, "
        "or give the sandbox the header that has them"
    )


@needs_zig
def test_functions_of_cpp_are_described_under_their_symbols(tmp_path: Path) -> None:
    source, made = tmp_path / "x.cpp", tmp_path / "x.o"
    source.write_text(
        "struct Kept { Kept(const Kept &); ~Kept(); int v; };\n"
        "struct Derived : Kept {};\n"
        "struct Plain { static int count; int a; bool b; int sum() const { return a; } };\n"
        'namespace deep { extern "C" int inner(const Plain &p) { return p.a; } }\n'
        'extern "C" { int taken(Plain p) { return p.b; } int kept(Kept k) { return k.v; }\n'
        "int derived(Derived d) { return d.v; } Plain *made(); }\n"
        "Plain *made() { return nullptr; }\n"
        "int mangled(int a) { return a; }\n"
    )
    command = [*find_compiler("ziglang").for_linux_cpp, "-g", "-O2", "-c", str(source)]
    run([*command, "-o", str(made)], "cannot compile", cwd=tmp_path)
    found = functions(made.read_bytes())
    assert found["taken"].signature() == "int taken(struct Plain p)"
    assert found["taken"].layout.arguments[0].size == 8
    assert found["inner"].signature() == "int inner(const struct Plain *p)"
    assert found["made"].signature() == "struct Plain *made(void)"
    assert found["_Z7mangledi"].signature() == "int _Z7mangledi(int a)"
    assert "has a constructor or destructor" in refused(found["kept"])
    assert "struct Derived has" in refused(found["derived"])


@pytest.mark.parametrize(
    "command", [pytest.param("cc", marks=needs_cc), pytest.param("ziglang", marks=needs_zig)]
)
def test_a_header_tells_of_functions_that_have_no_debug_information(
    command: str, tmp_path: Path
) -> None:
    compiler = find_compiler(command)
    others = "".join(f"int other{number}(void) {{ return 0; }}\n" for number in range(40))
    data = compiled(
        compiler, tmp_path / "x", "float half(float x) { return x / 2; }\n" + others, "-g0"
    )
    header = tmp_path / "half.h"
    header.write_text("#define other39 0\nstruct s *made(int[4]);\nfloat half(float x);\n")
    found = functions(data)
    assert all(prototype.unknown for prototype in found.values())
    told = read_header(str(header), ["nowhere", *found, "int", "made", "no-name"], compiler)
    found.learn(told)
    assert told.keys() == {"half", "made"}
    assert told["made"].signature() == "struct s *made(int *)"
    assert found["half"].signature() == "float half(float)"
    assert found["other1"].unknown
    assert "made" not in found


@needs_cc
def test_a_header_that_is_not_there_is_said_as_the_compiler_does() -> None:
    with pytest.raises(BuildError, match=r"cannot read no-such\.h"):
        read_header("no-such.h", ["f"], find_compiler("cc"))
    with pytest.raises(ConfigError, match="no name that C can include"):
        read_header('x"\n#error', ["f"], find_compiler("cc"))


def test_a_file_that_is_no_elf_is_refused() -> None:
    for data in (b"", b"\x7fELF", b"#!/bin/sh\n"):
        with pytest.raises(GuestImageError, match=r"x\.so: "):
            functions(data)


# ---- Files that are made to cost, or to deceive ----


def info(*entries: bytes) -> dict[str, bytes]:
    """Debug information of one unit, version 4. Abbreviations: 1 the unit, 2 a function, 3 its
    parameters, 4 a structure, 5 its members, 6 a pointer, 7 an array, 8 its length, 9 `char`.
    """
    rows = {
        1: (0x11, 1, ()),
        2: (0x2E, 1, ((3, 8), (0x3F, 0x19), (0x49, 0x13))),
        3: (5, 0, ((0x49, 0x13),)),
        4: (0x13, 1, ((0x0B, 0x06),)),
        5: (0x0D, 0, ((3, 8), (0x49, 0x13), (0x38, 0x06))),
        6: (0x0F, 0, ((0x49, 0x13),)),
        7: (1, 1, ((0x49, 0x13),)),
        8: (0x21, 0, ((0x37, 7),)),
        9: (0x24, 0, ((3, 8), (0x3E, 0x0B), (0x0B, 0x0B))),
    }
    table = b"".join(
        bytes([code, tag, children, *(byte for pair in pairs for byte in pair), 0, 0])
        for code, (tag, children, pairs) in rows.items()
    )
    unit = struct.pack("<HIB", 4, 0, 8) + b"\1" + b"".join(entries) + b"\0"
    return {
        ".debug_info": struct.pack("<I", len(unit)) + unit,
        ".debug_abbrev": table + b"\0",
        ".symtab": bytes(24) + struct.pack("<IBBHQQ", 1, 0x12, 0, 1, 64, 0),
        ".strtab": b"\0f\0",
    }


START = 12  # of the first entry in the unit


def reference(offset: int) -> bytes:
    return struct.pack("<I", offset)


def function(result: int, *parameters: int) -> bytes:
    taken = b"".join(b"\3" + reference(offset) for offset in parameters)
    return b"\2f\0" + reference(result) + taken + b"\0"


@pytest.mark.parametrize(
    "entries",
    [
        pytest.param((b"\6" + reference(START), function(START)), id="a pointer to itself"),
        pytest.param(
            (b"\4\1\0\0\0" + b"\5a\0" + reference(START) + bytes(5), function(START)),
            id="a structure within itself",
        ),
        pytest.param((b"\7" + reference(START) + b"\0", function(START)), id="an array of itself"),
        pytest.param((function(0xFFFF_FFFF),), id="a type that is not there"),
        pytest.param((function(0),), id="a type within the unit's header"),
        pytest.param((b"\x7f",), id="an entry of no kind"),
        pytest.param((b"\xff" * 64,), id="a number without an end"),
    ],
)
def test_types_without_sense_leave_a_function_unknown(entries: tuple[bytes, ...]) -> None:
    with costs(16):
        assert Prototypes(info(*entries))["f"] == Prototype("f", 64, unknown=True)


def test_a_structure_of_structures_of_structures_takes_no_time() -> None:
    """Each has ten of the next: 10^30 fields."""
    size = len(structure(0))
    rows = [structure(START + size * (level + 1)) for level in range(30)]
    last = b"\x09c\0\6\1"
    with costs(64):
        found = Prototypes(info(*rows, last, function(START)))["f"]
    assert found.unknown or "too large" in refused(found)


def structure(member: int) -> bytes:
    fields = (b"\5" + b"abcdefghij"[n : n + 1] + b"\0" + reference(member) for n in range(10))
    return b"\4\xff\0\0\0" + b"".join(field + bytes(4) for field in fields) + b"\0"


def test_an_array_of_more_than_memory_holds_is_refused() -> None:
    count = struct.pack("<Q", 1 << 62)
    char = START + 16
    array = b"\7" + reference(char) + b"\x08" + count + b"\0" + b"\0"
    found = Prototypes(info(array, b"\x09c\0\6\1", function(START, START)))["f"]
    with costs(4):
        assert found.unknown or "cannot be passed" in refused(found)


def test_a_structure_that_says_it_has_more_than_memory_is_none() -> None:
    rows = {4: b"\4\xff\xff\xff\x7f\0", 6: b"\6" + reference(START)}
    found = Prototypes(info(*rows.values(), function(START, START + len(rows[4]))))["f"]
    assert "too large" in refused(found)
    with costs(4), pytest.raises(TypeError):
        found.typed(None, None).bind(({},))


def test_many_functions_in_many_units_are_read_as_far_as_may_be() -> None:
    made = info(function(START))
    made[".debug_info"] *= 400_000
    with costs(256):
        assert Prototypes(made)["f"].name == "f"


@needs_cc
def test_damaged_debug_information_is_never_an_error(tmp_path: Path) -> None:
    data = compiled(find_compiler("cc"), tmp_path / "x", written())
    sections = elf.sections(elf.Source.of(data), prototypes.WANTED)
    dice = random.Random(7)
    names = [name for name in dwarf.WANTED if sections.get(name)]
    for _ in range(150):
        found = Prototypes(damaged(sections, dice.choice(names), dice))
        for prototype in found.values():
            signature = prototype.signature()
            assert signature.isprintable()
            assert isinstance(prototype.inspected(), inspect.Signature)


def damaged(sections: Mapping[str, bytes], name: str, dice: random.Random) -> dict[str, bytes]:
    data = bytearray(sections[name])
    for _ in range(dice.choice((1, 3, 30))):
        data[dice.randrange(len(data))] = dice.choice((0, 0xFF, dice.randrange(256)))
    return {**sections, name: bytes(data)}
