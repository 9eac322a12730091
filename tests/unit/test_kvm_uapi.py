"""Every structure, constant and request number of the bindings against the kernel's own headers.

A C program that prints what the compiler makes of <linux/kvm.h> is generated from the declarations
themselves; whatever is declared and not found in its output fails the test.
"""

from __future__ import annotations

import ctypes
import inspect
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from vmm.kvm import structs, uapi

HEADERS = ("stddef", "stdio", "linux/kvm", "linux/kvm_para", "linux/version")

# What the headers of Linux 6.1 lack, and the version that brought it. Nothing else may be missing,
# and these only from older headers than that.
SINCE = {
    "KVM_EXIT_MEMORY_FAULT": (6, 8),
    "KVM_MEMORY_EXIT_FLAG_PRIVATE": (6, 8),
    "KVM_CAP_USER_MEMORY2": (6, 8),
    "KVM_CAP_MEMORY_FAULT_INFO": (6, 8),
    "KVM_CAP_MEMORY_ATTRIBUTES": (6, 8),
    "KVM_CAP_GUEST_MEMFD": (6, 8),
    "KVM_CAP_PRE_FAULT_MEMORY": (6, 11),
    "KVM_X86_QUIRK_SLOT_ZAP_ALL": (6, 12),
}

# Members of structures that older headers lack -> a macro that came with them.
MEMBER_SINCE = {"kvm_run.memory_fault": "KVM_EXIT_MEMORY_FAULT"}


def compiler() -> list[str]:
    if cc := shutil.which("cc"):
        return [cc]
    if find_spec("ziglang"):
        return [sys.executable, "-m", "ziglang", "cc"]
    reason = "no C compiler: neither cc nor the ziglang package"
    if os.environ.get("PAGEFERRY_REQUIRE_KVM") == "1":
        pytest.fail(f"{reason} (and PAGEFERRY_REQUIRE_KVM=1)", pytrace=False)
    pytest.skip(reason)


def is_layout(value: object) -> bool:
    return (
        inspect.isclass(value)
        and issubclass(value, ctypes.Structure | ctypes.Union)
        and value.__module__ == structs.__name__
        and value is not structs.Struct
    )


def declared_structures() -> dict[str, Any]:
    return {value.__name__: value for value in vars(structs).values() if is_layout(value)}


def tagged_structures() -> dict[str, Any]:
    found = declared_structures()
    return {name: found[name] for name in found if name.startswith("kvm_")}


def members(layout: Any, path: str = "", base: int = 0) -> Iterator[tuple[str, int, int, Any]]:
    """Yield (C path, offset, size, type) of every field, also of members without a tag in C."""
    for name, kind in layout._fields_:
        field = getattr(layout, name)
        if name in getattr(layout, "_anonymous_", ()):
            yield from members(kind, path, base + field.offset)
            continue
        if name.startswith("_"):
            continue  # padding: the next field's offset, or the structure's size, tells
        yield path + name, base + field.offset, ctypes.sizeof(kind), kind
        if is_layout(kind) and kind.__name__ not in tagged_structures():
            yield from members(kind, f"{path}{name}.", base + field.offset)


def expected_layouts() -> dict[str, tuple[int, ...]]:
    """Return `struct` -> (size,) and `struct.member` -> (offset, size)."""
    expected: dict[str, tuple[int, ...]] = {}
    for tag, layout in tagged_structures().items():
        expected[tag] = (ctypes.sizeof(layout),)
        for path, offset, size, _ in members(layout):
            expected[f"{tag}.{path}"] = (offset, size)
    for layout, (name, element) in structs.FLEXIBLE.items():
        size = ctypes.sizeof(layout)
        expected[f"{layout.__name__}.{name}[0]"] = (size, ctypes.sizeof(element))
    return expected


def expected_numbers() -> dict[str, int]:
    """Return every constant and request number, by its C name."""
    numbers = {
        name: value
        for name, value in vars(uapi).items()
        if isinstance(value, int) and not name.startswith("_")
    }
    for section in uapi.IOCTLS.values():
        numbers.update((request.name, request.request) for request in section)
    return numbers


def probe_source() -> str:
    lines = [f"#include <{header}.h>" for header in HEADERS] + ["int main(void) {"]
    lines.append('printf("LINUX_VERSION_CODE %llu\\n", (unsigned long long)LINUX_VERSION_CODE);')
    for key in expected_layouts():
        tag, _, path = key.partition(".")
        if not path:
            lines.append(f'printf("{key} %zu\\n", sizeof(struct {tag}));')
            continue
        since = next((m for p, m in MEMBER_SINCE.items() if f"{key}.".startswith(f"{p}.")), None)
        place = f"offsetof(struct {tag}, {path}), sizeof(((struct {tag} *)0)->{path})"
        line = f'printf("{key} %zu %zu\\n", {place});'
        lines.append(f"#ifdef {since}\n{line}\n#endif" if since else line)
    for name in expected_numbers():
        line = f'printf("{name} %llu\\n", (unsigned long long)({name}));'
        # All of them are macros: one that is not there is not printed, and so is missing.
        lines.append(f"#ifdef {name}\n{line}\n#endif")
    return "\n".join([*lines, "return 0;", "}", ""])


