"""The two lanes: what each boots with, and its emulator's command line.

Every file has a fixed name in the run's directory, which is the emulator's working directory: what
is made once is linked there. So no path of the user's has to be quoted for an emulator.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

from vmm.nested import packages

CONSOLE = "console"  # ttyS0: the kernel's messages and the first process's; see init.sh
OUTPUT = "output"  # ttyS1: the command's output
ROOT, PAYLOAD, RESULT = "root.img", "payload.img", "result.tar"
KERNEL, INITRAMFS, ISO = "kernel", "initramfs", "boot.iso"
EMULATOR_LOG = "emulator.log"

_QUIET = (
    "quiet mitigations=off nokaslr tsc=reliable random.trust_cpu=on cryptomgr.notests lsm= "
    "ftrace=off audit=0 nowatchdog panic=-1"
)


@dataclasses.dataclass(frozen=True, slots=True)
class Lane:
    """A lane's nature.

    about         for people
    modules       what its kernel loads, without their dependencies
    disks         the kernel's names for the root's disk, the payload's, and the result's
    packed        whether its initramfs is better packed: the disk is slow
    iso           whether it boots from a CD
    boot_seconds  after which a boot that is not through counts as hung
    result_bytes  the size of the result's disk, which is a sparse file
    """

    name: str
    about: str
    modules: tuple[str, ...]
    disks: tuple[str, str, str]
    packed: bool
    iso: bool
    boot_seconds: float
    result_bytes: int = 1040 * 16 * 63 * 512


LANES = {
    "npt": Lane(
        "npt",
        "SVM with NPT (QEMU)",
        ("virtio_pci", "virtio_blk", "overlay", "kvm", "kvm-amd"),
        ("vda", "vdb", "vdc"),
        packed=False,
        iso=False,
        boot_seconds=90.0,
    ),
    "ept": Lane(
        "ept",
        "VMX with EPT (Bochs)",
        ("ata_piix", "sd_mod", "overlay", "kvm", "kvm-intel"),
        ("sda", "sdb", "sdc"),
        packed=False,
        iso=True,
        boot_seconds=240.0,
    ),
}


def kernel_arguments(lane: Lane) -> str:
    """Return the kernel's command line."""
    speed = ",115200" if lane.iso else ""  # at the default of 9600 baud, Bochs takes its time
    return f"console=ttyS0{speed} {_QUIET}"


def qemu(serial: str, *, result: bool) -> list[str]:
    """Return QEMU's command line.

    serial  where ttyS1 goes: "file:PATH", or a terminal's path
    result  whether there is a disk for the result
    """
    disks = [(ROOT, "on"), (PAYLOAD, "on"), *([(RESULT, "off")] if result else [])]
    command = [
        packages.find_program("qemu-system-x86_64") or "qemu-system-x86_64",
        *("-M", "q35", "-accel", "tcg,thread=multi", "-cpu", "max", "-smp", "1", "-m", "2G"),
        *("-nodefaults", "-no-user-config", "-display", "none", "-monitor", "none", "-no-reboot"),
        *("-kernel", KERNEL, "-initrd", INITRAMFS, "-append", kernel_arguments(LANES["npt"])),
        *("-serial", f"file:{CONSOLE}", "-serial", serial),
    ]
    for number, (name, read_only) in enumerate(disks):
        options = f"file={name},if=none,id=disk{number},format=raw,readonly={read_only}"
        options += ",cache=unsafe,file.locking=off"
        command += ["-drive", options, "-device", f"virtio-blk-pci,drive=disk{number}"]
    return command


def bochs() -> list[str]:
    """Return Bochs' command line; its configuration is in the files that `bochs_files` gives."""
    program = packages.find_program("bochs") or "bochs"
    return [program, "-q", "-f", "bochsrc", "-rc", "debugger"]


def bochs_files(serial: str, *, result: bool) -> dict[str, str]:
    """Return Bochs' configuration, and what its debugger is told, by file name.

    serial  where ttyS1 goes: "mode=file, dev=PATH" or "mode=term, dev=PATH"
    """
    disk = 'type=disk, path="{}", mode={}, cylinders=0, heads=16, spt=63'
    lines = [
        f"romimage: file={packages.BOCHS_BIOS}",
        f"vgaromimage: file={packages.BOCHS_VGA}",
        "megs: 1024",
        # A lane that waits does not wait here, and one that computes has time: docs/nested.md.
        "clock: sync=none, time0=utc",
        "cpu: model=corei7_haswell_4770, count=1, ips=200000000, reset_on_triple_fault=0, "
        "ignore_bad_msrs=1",
        "display_library: term",
        "ata0: enabled=1, ioaddr1=0x1f0, ioaddr2=0x3f0, irq=14",
        "ata1: enabled=1, ioaddr1=0x170, ioaddr2=0x370, irq=15",
        f"ata0-master: {disk.format(ROOT, 'volatile')}",
        f"ata0-slave: {disk.format(PAYLOAD, 'flat')}",
        f"ata1-master: type=cdrom, path={ISO}, status=inserted",
        "boot: cdrom",
        f"com1: enabled=1, mode=file, dev={CONSOLE}",
        f"com2: enabled=1, {serial}",
        "log: bochs.log",
        "panic: action=fatal",
        "error: action=ignore",
        "info: action=ignore",
        "debug: action=ignore",
    ]
    if result:
        lines.append(f"ata1-slave: {disk.format(RESULT, 'flat')}")
    return {"bochsrc": "\n".join(lines) + "\n", "debugger": "c\n"}


def isolinux(lane: Lane) -> str:
    """Return the boot loader's configuration on the CD."""
    return (
        "DEFAULT lane\nPROMPT 0\nTIMEOUT 0\nLABEL lane\n"
        f"  KERNEL /{KERNEL}\n  INITRD /{INITRAMFS}\n  APPEND {kernel_arguments(lane)}\n"
    )


def link_inputs(lane: Lane, boot: Path, root: Path, run: Path) -> None:
    """Give the run's directory its names for what is made once."""
    (run / ROOT).symlink_to(root)
    for name in (ISO,) if lane.iso else (KERNEL, INITRAMFS):
        (run / name).symlink_to(boot / name)
