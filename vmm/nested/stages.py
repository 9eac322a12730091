"""What a lane is built from, each stage in the cache under the key of what goes into it."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path
from types import ModuleType

from vmm.host.cache import content_key
from vmm.nested import apt, flat, image, initramfs, kernel, lanes, python, root
from vmm.nested.cache import Cache
from vmm.nested.lanes import Lane
from vmm.nested.packages import BUSYBOX, ISOLINUX, LDLINUX


@dataclasses.dataclass(frozen=True, slots=True)
class Built:
    """Where a lane's parts are.

    Its boot files, its root's image, what pip installed in it, its Python.
    """

    boot: Path
    root: Path
    site: Path
    python: python.Python


def recipe(*modules: ModuleType) -> bytes:
    """Return the source of modules: a stage is built anew when how it is built has changed."""
    return b"\0".join(Path(str(module.__file__)).read_bytes() for module in modules)


def build(lane: Lane, cache: Cache) -> Built:
    """Build what is not there yet of a lane.

    Raises HostError or LaneError if it cannot be built.
    """
    system = apt.os_release()
    kernel_key = content_key(recipe(kernel, apt), system)
    kernel_stage = cache.stage("kernel", kernel_key, "the kernel", kernel.build)
    python_key = content_key(recipe(python, apt), system)
    python_stage = python.Python(cache.stage("python", python_key, "Python", python.build))
    root_key = content_key(python_key, recipe(root, image), _file(BUSYBOX), *root.REQUIREMENTS)
    root_stage = cache.stage(
        "root", root_key, "the root", lambda into: root.build(python_stage, into)
    )
    boot_stage = cache.stage(
        f"boot_{lane.name}",
        content_key(
            kernel_key, recipe(initramfs, lanes, flat), initramfs.INIT.read_bytes(), _file(BUSYBOX)
        ),
        f"the boot files of {lane.name}",
        lambda into: _boot(lane, kernel_stage, into),
    )
    return Built(boot_stage, root_stage / root.IMAGE, root_stage / root.SITE, python_stage)


def _file(path: str) -> bytes:
    return Path(path).read_bytes()


def _boot(lane: Lane, kernel_stage: Path, into: Path) -> None:
    """Put a lane's kernel and initramfs into a directory, or the CD that has them."""
    archive = initramfs.build(kernel_stage, lane.modules, lane.disks, packed=lane.packed)
    place = into / "cd" if lane.iso else into
    place.mkdir(exist_ok=True)
    (place / lanes.INITRAMFS).write_bytes(archive)
    (place / lanes.KERNEL).write_bytes(_kernel(lane, kernel_stage))
    if lane.iso:
        _iso(lane, place, into / lanes.ISO)
        shutil.rmtree(place)


def _kernel(lane: Lane, stage: Path) -> bytes:
    """Return the kernel in the form that the lane boots soonest."""
    elf = (stage / kernel.ELF).read_bytes()
    if not lane.iso:
        return elf
    image = (stage / kernel.IMAGE).read_bytes()
    flat_image = flat.flatten(image, elf) if elf.startswith(b"\x7fELF") else None
    return flat_image or image


def _iso(lane: Lane, tree: Path, target: Path) -> None:
    shutil.copy(ISOLINUX, tree)
    shutil.copy(LDLINUX, tree)
    (tree / "isolinux.cfg").write_text(lanes.isolinux(lane))
    options = ["-quiet", "-R", "-no-emul-boot", "-boot-load-size", "4", "-boot-info-table"]
    boot = ["-b", "isolinux.bin", "-c", "boot.cat"]
    apt.run(["genisoimage", *options, *boot, "-o", target, tree])