@pytest.fixture(scope="module")
def kernel(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[int, ...]]:
    """What the compiler says: name -> number, size, or offset and size."""
    folder = tmp_path_factory.mktemp("probe")
    source, program = folder / "probe.c", folder / "probe"
    source.write_text(probe_source())
    command = [*compiler(), "-w", "-o", str(program), str(source)]
    built = subprocess.run(command, capture_output=True, text=True, check=False)
    assert built.returncode == 0, built.stderr
    printed = subprocess.run([str(program)], capture_output=True, text=True, check=True).stdout
    rows = (line.split() for line in printed.splitlines())
    return {name: tuple(map(int, numbers)) for name, *numbers in rows}


def absence_is_known(name: str, kernel: dict[str, tuple[int, ...]]) -> bool:
    """Tell if these headers are too old to have a constant, or a structure's member."""
    for path, macro in MEMBER_SINCE.items():
        if f"{name}.".startswith(f"{path}."):
            name = macro
    major, minor = SINCE.get(name, (0, 0))
    return kernel["LINUX_VERSION_CODE"][0] < major << 16 | minor << 8


def test_every_constant_and_request_has_the_kernels_value(
    kernel: dict[str, tuple[int, ...]],
) -> None:
    wrong = {
        name: (value, kernel.get(name))
        for name, value in expected_numbers().items()
        if kernel.get(name) != (value,)
        and not (name not in kernel and absence_is_known(name, kernel))
    }
    assert not wrong, "(ours, the header's)"


def test_every_structure_has_the_kernels_size_and_offsets(
    kernel: dict[str, tuple[int, ...]],
) -> None:
    wrong = {
        name: (layout, kernel.get(name))
        for name, layout in expected_layouts().items()
        if kernel.get(name) != layout
        and not (name not in kernel and absence_is_known(name, kernel))
    }
    assert not wrong, "(ours, the header's)"


def test_signed_fields_are_signed_in_the_kernel_too() -> None:
    signed = {
        f"{tag}.{path}"
        for tag, layout in tagged_structures().items()
        for path, _, _, kind in members(layout)
        if kind is ctypes.c_int32
    }
    assert signed == {"kvm_ioeventfd.fd"}


def test_no_declared_structure_escapes_the_comparison() -> None:
    reached = set(tagged_structures())
    for layout in tagged_structures().values():
        reached |= {kind.__name__ for kind in _nested(layout)}
    assert set(declared_structures()) == reached


def _nested(layout: Any) -> Iterator[Any]:
    for _, kind in layout._fields_:
        if is_layout(kind):
            yield kind
            yield from _nested(kind)


def test_no_declared_name_escapes_the_comparison() -> None:
    public = {
        name
        for name, value in vars(uapi).items()
        if not name.startswith("_") and not inspect.ismodule(value) and not callable(value)
    }
    # The two tables hold nothing of their own: they list the others.
    tables = {"IOCTLS", "CAPABILITY_NAMES"}
    numbers = expected_numbers()
    assert public - tables <= set(numbers)
    sections = {
        name
        for name, value in vars(uapi).items()
        if inspect.isclass(value)
        and any(isinstance(member, uapi.Ioctl) for member in vars(value).values())
    }
    assert sections == set(uapi.IOCTLS)


def test_known_absences_are_declared_names() -> None:
    assert set(SINCE) <= set(expected_numbers())
    assert set(MEMBER_SINCE) <= set(expected_layouts())
    assert set(MEMBER_SINCE.values()) <= set(SINCE)


def test_a_request_declared_for_two_descriptors_has_one_number() -> None:
    numbers: dict[str, set[int]] = {}
    for section in uapi.IOCTLS.values():
        for request in section:
            numbers.setdefault(request.name, set()).add(request.request)
    assert [name for name, values in numbers.items() if len(values) > 1] == []


def test_structures_print_their_fields_and_compare_by_content() -> None:
    regs = structs.kvm_regs(rax=1)
    assert "rax=0x1" in repr(regs)
    assert regs == structs.kvm_regs(rax=1)
    assert regs != structs.kvm_regs(rax=2)


def test_the_probe_reads_the_installed_headers(kernel: dict[str, tuple[int, ...]]) -> None:
    header = Path("/usr/include/linux/version.h")
    if not header.exists() or not shutil.which("cc"):
        pytest.skip("the compiler brings headers of its own")
    code = header.read_text().split("LINUX_VERSION_CODE", 1)[1].split()[0]
    assert kernel["LINUX_VERSION_CODE"] == (int(code),)
