"""The ABI: the generated module against the header, as the C compiler understands it."""

from __future__ import annotations

import ctypes
import enum
import importlib.util
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from vmm.guest import abi

ROOT = Path(__file__).resolve().parents[2]
HEADER = ROOT / "guests/include/pageferry.h"
SCRIPT = ROOT / "scripts/generate_abi.py"

STRUCTS: dict[str, type[ctypes.LittleEndianStructure]] = {
    "pf_extent": abi.Extent,
    "pf_descriptor": abi.Descriptor,
    "pf_answer": abi.Answer,
    "pf_call": abi.Call,
    "pf_place": abi.Place,
    "pf_result": abi.Result,
    "pf_peer": abi.Peer,
    "pf_control": abi.Control,
}
ENUMS: dict[str, tuple[type[enum.IntEnum] | type[enum.IntFlag], str]] = {
    "pf_doorbell": (abi.Doorbell, "PF_DOORBELL_"),
    "pf_bell": (abi.Bell, "PF_BELL_"),
    "pf_wait_for": (abi.WaitFor, "PF_WAIT_"),
    "pf_operation": (abi.Operation, "PF_OP_"),
    "pf_flags": (abi.Flags, "PF_FLAG_"),
    "pf_hold": (abi.Hold, "PF_HOLD_"),
    "pf_status": (abi.Status, "PF_"),
    "pf_call_flags": (abi.CallFlags, "PF_CALL_"),
    "pf_peer_flags": (abi.PeerFlags, "PF_PEER_"),
}


# ---- The compiler's word ----


