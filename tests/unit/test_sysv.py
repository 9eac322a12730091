"""The calling convention, against compilers: what they find where `sysv` says that it is."""

from __future__ import annotations

import ctypes
import random
import tempfile
from pathlib import Path

import hypothesis.strategies as st
import pytest
from hypothesis import HealthCheck, Phase, example, given, settings
from unit.compilers import no_cc, no_zig

from vmm.errors import ConfigError
from vmm.guest import elf
from vmm.guest.compiler import find_compiler, run
from vmm.sandbox import prototypes
from vmm.sandbox.ctype import CType, Field, Float, Int, Opaque, Pointer, Struct, Void, scalars
from vmm.sandbox.prototype import Parameter, Prototype
from vmm.sandbox.sysv import Layout

SCALARS = (
    *("char", "signed char", "unsigned char", "short", "unsigned short", "int", "unsigned int"),
    *("long", "unsigned long", "_Bool", "float", "double", "void *", "enum color"),
)
FLOATING = st.sampled_from(("float", "double"))
ALIGNED = "_Alignas(16) "
SLOT = 512  # bytes that an argument is given in `seen`

# What a machine's program does as well, with the same frame.
CALLER = r"""
__asm__(".globl call_frame\n.type call_frame, @function\ncall_frame:\n"
    "push %rbp\nmov %rsp, %rbp\npush %rbx\npush %r12\nmov %rdi, %rbx\n"
    "mov 152(%rbx), %rcx\nlea (,%rcx,8), %rax\nsub %rax, %rsp\n"
    "lea 168(%rbx), %rsi\nmov %rsp, %rdi\nrep movsq\n"
    "movq 56(%rbx), %xmm0\nmovq 64(%rbx), %xmm1\nmovq 72(%rbx), %xmm2\nmovq 80(%rbx), %xmm3\n"
    "movq 88(%rbx), %xmm4\nmovq 96(%rbx), %xmm5\nmovq 104(%rbx), %xmm6\nmovq 112(%rbx), %xmm7\n"
    "mov 8(%rbx), %rdi\nmov 16(%rbx), %rsi\nmov 24(%rbx), %rdx\n"
    "mov 32(%rbx), %rcx\nmov 40(%rbx), %r8\nmov 48(%rbx), %r9\nmov 160(%rbx), %rax\n"
    "call *(%rbx)\n"
    "mov %rax, 120(%rbx)\nmov %rdx, 128(%rbx)\nmovq %xmm0, 136(%rbx)\nmovq %xmm1, 144(%rbx)\n"
    "lea -16(%rbp), %rsp\npop %r12\npop %rbx\npop %rbp\nret\n");
enum color { RED, GREEN };
unsigned char seen[64 * 512], given[512];
"""


class Frame(ctypes.Structure):
    _fields_ = (
        ("function", ctypes.c_uint64),
        ("general", ctypes.c_uint64 * 6),
        ("sse", ctypes.c_uint64 * 8),
        ("result_general", ctypes.c_uint64 * 2),
        ("result_sse", ctypes.c_uint64 * 2),
        ("stack_words", ctypes.c_uint64),
        ("vectors", ctypes.c_uint64),
        ("stack", ctypes.c_ubyte * 8192),
    )


