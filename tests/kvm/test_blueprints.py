"""What machines of one image have in common, and that they have nothing else in common."""

from __future__ import annotations

import os
import re
import shutil
import threading
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest

from vmm import ConfigError, Machine, Monitor
from vmm.guest import blueprint
from vmm.guest.abi import PAGE_SIZE
from vmm.guest.blueprint import Blueprint
from vmm.kvm import Kvm
from vmm.memory.movers import PRIVATE_SLOT, WINDOW_SLOT

Elf = Callable[[str], Path]
SMALL = {"window": "2M", "memory": "4M"}


def blueprint_of(machine: Machine) -> Blueprint:
    return machine.guest._blueprint


def is_locked(monitor: Monitor) -> bool:
    """Whether another thread has to wait for the monitor."""
    other = threading.Thread(target=monitor.audit, daemon=True)
    other.start()
    other.join(2)
    return other.is_alive()


def own_pages(machine: Machine) -> int:
    """Return how many pages of the image's template a machine has copies of."""
    start = f"{machine.guest.memory.address:x}-"
    smaps = Path("/proc/self/smaps").read_text()
    found = re.search(rf"^{start}.*?^Anonymous: +(\d+) kB", smaps, re.MULTILINE | re.DOTALL)
    assert found is not None
    return int(found[1]) * 1024 // PAGE_SIZE


def test_machines_of_one_image_do_not_see_each_others_data_bss_and_stack(
    monitor: Monitor, test_guest: Elf
) -> None:
    machines = [monitor.spawn(test_guest("own_data"), name=f"m{i}", **SMALL) for i in range(3)]
    template = blueprint_of(machines[0]).template
    assert {blueprint_of(m).template for m in machines} == {template}
    before = os.pread(template.fd, template.size, 0)
    monitor.run(10)
    machines.append(monitor.spawn(test_guest("own_data"), name="late", **SMALL))
    monitor.run(10)
    assert [m.exit_code for m in machines] == [211] * 4
    assert os.pread(template.fd, template.size, 0) == before


def test_a_machine_that_has_not_run_has_two_pages_of_its_own_and_its_variables(
    monitor: Monitor, test_guest: Elf
) -> None:
    """The first of its control structure, the first of its peer table; and where its data is."""
    machines = [monitor.spawn(test_guest("idle"), name=f"m{i}", **SMALL) for i in range(2)]
    written = blueprint_of(machines[0]).written
    assert 0 < sum(size for _, size in written) <= 4 * PAGE_SIZE
    own = 2 + sum(size for _, size in written) // PAGE_SIZE
    assert [own_pages(m) for m in machines] == [own, own]
    monitor.run(10)
    assert all(own <= own_pages(m) < 16 for m in machines)