def compile_c(source: str, tmp_path: Path, *options: str) -> subprocess.CompletedProcess[str]:
    cc = shutil.which("cc")
    command = [cc] if cc else [sys.executable, "-m", "ziglang", "cc"]
    (tmp_path / "probe.c").write_text(source)
    return subprocess.run(
        [*command, "-std=c11", f"-I{HEADER.parent}", *options, "probe.c"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )


def preprocessed(tmp_path: Path, *options: str) -> str:
    done = compile_c('#include "pageferry.h"\n', tmp_path, "-E", *options)
    assert done.returncode == 0, done.stderr
    return done.stdout


def probe() -> str:
    """C that prints what every name of the module is in C, as JSON."""
    lines = []
    for tag, struct in STRUCTS.items():
        lines.append(f'SAY("{struct.__name__}", sizeof(struct {tag}));')
        for field in struct._fields_:
            name, path = field[0], f"{struct.__name__}.{field[0]}"
            lines.append(f'SAY("{path}", offsetof(struct {tag}, {name}));')
            lines.append(f'SAY("{path}:size", sizeof(((struct {tag} *)0)->{name}));')
    for kind, prefix in ENUMS.values():
        lines += [f'SAY("{kind.__name__}.{m.name}", {prefix}{m.name});' for m in kind]
    for name, value in constants().items():
        say = "SAYS" if isinstance(value, str) else "SAY"
        lines.append(f'{say}("{name}", PF_{name});')
    body = "\n    ".join(lines)
    return f"""#include <stdio.h>
#include "pageferry.h"
/* Sign and magnitude by the expression's own type: a negative number stays one. */
#define SAY(name, value) \\
    printf((value) < 0 ? "%s\\"%s\\": %lld" : "%s\\"%s\\": %llu", comma(), name, \\
    (unsigned long long)(value))
#define SAYS(name, value) printf("%s\\"%s\\": \\"%s\\"", comma(), name, value)
static const char *comma(void) {{ static int n; return n++ ? ", " : ""; }}
int main(void)
{{
    putchar('{{');
    {body}
    puts("}}");
    return 0;
}}
"""


def constants() -> dict[str, int | str]:
    return {name: value for name, value in vars(abi).items() if name.isupper()}


def modules_word() -> dict[str, int | str]:
    """The same names as the probe's, by the generated module."""
    word: dict[str, int | str] = constants()
    for struct in STRUCTS.values():
        word[struct.__name__] = ctypes.sizeof(struct)
        for field in struct._fields_:
            place = getattr(struct, field[0])
            word[f"{struct.__name__}.{field[0]}"] = place.offset
            word[f"{struct.__name__}.{field[0]}:size"] = place.size
    for kind, _ in ENUMS.values():
        word |= {f"{kind.__name__}.{member.name}": int(member) for member in kind}
    return word


def test_every_size_offset_and_value_is_the_compilers(tmp_path: Path) -> None:
    done = compile_c(probe(), tmp_path, "-Wno-type-limits", "-o", "probe")
    assert done.returncode == 0, done.stderr
    said: dict[str, Any] = json.loads(
        subprocess.run([tmp_path / "probe"], capture_output=True, text=True, check=True).stdout
    )
    assert said == modules_word()


def test_every_structure_of_the_header_is_covered_to_its_last_byte(tmp_path: Path) -> None:
    assert set(re.findall(r"\bstruct (pf_\w+)\s*\{", preprocessed(tmp_path))) == set(STRUCTS)
    for struct in STRUCTS.values():
        end = 0
        for field in struct._fields_:
            place = getattr(struct, field[0])
            assert place.offset == end, f"padding or a field left out before {field[0]}"
            end = place.offset + place.size
        assert end == ctypes.sizeof(struct)


def test_every_enum_member_of_the_header_is_covered(tmp_path: Path) -> None:
    text = preprocessed(tmp_path)
    assert set(re.findall(r"\benum (pf_\w+)\s*\{", text)) == set(ENUMS)
    in_header = {
        tag: set(re.findall(r"\b(PF_\w+)\s*=", body))
        for tag, body in re.findall(r"\benum (pf_\w+)\s*\{(.*?)\}", text, re.DOTALL)
    }
    assert in_header == {
        tag: {prefix + member.name for member in kind.__members__.values() if member.name}
        for tag, (kind, prefix) in ENUMS.items()
    }


def test_every_definition_of_the_header_is_covered(tmp_path: Path) -> None:
    macros = re.findall(r"^#define PF_(\w+) ", preprocessed(tmp_path, "-dM"), re.MULTILINE)
    assert set(macros) == set(constants())


def test_the_probe_would_see_a_field_that_moved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Peer(ctypes.LittleEndianStructure):
        _fields_ = tuple(reversed(abi.Peer._fields_))

    honest = modules_word()
    monkeypatch.setitem(STRUCTS, "pf_peer", Peer)
    done = compile_c(probe(), tmp_path, "-o", "probe")
    assert done.returncode == 0, done.stderr
    run = subprocess.run([tmp_path / "probe"], capture_output=True, text=True, check=True)
    said = json.loads(run.stdout)
    assert said == honest
    assert said != modules_word()


# ---- The generator ----


@pytest.fixture(scope="module")
def generator() -> ModuleType:
    spec = importlib.util.spec_from_file_location("generate_abi", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_module_is_what_the_header_says() -> None:
    done = subprocess.run([sys.executable, SCRIPT, "--check"], capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_a_module_that_differs_fails_the_check(
    generator: ModuleType,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    module = tmp_path / "abi.py"
    monkeypatch.setattr(generator, "ROOT", tmp_path)
    monkeypatch.setattr(generator, "MODULE", module)
    for stale in (None, generator.generate(HEADER.read_text()) + "\n"):
        if stale is not None:
            module.write_text(stale)
        assert generator.main(["--check"]) == 1
        assert "abi.py differs from the header" in capsys.readouterr().out
    assert generator.main([]) == 0
    assert generator.main(["--check"]) == 0


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("#define PF_ABI_MINOR 2", "#define PF_ABI_MINOR 3"),
        ("PF_E_BELL = -17", "PF_E_BELL = -18"),
        ("PF_PEER_SEND = 2, ", "PF_PEER_SEND = 2, PF_PEER_NEW = 4, "),
        ("uint64_t tag; ", "uint32_t tag, tag2; "),
        ("uint64_t reserved0[4];", "uint64_t reserved0[3], fresh;"),
        ("#define PF_PAYLOAD_MAX 192", "#define PF_PAYLOAD_MAX 176"),
    ],
)
def test_a_changed_header_changes_the_module(generator: ModuleType, old: str, new: str) -> None:
    header = HEADER.read_text()
    assert old in header
    assert generator.generate(header.replace(old, new)) != abi_text()


def test_a_changed_comment_changes_nothing(generator: ModuleType) -> None:
    header = HEADER.read_text()
    changed = header.replace("/* One message, in either ring.", "/* One message.\n")
    assert changed != header
    assert generator.generate(changed) == abi_text()


def test_a_field_that_cannot_be_read_is_an_error(generator: ModuleType) -> None:
    header = HEADER.read_text()
    for field in ("uint24_t tag;", "tag;"):
        with pytest.raises(ValueError, match=r"pageferry\.h: cannot read the field"):
            generator.generate(header.replace("uint64_t tag;", field))


def abi_text() -> str:
    return Path(abi.__file__).read_text()
