"""What the lanes are made of, and how their emulators are called. Nothing is run."""

from __future__ import annotations

import os
import re
import struct
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from vmm.errors import HostError
from vmm.nested import apt, flat, image, kernel, lanes, packages, root
from vmm.nested.initramfs import DIRECTORY, FILE, Entry, cpio

ROOT = Path(__file__).resolve().parent.parent.parent


def test_qemu_has_a_disk_for_the_result_only_where_one_is_wanted() -> None:
    without, with_result = (lanes.qemu("file:output", result=wanted) for wanted in (False, True))
    assert sum(lanes.RESULT in word for word in without) == 0
    assert sum(lanes.RESULT in word for word in with_result) == 1
    assert len(with_result) == len(without) + 4


def test_qemu_cannot_write_to_what_is_shared() -> None:
    drives = [word for word in lanes.qemu("file:output", result=True) if word.startswith("file=")]
    assert ["readonly=on" in drive for drive in drives] == [True, True, False]


def test_qemu_has_the_kernels_console_first_and_the_output_second() -> None:
    command = lanes.qemu("/dev/pts/7", result=False)
    serial = [command[at + 1] for at, word in enumerate(command) if word == "-serial"]
    assert serial == [f"file:{lanes.CONSOLE}", "/dev/pts/7"]
    assert "hostfwd" not in " ".join(command)
    assert command[command.index("-monitor") + 1] == "none"


def test_bochs_is_told_to_go_on_at_its_debugger() -> None:
    files = lanes.bochs_files("mode=file, dev=output", result=True)
    assert files["debugger"] == "c\n"
    assert set(files) == {"bochsrc", "debugger"}
    assert lanes.bochs()[1:] == ["-q", "-f", "bochsrc", "-rc", "debugger"]


def test_bochs_opens_no_port_and_leaves_the_root_as_it_is() -> None:
    lines = lanes.bochs_files("mode=file, dev=output", result=True)["bochsrc"].splitlines()
    [display] = [line for line in lines if line.startswith("display_library")]
    [disk] = [line for line in lines if line.startswith("ata0-master")]
    assert display == "display_library: term"
    assert "mode=volatile" in disk


@pytest.mark.parametrize("result", [False, True])
def test_bochs_has_a_result_only_where_one_is_wanted(result: bool) -> None:
    text = lanes.bochs_files("mode=file, dev=output", result=result)["bochsrc"]
    assert (lanes.RESULT in text) is result


@pytest.mark.parametrize("lane", lanes.LANES.values(), ids=lanes.LANES)
def test_disks_are_whole_cylinders(lane: lanes.Lane) -> None:
    assert lane.result_bytes % image.DISK_UNIT == 0
    assert len(set(lane.disks)) == 3


def test_the_boot_loader_has_the_kernels_arguments() -> None:
    lane = lanes.LANES["ept"]
    text = lanes.isolinux(lane)
    assert f"APPEND {lanes.kernel_arguments(lane)}\n" in text
    assert "console=ttyS0,115200 " in text


# ---- packages ----


def test_needed_packages_can_be_listed_by_a_script() -> None:
    for lane in packages.REQUIRED:
        result = subprocess.run(
            [sys.executable, "-m", "vmm.nested.packages", lane],
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
            check=True,
        )
        assert result.stdout.splitlines() == packages.REQUIRED[lane]
        assert all(re.fullmatch(r"[a-z0-9][a-z0-9.+-]+", name) for name in packages.REQUIRED[lane])


def test_a_lane_that_is_none_cannot_be_listed() -> None:
    with pytest.raises(SystemExit, match="no such lane: tpt"):
        packages.main(["npt", "tpt"])


def test_a_missing_package_is_named_with_what_installs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    needs = (packages.Need("/nowhere/at-all", "nowhere"), packages.Need("sh", "dash"))
    monkeypatch.setitem(packages.NEEDS, "npt", needs)
    monkeypatch.setattr(packages, "find_program", lambda name: f"/usr/bin/{name}")
    with pytest.raises(HostError) as error:
        packages.check("npt")
    assert error.value.fix == "sudo apt-get install --no-install-recommends nowhere"


def test_a_host_without_apt_is_told_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packages, "find_program", lambda name: None)
    with pytest.raises(HostError, match="no apt-get: use a Debian or Ubuntu machine"):
        packages.check("ept")


def test_the_root_has_what_the_project_and_its_tests_import() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    # What builds, or draws, or is passed by tests that are left out there.
    elsewhere = ("ziglang", "hatchling", "editables", "pageferry[", "pillow")
    wanted = project["dependencies"] + project["optional-dependencies"]["test"]
    assert set(root.REQUIREMENTS) == {need for need in wanted if not need.startswith(elsewhere)}


# ---- programs' complaints ----