def called(
    caller: ctypes._CFuncPtr, address: int, prototype: Prototype, values: list[bytes]
) -> bytes:
    """Call a function of this process by its layout; return its result's bytes."""
    layout = prototype.layout
    memory = ctypes.create_string_buffer(layout.hidden + 2 * layout.align)
    place = -(-ctypes.addressof(memory) // layout.align) * layout.align
    general, sse, stack = layout.pack(values, place)
    frame = Frame(address, tuple(general), tuple(sse))
    frame.stack_words, frame.vectors = len(stack) // 8, len(sse)
    frame.stack[: len(stack)] = stack
    caller(ctypes.byref(frame))
    if layout.hidden:
        assert frame.result_general[0] == place
    filled = ctypes.string_at(place, layout.hidden)
    return layout.unpack(*frame.result_general, *frame.result_sse, filled)


# ---- Functions made up, compiled and called ----


def structures(depth: int = 2) -> st.SearchStrategy[str]:
    """The definition of a structure or union, most of them small, some packed."""
    member = st.builds(
        lambda align, kind, count: (align + kind, f"[{count}]" if count else ""),
        st.sampled_from((*[""] * 12, ALIGNED)),
        st.one_of(st.sampled_from(SCALARS), FLOATING),
        st.sampled_from((0, 0, 0, 1, 2, 3, 7)),
    )
    if depth:
        member = st.one_of(member, member, st.tuples(structures(depth - 1), st.just("")))
    return st.builds(
        defined,
        st.sampled_from(("struct", "struct", "struct", "union")),
        st.sampled_from((False, False, False, False, True)),
        st.lists(member, min_size=1, max_size=3),
    )


def defined(word: str, packed: bool, members: list[tuple[str, str]]) -> str:
    fields = " ".join(f"{kind} m{n}{array};" for n, (kind, array) in enumerate(members))
    if not packed:
        return f"{word} {{ {fields} }}"
    # Debug information does not say `packed`: with what is over-aligned in it, it may look as if
    # it were aligned itself.
    return f"{word} __attribute__((packed)) {{ {fields.replace(ALIGNED, '')} }}"


# A packed structure at any place, in one that is not packed: aligned to 16, on the stack at 8.
UNEVEN = "struct __attribute__((packed)) { unsigned long m0; float m1; double m2; }"
WITHIN = f"struct {{ char m0; {UNEVEN} m1; struct {{ {ALIGNED}float m0; }} m2; }}"
PINNED = [
    ("char", [*["long"] * 7, WITHIN, "char"]),
    ("char", [*["long"] * 7, f"struct {{ {WITHIN} m0[2]; }}", "char"]),
    (WITHIN, [f"union {{ {WITHIN} m0; char m1; }}", "char", *["float"] * 9, WITHIN]),
    ("char", [*["long"] * 7, "struct { char m0; low m1; high m2; }", "char"]),
    ("char", [*["long"] * 7, "struct { char m0; high m1; long m2[3]; }", "char"]),
    ("char", [*["long"] * 7, "struct { char m0; highs m1; }", "high", "highs", "char"]),
    ("char", [*["long"] * 7, "struct capped", "struct { struct capped m0; }", "char"]),
]
TYPES = """
typedef int low __attribute__((aligned(1)));
typedef float high __attribute__((aligned(16)));
typedef struct { long m0[3]; } highs __attribute__((aligned(16)));
#pragma pack(push, 4)
struct capped { _Alignas(16) float m0; int m1[7]; };
#pragma pack(pop)
"""

kinds = st.one_of(st.sampled_from(SCALARS), FLOATING, structures())
functions = st.tuples(kinds, st.lists(kinds, max_size=14))


def source(made: list[tuple[str, list[str]]]) -> str:
    """C in which function N notes its arguments in `seen`, and returns what is in `given`."""
    text = [CALLER, TYPES]
    for number, (result, parameters) in enumerate(made):
        text.append(f"typedef {result} r{number};")
        text += [f"typedef {kind} t{number}_{n};" for n, kind in enumerate(parameters)]
        taken = ", ".join(f"t{number}_{n} a{n}" for n in range(len(parameters)))
        copies = "".join(
            f"__builtin_memcpy(seen + {SLOT * n}, &a{n}, sizeof a{n}); "
            for n in range(len(parameters))
        )
        back = f"r{number} r; __builtin_memcpy(&r, given, sizeof r); return r;"
        text.append(f"r{number} f{number}({taken or 'void'}) {{ {copies}{back} }}")
    return "\n".join(text) + "\n"


def something(kind: CType, dice: random.Random) -> bytes:
    """Bytes of a type: any, but for padding, which is zero, and bools."""
    made = bytearray(kind.size)
    parts = list(scalars(kind))
    for offset, part in parts:
        made[offset : offset + part.size] = dice.randbytes(part.size)
    for offset, part in parts:  # of a union's as well, whatever lies over them
        if isinstance(part, Int) and part.kind == "bool":
            made[offset] &= 1
    return bytes(made)


def without_padding(kind: CType, data: bytes) -> dict[int, bytes]:
    return {offset: data[offset : offset + part.size] for offset, part in scalars(kind)}


COMPILERS = [
    pytest.param("cc", marks=pytest.mark.skipif(no_cc, reason="no C compiler")),
    pytest.param("ziglang", marks=pytest.mark.skipif(no_zig, reason="no ziglang")),
]


@pytest.mark.parametrize("command", COMPILERS)
@settings(
    max_examples=3,
    deadline=None,
    phases=[Phase.explicit, Phase.generate],
    suppress_health_check=list(HealthCheck),
)
@example(made=PINNED, seed=0)
@given(made=st.lists(functions, min_size=30, max_size=60), seed=st.integers(0, 1 << 32))
def test_compiled_functions_find_their_arguments_and_their_results_are_found(
    command: str, made: list[tuple[str, list[str]]], seed: int
) -> None:
    check_calls(command, made, seed)


def check_calls(
    command: str, made: list[tuple[str, list[str]]], seed: int, types: str = ""
) -> None:
    dice = random.Random(seed)
    text = types + source(made)
    with tempfile.TemporaryDirectory() as work:
        library, found = loaded(command, text, Path(work))
        seen, returned = ((ctypes.c_ubyte * 512).in_dll(library, n) for n in ("seen", "given"))
        caller = library.call_frame
        for number in range(len(made)):
            prototype = found[f"f{number}"]
            if is_refused(prototype):
                continue
            values = [something(each.type, dice) for each in prototype.parameters]
            result = something(prototype.result, dice)
            ctypes.memmove(returned, result, len(result))
            address = ctypes.cast(library[prototype.name], ctypes.c_void_p).value
            assert address is not None
            back = called(caller, address, prototype, values)
            for index, (each, value) in enumerate(zip(prototype.parameters, values, strict=True)):
                data = ctypes.string_at(ctypes.addressof(seen) + SLOT * index, len(value))
                assert without_padding(each.type, data) == without_padding(each.type, value), made[
                    number
                ]
            assert without_padding(prototype.result, back) == without_padding(
                prototype.result, result
            ), made[number]


def is_refused(prototype: Prototype) -> bool:
    """Whether it is, as there is no agreement on its unions."""
    try:
        _ = prototype.layout
    except ConfigError as error:
        assert "compilers differ on what is passed" in str(error)
        return True
    return False


def loaded(command: str, text: str, work: Path) -> tuple[ctypes.CDLL, prototypes.Prototypes]:
    given, made = work / "x.c", work / "x.so"
    given.write_text(text)
    compiler = find_compiler(command)
    flags = ("-shared", "-fPIC", "-gdwarf-5", "-O1", "-w", "-nostdlib")
    run([*compiler.for_linux, *flags, str(given), "-o", str(made)], "cannot compile", cwd=work)
    return ctypes.CDLL(str(made)), prototypes.read(elf.Source.of(made.read_bytes()), "x.so")


# ---- Single cases ----

DIFFERENT = """
typedef int low __attribute__((aligned(1)));
typedef struct { char c; low at; } unaligned;
typedef struct { char c; union { low at; } m; } deeper;
typedef struct { low at; char c; } aligned;
typedef struct { _Atomic int i; } atomic;
typedef struct { long x; _Atomic struct { long a, b; } pair; } wider;
typedef struct { struct { int *_Atomic p[1]; } m[1]; } pointers;
typedef struct { long a, b; } pair;
void f0(unaligned s) {}
void f1(deeper s) {}
void f2(atomic s) {}
void f3(wider s) {}
void f4(pointers s) {}
void f5(_Atomic pair s) {}
unaligned f6(void) { unaligned made = {0}; return made; }
atomic f7(void) { atomic made = {0}; return made; }
void g0(aligned s) {}
void g1(unaligned *s, atomic *a) {}
void g2(_Atomic int i, _Atomic double d, pair s) {}
"""


@pytest.mark.parametrize("command", COMPILERS)
def test_what_compilers_pass_in_different_places_is_refused(command: str, tmp_path: Path) -> None:
    _, found = loaded(command, DIFFERENT, tmp_path)
    for number in range(8):
        with pytest.raises(ConfigError, match="compilers differ on where it is passed") as caught:
            _ = found[f"f{number}"].layout
        assert str(caught.value).startswith(f"f{number}: " + ("s" if number < 6 else "the result"))
    for number in range(3):
        assert found[f"g{number}"].layout.general
    with pytest.raises(ConfigError, match="compilers differ"):
        _ = found["f2"].typed([Small]).layout
    with pytest.raises(ConfigError, match="compilers differ"):
        _ = found["f7"].typed([], Small).layout


HALVED = """
typedef union { struct { double a; float b; } s; double d[2]; } first;
typedef union { struct { double a; float b; }; double d[2]; } opened;
typedef union { struct { _Alignas(16) float v[3]; } s; float d[4]; } three;
typedef union { float v[3]; struct __attribute__((packed)) { double a[2]; } d; } tight;
typedef struct { union { struct { double a; float b; } s; double d[2]; } u[1]; } deep;
typedef union { float f; double d; } plain;
typedef union { float f; float v[2]; } pair;
typedef union { float v[3]; double d[2]; } aligned;
typedef union { struct { float x, y, z, w; }; float v[4]; } vector;
typedef union { double d[2]; struct { double a; float b; } s; } second;
typedef struct { double a; plain p; } after;
"""
HALVES = ("first", "opened", "three", "tight", "deep")
WHOLE = ("plain", "pair", "aligned", "vector", "second", "after")


@pytest.mark.parametrize("command", COMPILERS)
def test_unions_of_which_clang_passes_half_are_refused_and_no_others(
    command: str, tmp_path: Path
) -> None:
    made = "".join(f"void take_{n}({n} u) {{}}\n{n} give_{n}(void);\n" for n in HALVES + WHOLE)
    made += "".join(f"{n} give_{n}(void) {{ {n} made = {{0}}; return made; }}\n" for n in HALVES)
    _, found = loaded(command, HALVED + made, tmp_path)
    for name in HALVES:
        for function in (found[f"take_{name}"], found[f"give_{name}"]):
            with pytest.raises(ConfigError, match="compilers differ on what is passed"):
                _ = function.layout
    for name in WHOLE:
        assert found[f"take_{name}"].layout.vectors
    check_calls(command, [("char", [name]) for name in WHOLE], 1, HALVED)


class Small(ctypes.Structure):
    _fields_ = (("i", ctypes.c_int),)


class Aligned(ctypes.Structure):
    _fields_ = (("x", ctypes.c_float * 8),)


@pytest.mark.parametrize("command", COMPILERS)
def test_argtypes_leave_structures_aligned_as_they_are_declared(
    command: str, tmp_path: Path
) -> None:
    text = """
typedef struct { _Alignas(16) float x[8]; } aligned;
void f(long a, long b, long c, long d, long e, long g, long h, aligned s) {}
aligned g(void) { aligned made = {0}; return made; }
"""
    _, found = loaded(command, text, tmp_path)
    declared = found["f"]
    typed = declared.typed([*[ctypes.c_long] * 7, Aligned])
    assert typed.layout == declared.layout
    assert typed.layout.arguments[7].stack == 16
    assert found["g"].typed(None, Aligned).layout.align == 16


INT, DOUBLE, FLOAT, TEXT = (
    Int("int", 4, True),
    Float("double", 8),
    Float("float", 4),
    Pointer(Void()),
)


def prototype(result: CType, *parameters: CType) -> Prototype:
    return Prototype("f", 0, tuple(Parameter("", kind) for kind in parameters), result)


@pytest.mark.skipif(no_cc, reason="no C compiler")
def test_a_variadic_function_is_told_how_many_vector_registers_there_are(tmp_path: Path) -> None:
    count = Int("size_t", 8, False)
    declared = Prototype(
        "snprintf",
        0,
        (Parameter("s", TEXT), Parameter("n", count), Parameter("format", TEXT)),
        INT,
        variadic=True,
    )
    with pytest.raises(ConfigError, match="arguments of any number"):
        _ = declared.layout
    typed = declared.typed(
        [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_char_p, ctypes.c_int, ctypes.c_float]
    )
    assert typed.parameters[4].type == DOUBLE  # as C has it
    assert typed.layout.vectors == 1
    room, form = ctypes.create_string_buffer(64), ctypes.create_string_buffer(b"%d %.2f")
    values = typed.bind((ctypes.addressof(room), 64, ctypes.addressof(form), -7, 1.5))
    library, _ = loaded("cc", CALLER, tmp_path)
    address = ctypes.cast(ctypes.CDLL(None).snprintf, ctypes.c_void_p).value
    assert address is not None
    plain = [value for value in values if isinstance(value, bytes)]
    assert called(library.call_frame, address, typed, plain) == (7).to_bytes(4, "little")
    assert room.value == b"-7 1.50"


def test_an_argument_that_does_not_fit_in_registers_as_a_whole_is_on_the_stack() -> None:
    pair = Struct("pair", 16, 8, (Field("a", 0, TEXT), Field("b", 8, TEXT)))
    layout = prototype(Void(), *[TEXT] * 5, pair, TEXT).layout
    assert layout.arguments[5].stack == 0
    assert layout.arguments[6].parts[0].number == 5  # the register that was left
    assert layout.stack == 16


def test_a_result_in_memory_takes_the_first_register() -> None:
    large = Struct(
        "large", 24, 8, tuple(Field(name, 8 * n, DOUBLE) for n, name in enumerate("abc"))
    )
    layout = prototype(large, INT).layout
    assert layout.hidden == 24
    assert layout.pack([bytes([5, 0, 0, 0])], 0x1000)[0][:2] == [0x1000, 5]
    assert layout.unpack(0x1000, 0, 0, 0, bytes(range(24))) == bytes(range(24))


def test_what_has_no_value_cannot_be_passed() -> None:
    for kind, why in (
        (Opaque("struct s"), "is not defined"),
        (Void(), "is no value"),
        (Float("long double", 16), "cannot be passed by value"),
        (Struct("s", 1 << 20, 8, ()), "too large for the stack"),
        (Struct("s", 64, 32, ()), "aligned to 32"),
    ):
        with pytest.raises(ConfigError, match=why) as caught:
            Layout.of([("x", kind)], Void(), "f")
        assert str(caught.value).startswith("f: x")


def test_a_result_that_is_too_large_is_refused() -> None:
    for kind in (Struct("s", 1 << 20, 8, ()), Struct("s", 1 << 13, 1 << 13, ())):
        with pytest.raises(ConfigError, match="f: the result is too large"):
            Layout.of([], kind, "f")