def test_of_an_image_with_much_data_nobody_gets_a_copy_before_it_is_written(
    monitor: Monitor, test_guest: Elf, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(blueprint, "_MOST_OWN", 0)
    machine = monitor.spawn(test_guest("idle"), **SMALL)
    assert blueprint_of(machine).written == ()
    assert own_pages(machine) == 2


def image_mappings() -> int:
    return Path("/proc/self/maps").read_text().count("pageferry-image")


@pytest.mark.parametrize(("memory", "whole"), [("4M", True), ("64M", False)])
def test_small_private_memory_is_one_mapping(
    open_monitor: Callable[..., Monitor], test_guest: Elf, memory: str, whole: bool
) -> None:
    """It reads as zeros where the image has nothing, also after others have written there."""
    monitor = open_monitor(pool="1M")
    machines = [
        monitor.spawn(test_guest("own_data"), name=f"m{i}", window="2M", memory=memory)
        for i in range(2)
    ]
    template, size = blueprint_of(machines[0]).template, machines[0].guest.memory.region.size
    assert (template.size == size) is whole
    assert image_mappings() == 2
    last = size - PAGE_SIZE
    for machine in machines:
        assert machine.guest.memory.read(last, PAGE_SIZE) == bytes(PAGE_SIZE)
        machine.guest.memory.write(last, b"mine")
    monitor.run(10)
    assert [m.exit_code for m in machines] == [211] * 2
    late = monitor.spawn(test_guest("own_data"), name="late", window="2M", memory=memory)
    assert late.guest.memory.read(last, PAGE_SIZE) == bytes(PAGE_SIZE)


def test_a_vcpu_has_the_registers_of_the_blueprint(monitor: Monitor, test_guest: Elf) -> None:
    for name in ("first", "second"):
        machine = monitor.spawn(test_guest("idle"), name=name, **SMALL)
        made = blueprint_of(machine)
        assert machine.guest.vcpu.get_sregs() == made._sregs
        assert machine.guest.vcpu.get_regs() == made._regs


def test_every_vcpu_is_the_same_after_its_reset() -> None:
    states = []
    with Kvm.open() as kvm:
        for _ in range(2):
            with kvm.create_vm() as vm, vm.create_vcpu() as vcpu:
                vcpu.set_cpuid(kvm.supported_cpuid())
                states.append(vcpu.get_sregs())
    assert states[0] == states[1]


def test_another_file_at_the_same_path_is_another_image(
    monitor: Monitor, test_guest: Elf, tmp_path: Path
) -> None:
    path, new = tmp_path / "guest.elf", tmp_path / "new.elf"
    shutil.copy(test_guest("own_data"), path)
    old = monitor.spawn(path, name="old-7", **SMALL)
    shutil.copy(test_guest("exit_as_named"), new)
    new.replace(path)
    young = monitor.spawn(path, name="young-7", **SMALL)
    monitor.run(10)
    assert (old.exit_code, young.exit_code) == (211, -7)
    assert blueprint_of(old).template is not blueprint_of(young).template


def test_a_machine_needs_its_blueprints_descriptor_no_more(
    monitor: Monitor, test_guest: Elf, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(blueprint, "_MOST", 2)
    machines = [
        monitor.spawn(test_guest("own_data"), name=f"m{i}", window="2M", memory=f"{size}M")
        for i, size in enumerate((4, 5, 4, 6, 5))
    ]
    first, _, again, last, anew = [blueprint_of(m) for m in machines]
    assert first is again
    assert [made.template.fd >= 0 for made in (first, last, anew)] == [False, True, True]
    monitor.run(10)
    assert [m.exit_code for m in machines] == [211] * 5


def test_blueprints_that_take_much_memory_are_not_kept(
    monitor: Monitor, test_guest: Elf, monkeypatch: pytest.MonkeyPatch
) -> None:
    machines = []
    for number in range(3):
        shape = {"window": "2M", "memory": f"{4 + number}M"}
        machines.append(monitor.spawn(test_guest("own_data"), name=f"m{number}", **shape))
        size = blueprint_of(machines[0]).held
        monkeypatch.setattr(blueprint, "_MOST_BYTES", 3 * size)  # two, as they become larger
    kept = [blueprint_of(machine).template.fd >= 0 for machine in machines]
    assert kept == [False, True, True]
    monitor.run(10)
    assert [m.exit_code for m in machines] == [211] * 3


def test_a_window_of_a_gib_takes_the_kernel_nothing_until_there_is_a_page_in_it(
    open_monitor: Callable[..., Monitor], test_guest: Elf
) -> None:
    monitor = open_monitor(mover="memfd", pool="64M")
    machine = monitor.spawn(test_guest("idle"), window="1G")
    slots = machine.guest.vm._slot_bytes
    assert list(slots) == [PRIVATE_SLOT]
    monitor.host.send(machine, monitor.host.alloc(1), tag=5)
    monitor.run(10)
    assert machine.exit_code == 5
    assert slots == {PRIVATE_SLOT: 16 << 20, WINDOW_SLOT: 64 << 20}


def test_an_image_is_laid_out_before_the_monitor_is_locked(
    monitor: Monitor, test_guest: Elf, monkeypatch: pytest.MonkeyPatch
) -> None:
    locked: list[bool] = []

    class Seen(blueprint.Template):
        def __init__(self, parts: Iterable[tuple[int, bytes]], least: int = 0) -> None:
            locked.append(is_locked(monitor))
            super().__init__(parts, least)

    monkeypatch.setattr(blueprint, "Template", Seen)
    machines = [monitor.spawn(test_guest("own_data"), name=f"m{i}", **SMALL) for i in range(3)]
    assert locked == [False]
    assert len({blueprint_of(machine) for machine in machines}) == 1


def test_what_was_laid_out_for_a_machine_that_is_refused_is_closed(
    monitor: Monitor, test_guest: Elf
) -> None:
    monitor.spawn(test_guest("idle"), name="taken", **SMALL)
    descriptors = len(os.listdir("/proc/self/fd"))  # noqa: PTH208
    for _ in range(3):
        with pytest.raises(ConfigError, match="is taken"):
            monitor.spawn(test_guest("own_data"), name="taken", **SMALL)
        assert len(os.listdir("/proc/self/fd")) == descriptors  # noqa: PTH208
    assert monitor._blueprints._ready == {}
