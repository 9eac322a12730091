"""The lanes' kernel: the distribution's own for virtual machines, unpacked and not installed."""

from __future__ import annotations

import io
import lzma
import shutil
import struct
import subprocess
import zlib
from pathlib import Path

from elftools.elf.elffile import ELFFile

from vmm.errors import HostError
from vmm.nested import apt
from vmm.nested.errors import LaneError
from vmm.nested.packages import find_program

# Debian's kernel for clouds, and Ubuntu's for virtual machines.
METAPACKAGES = ("linux-image-cloud-amd64", "linux-image-virtual")

IMAGE = "vmlinuz"  # what a boot loader takes
ELF = "vmlinux"  # the same, unpacked, which boots sooner; a copy of IMAGE if that is not possible
MODULES = "modules"

_SETUP_SECTORS, _PAYLOAD = 0x1F1, 0x248  # Documentation/arch/x86/boot.rst
_LZ4, _XZ, _GZIP, _ZSTD = b"\x02\x21\x4c\x18", b"\xfd7zXZ", b"\x1f\x8b", b"\x28\xb5\x2f\xfd"


def build(into: Path) -> None:
    """Put the kernel, as IMAGE and ELF, and its modules below MODULES into a directory."""
    tree, scratch = into / "tree", into / "scratch"
    tree.mkdir()
    scratch.mkdir()
    apt.unpack(_packages(), tree, scratch)
    image = _only(list(tree.glob("boot/vmlinuz-*")), "kernel")
    image.rename(into / IMAGE)
    image = into / IMAGE
    (into / ELF).write_bytes(unpacked(image.read_bytes()) or image.read_bytes())
    found = [*tree.glob("lib/modules/*"), *tree.glob("usr/lib/modules/*")]
    _only(found, "set of modules").rename(into / MODULES)
    shutil.rmtree(tree)
    scratch.rmdir()


def _packages() -> list[str]:
    """Return the packages with today's kernel and its modules."""
    for meta in METAPACKAGES:
        if apt.known(meta):
            parts = apt.dependencies(meta)
            images = [name for name in parts if name.startswith("linux-image-")]
            more = [name for image in images for name in apt.dependencies(image)]
            return images + [name for name in more if name.startswith("linux-modules-")]
    raise HostError(
        f"no package {' or '.join(METAPACKAGES)} is known on this host ({apt.os_release()})",
        "fetch the package lists (sudo apt-get update), or use Debian",
    )


def _only(found: list[Path], what: str) -> Path:
    if len(found) != 1:
        raise LaneError(f"the kernel's package has {len(found)} {what}s in it, not one")
    return found[0]


def unpacked(image: bytes) -> bytes | None:
    """Return the ELF inside a bzImage, or None if it is packed in a way that we cannot undo."""
    offset, length = struct.unpack_from("<II", image, _PAYLOAD)
    start = (image[_SETUP_SECTORS] + 1) * 512 + offset
    payload = image[start : start + length]
    if payload.startswith(_GZIP):
        return zlib.decompressobj(zlib.MAX_WBITS | 16).decompress(payload)
    if payload.startswith(_XZ):
        return lzma.LZMADecompressor().decompress(payload)
    for magic, program in ((_LZ4, "lz4"), (_ZSTD, "zstd")):
        if payload.startswith(magic) and find_program(program):
            return _filtered(program, payload)
    return None


def _filtered(program: str, payload: bytes) -> bytes | None:
    # The kernel's build appends the unpacked size, which these programs report as trailing garbage.
    result = subprocess.run([program, "-dc"], input=payload, capture_output=True)
    return result.stdout if result.stdout.startswith(b"\x7fELF") else None


def module_name(path: Path) -> str:
    """Return a module's name, as the kernel spells it, from its file."""
    return path.name.partition(".ko")[0].replace("-", "_")


def module_contents(path: Path) -> bytes:
    """Return a module's ELF, whatever it is packed with."""
    data = path.read_bytes()
    if path.suffix == ".xz":
        return lzma.decompress(data)
    if path.suffix == ".zst":
        found = _filtered("zstd", data) if find_program("zstd") else None
        if found is None:
            raise LaneError(f"{path.name} is packed with zstd: sudo apt-get install zstd")
        return found
    return data


_SIGNED = b"~Module signature appended~\n"  # include/linux/module_signature.h
_SIGNATURE_HEADER = 12


# Names of sections, and others as long: of the type information, of the places that ftrace may
# patch, and of the unwinder's tables.
_HIDDEN = (
    (b"\0.BTF\0", b"\0.off\0"),
    (b"__mcount_loc", b"__mcount_off"),
    (b".orc_unwind", b".off_unwind"),
)


def slim(contents: bytes) -> bytes:
    """Return a module without its signature and hiding what a lane has no use for.

    The kernel would check the one, and parse, patch and sort the others: of a boot in Bochs, half
    the time.
    """
    if contents.endswith(_SIGNED):
        end = len(contents) - len(_SIGNED)
        length = int.from_bytes(contents[end - 4 : end], "big")
        contents = contents[: end - _SIGNATURE_HEADER - length]
    for name, other in _HIDDEN:
        contents = contents.replace(name, other)
    return contents


def load_order(modules: Path, wanted: list[str]) -> dict[str, bytes]:
    """Return the wanted modules and all they depend on, by name, each after those that it needs."""
    files = {module_name(path): path for path in modules.glob("kernel/**/*.ko*")}
    built_in = {module_name(Path(line)) for line in _lines(modules / "modules.builtin")}
    order: dict[str, bytes] = {}

    def add(name: str) -> None:
        if name in order or name in built_in:
            return
        if name not in files:
            raise LaneError(f"the kernel has no module {name}")
        contents = module_contents(files[name])
        for needed in module_needs(contents):
            add(needed)
        order[name] = slim(contents)

    for name in wanted:
        add(name.replace("-", "_"))
    return order


def _lines(path: Path) -> list[str]:
    return path.read_text().splitlines() if path.exists() else []


def module_needs(contents: bytes) -> list[str]:
    """Return the names of the modules that a module depends on, as its .modinfo section has
    them.
    """
    section = ELFFile(io.BytesIO(contents)).get_section_by_name(".modinfo")
    fields = section.data().split(b"\0") if section is not None else []
    for field in fields:
        if field.startswith(b"depends="):
            names = field.removeprefix(b"depends=").decode().split(",")
            return [name.replace("-", "_") for name in names if name]
    return []
