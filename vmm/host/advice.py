"""What to do about a host: facts in, advice out. Nothing here looks at the host.

The command that cannot open the device and the doctor that examines it give the same advice.
"""

from __future__ import annotations

import errno
import os
from typing import NamedTuple

from vmm.host.node import KVM_NUMBER, Node
from vmm.host.system import System

_USUAL = "/dev/kvm"
# No word of making, or moving away, what somebody has named by mistake: /dev/null, say.
_NAME_KVMS = f"name KVM's device, as a rule {_USUAL}"
ELSEWHERE = "pageferry nested --lane npt -- pageferry demo"  # needs no /dev/kvm at all

_MKNOD = f"c {KVM_NUMBER[0]} {KVM_NUMBER[1]}"
_LOG = "see the kernel's log (sudo dmesg)"
_MODULE_OPTION = {"kvm_amd": "CONFIG_KVM_AMD", "kvm_intel": "CONFIG_KVM_INTEL"}

# How the outer hypervisor passes virtualization on, by what its firmware calls the machine's maker.
_OUTER = (
    ("qemu", "load the outer host's kvm_intel or kvm_amd with nested=1, and give the VM -cpu host"),
    ("amazon", "use a .metal instance, or an instance type with nested virtualization"),
    ("google", "create the VM with --enable-nested-virtualization"),
    (
        "microsoft",
        "Hyper-V: Set-VMProcessor VM -ExposeVirtualizationExtensions $true; WSL 2: "
        "nestedVirtualization=true in .wslconfig; Azure: a size with nested virtualization",
    ),
    ("vmware", 'set vhv.enable = "TRUE" in the VM\'s configuration'),
    ("innotek", "VBoxManage modifyvm VM --nested-hw-virt on"),
    ("xen", "set nestedhvm=1 in the domain's configuration"),
)


class Problem(NamedTuple):
    """Something that keeps the host from its best, or from working, and what to do about it."""

    what: str
    fix: str


def get_virtualization(system: System) -> str:
    """Return how a CPU that shows neither vmx nor svm gets one of them."""
    if system.vendor is None:
        return (
            "switch virtualization on in the firmware, or nested virtualization in the outer VM, "
            "and load the module: sudo modprobe kvm_intel, or kvm_amd"
        )
    if system.in_a_vm:
        return f"let the outer hypervisor pass nested virtualization on: {_outer(system)}"
    name = "SVM Mode (AMD-V)" if system.vendor_module == "kvm_amd" else "VT-x (VMX)"
    return f"switch {name} on in the firmware's settings, if this CPU has it at all"


def _outer(system: System) -> str:
    told = f"{system.maker} {system.release}".lower()  # WSL's kernel names its maker, too
    for maker, how in _OUTER:
        if maker in told:
            return how
    return "kvm_intel nested=1 or kvm_amd nested=1 on the outer host and CPU model host for the VM"


def get_driver(system: System) -> str:
    """Return how a host whose KVM has not registered its device gets there."""
    if system.virtualization is None:
        return get_virtualization(system)
    module = system.vendor_module
    flag = "VT-x" if module == "kvm_intel" else "SVM"
    return (
        f"load the module: sudo modprobe {module} (not found: the kernel was built without "
        f"{_MODULE_OPTION[module]}, use another; not supported: switch {flag} on in the firmware)"
    )


def no_device(device: str, system: System) -> Problem:
    """Say why there is no device file, and what makes one."""
    what = f"{device} does not exist"
    if device != _USUAL:
        return Problem(what, _NAME_KVMS)
    if system.driver:
        return Problem(
            f"{what}, though its driver is loaded",
            "in a container, pass it on (docker or podman run --device /dev/kvm); "
            f"elsewhere: sudo mknod -m 660 {device} {_MKNOD}",
        )
    if system.virtualization is None and system.vendor is not None:
        where = ", in this VM" if system.in_a_vm else ""
        what += f", and the CPU shows neither vmx nor svm{where}"
    elif system.virtualization:
        what += f", though the CPU has {system.virtualization}: no KVM module is loaded"
    return Problem(what, get_driver(system))


def no_driver(node: Node, system: System) -> Problem:
    """Say what a device file is that nothing answers to."""
    what = f"{node.path} has no driver behind it"
    if str(node.path) != _USUAL:
        return Problem(what, _NAME_KVMS)
    if node.is_device and node.number != KVM_NUMBER:
        number = "{}:{}".format(*node.number)
        return Problem(
            f"{what}: it is device {number}",
            f"make it KVM's: sudo rm {node.path} && sudo mknod -m 660 {node.path} {_MKNOD}",
        )
    return Problem(what, get_driver(system))


def not_kvm(node: Node, reason: str) -> Problem:
    """Say what to do about a path that is something else."""
    if node.is_device and node.number == KVM_NUMBER:
        return Problem(f"{node.path} is not KVM ({reason})", _LOG)
    if str(node.path) != _USUAL:
        return Problem(f"{node.path} is not KVM ({reason})", _NAME_KVMS)
    return Problem(f"{node.path} is not KVM ({reason})", _replace(node))