@pytest.mark.parametrize(
    ("said", "kept"),
    [
        ("W: old lists\nE: Unable to locate package x\nnoise\n", "E: Unable to locate package x"),
        ("first\n\nlast\n", "last"),
        ("", "it did not say why"),
    ],
)
def test_a_complaint_is_the_line_that_says_most(said: str, kept: str) -> None:
    assert apt.complaint(said) == kept


def test_packages_that_cannot_be_fetched_are_a_fault_of_the_host(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake = tmp_path / "apt-get"
    fake.write_text("#!/bin/sh\necho 'E: no such host' >&2\nexit 100\n")
    fake.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    with pytest.raises(HostError, match="no such host") as error:
        apt.unpack(["x"], tmp_path, tmp_path)
    assert "apt-get update" in error.value.fix


# ---- kernel and initramfs ----


def test_cpio_is_what_the_kernel_reads() -> None:
    entries = [Entry("bin", DIRECTORY | 0o755), Entry("bin/a", FILE | 0o755, b"hello")]
    assert list(_parse(cpio(entries))) == [
        ("bin", DIRECTORY | 0o755, b""),
        ("bin/a", FILE | 0o755, b"hello"),
        ("TRAILER!!!", 0, b""),
    ]


def test_an_empty_cpio_has_its_end() -> None:
    assert [name for name, _, _ in _parse(cpio([]))] == ["TRAILER!!!"]


def _parse(archive: bytes) -> object:
    at = 0
    while at < len(archive):
        assert archive[at : at + 6] == b"070701"
        fields = [int(archive[at + 6 + 8 * n : at + 14 + 8 * n], 16) for n in range(13)]
        name = archive[at + 110 : at + 110 + fields[11] - 1].decode()
        at += (110 + fields[11] + 3) & ~3
        yield name, fields[1], archive[at : at + fields[6]]
        at += (fields[6] + 3) & ~3


def test_a_module_loses_its_signature_and_its_types() -> None:
    code = b"\x7fELF code\0.text\0.BTF\0.data\0"
    signature = b"s" * 300
    signed = code + signature + bytes(8) + struct.pack(">I", 300) + kernel._SIGNED
    assert kernel.slim(signed) == code.replace(b".BTF", b".off")
    tables = b"\x7fELF\0.rela.orc_unwind_ip\0__mcount_loc\0"
    assert kernel.slim(tables) == b"\x7fELF\0.rela.off_unwind_ip\0__mcount_off\0"
    assert kernel.slim(code) == code.replace(b".BTF", b".off")


def test_an_unknown_packing_leaves_the_kernel_as_it_is() -> None:
    image = bytearray(0x2000)
    image[0x1F1] = 1
    struct.pack_into("<II", image, 0x248, 0x10, 0x100)
    assert kernel.unpacked(bytes(image)) is None


def test_module_names_are_the_kernels() -> None:
    assert kernel.module_name(Path("kernel/arch/x86/kvm/kvm-amd.ko.xz")) == "kvm_amd"


def elf(segments: list[tuple[int, bytes]], entry: int) -> bytes:
    """Return an ELF with loadable segments at physical addresses."""
    start = 64 + 56 * len(segments)
    header = b"\x7fELF\x02\x01\x01" + bytes(9)
    header += struct.pack(
        "<HHIQQQIHHHHHH", 2, 62, 1, entry, 64, 0, 0, 64, 56, len(segments), 0, 0, 0
    )
    table, contents = b"", b""
    for address, data in segments:
        at, size = start + len(contents), len(data)
        table += struct.pack("<IIQQQQQQ", 1, 7, at, 0, address, size, size, 1)
        contents += data
    return header + table + contents


def test_a_flat_kernel_has_its_segments_where_they_belong() -> None:
    setup = bytearray(b"S" * 1024)
    setup[0x1F1] = 1
    struct.pack_into("<I", setup, 0x260, 0x3000000)
    segments = [(0x1000000, b"text"), (0x1002000, b"data")]
    flattened = flat.flatten(bytes(setup) + b"packed", elf(segments, 0x1000000))
    assert flattened is not None
    system = flattened[1024:]
    kernel_at = 0x200000 - 0x100000  # where a boot loader puts it, and where it is entered
    assert system[kernel_at : kernel_at + 4] == b"text"
    assert system[kernel_at + 0x2000 : kernel_at + 0x2004] == b"data"
    assert struct.unpack_from("<I", flattened, 0x1F4) == (len(system) // 16,)
    assert struct.unpack_from("<I", flattened, 0x260) == (0x3000000 + kernel_at,)
    assert flattened[0x234] == 0
    assert system[:1] == b"\xfa"


def test_a_kernel_that_starts_before_its_entry_is_left_alone() -> None:
    setup = bytes(0x1F1) + b"\x01" + bytes(1024 - 0x1F2)
    assert flat.flatten(setup, elf([(0x1000000, b"text")], 0x1000004)) is None