def _replace(node: Node) -> str:
    return (
        "find out what made it and move it away; KVM's is made by: "
        f"sudo mknod -m 660 {node.path} {_MKNOD}"
    )


def no_permission(node: Node, system: System, code: int) -> Problem:
    """Say why the device could not be opened: `code` is EACCES or EPERM, as open(2) failed."""
    shown = node.permissions()
    what = f"no permission to open {node.path}" + (f" ({shown})" if shown else "")
    if code == errno.EPERM:
        return Problem(
            f"{what}: this container's list of devices forbids it",
            "start the container with it (docker or podman run --device /dev/kvm)",
        )
    if node.allowed:
        return Problem(
            f"{what}, though its mode allows it",
            "its file system is mounted nodev, or a security module (AppArmor, SELinux) forbids "
            "it: see the kernel's log (sudo dmesg)",
        )
    if not node.mode:
        return Problem(what, "make the folders above it searchable (chmod a+x)")
    return Problem(what, _join(node, system) if node.group_may else _open_up(node, system))


def _join(node: Node, system: System) -> str:
    """Return how the user gets into a group that may use the device."""
    if node.member:
        return f"its group {node.group} may, but an access list keeps it out: getfacl {node.path}"
    if node.listed:
        return (
            f"{system.user} was added to its group {node.group} after this login: log in again, "
            f"or run newgrp {node.group}"
        )
    return (
        f"add yourself to its group: sudo usermod -aG {node.group} {system.user}, and log in again"
    )


def _open_up(node: Node, system: System) -> str:
    """Return how a device that is root's alone gets a group that may use it."""
    why = f"it is for {node.owner} alone"
    if node.group.isdigit():
        why = f"its group {node.group} has no name here"
    return (
        f"{why}: give it a group and join that: sudo groupadd -f -r kvm && "
        f"sudo chgrp kvm {node.path} && sudo chmod 660 {node.path} && "
        f"sudo usermod -aG kvm {system.user}, and log in again; to keep it over a boot, "
        'a udev rule: KERNEL=="kvm", GROUP="kvm", MODE="0660"'
    )


def cannot_open(node: Node, system: System, error: OSError) -> Problem:
    """Say what to do when open(2) of the device has failed."""
    code = error.errno or 0
    if code in (errno.ENOENT, errno.ENOTDIR):
        return no_device(node.path, system)
    if code in (errno.EACCES, errno.EPERM):
        return no_permission(node, system, code)
    if code in (errno.ENXIO, errno.ENODEV):
        return no_driver(node, system)
    reason = os.strerror(code)
    fix = _LOG if node.mode is None or node.is_device else _replace(node)
    return Problem(f"{node.path} cannot be opened ({reason})", fix)


def emulated_ring(system: System) -> Problem:
    """Say what a host gets from hardware paging that runs ring 3 natively only."""
    fix = "use a host with EPT or NPT"
    if system.virtualization is None:
        fix += f"; or {get_virtualization(system)}"
    return Problem("ring 0 is emulated: guests run in ring 3, and doorbells cost more", fix)


def shadow_paging(system: System) -> Problem:
    """Say what to do where ring 0 is native and yet page tables are shadowed."""
    module = system.vendor_module
    feature = "npt" if module == "kvm_amd" else "ept"
    if feature in system.flags:
        fix = f"let KVM use it: sudo modprobe -r {module} && sudo modprobe {module} {feature}=1"
    else:
        fix = f"use a CPU with {feature.upper()}; in a VM, have the outer hypervisor pass it on"
    return Problem("page tables are shadowed: each change of a guest's costs exits", fix)


def no_hypercall(version: tuple[int, int], offered: bool) -> Problem:
    """Say why guests ring by PIO or MMIO where ring 0 is native."""
    if not offered:
        fix = "use Linux 5.14 or newer" if version < (5, 14) else "use a distribution's kernel"
        return Problem("this kernel hands no hypercalls to user space", fix)
    return Problem(
        "hypercalls do not reach user space, though the kernel says they would",
        "use the doorbells that work; in a VM, a newer outer hypervisor may let them through",
    )


def no_huge_pages(anonymous: bool, memfd: bool) -> list[Problem]:
    """Say how each kind of memory that gets none would get huge pages."""
    folder = "/sys/kernel/mm/transparent_hugepage"
    found = []
    if not anonymous:
        found.append(
            Problem(
                "anonymous memory gets no huge pages", f"echo madvise | sudo tee {folder}/enabled"
            )
        )
    if not memfd:
        found.append(
            Problem(
                "memfds get no huge pages: each page that is touched of what is shared is a fault",
                f"echo advise | sudo tee {folder}/shmem_enabled",
            )
        )
    return found
