"""What a Linux program can do with its memory, on the real device, as its map changes."""

from __future__ import annotations

import contextlib
import errno
import random
import struct
from collections.abc import Iterator

import pytest
from kvm.linux_scene import ANONYMOUS, CALLABLE, FIXED, MIB, PAGE, Refused, Scene
from tests_support import sized

from vmm.guest import abi
from vmm.guest.x86 import LARGE_PAGE
from vmm.kvm import Vm
from vmm.linux import boot
from vmm.linux.boot import ENTERED, GATE
from vmm.linux.errors import SysError
from vmm.linux.gate import R10, R11, RAX, RBX, RCX, RDX, RFLAGS, RIP, RSP
from vmm.memory import mapping

READ, WRITE, EXEC = 1, 2, 4


@pytest.fixture
def scene() -> Iterator[Scene]:
    with Scene() as made:
        yield made


def can(scene: Scene, address: int) -> int:
    """What the program can do with a page, tried out; it has CALLABLE at its beginning, or 0."""
    found = 0
    try:
        value = scene.load(address)
    except Refused as refused:
        assert refused.address == address
    else:
        assert value in (0, CALLABLE)
        found |= READ
    try:
        scene.store(address + 8, address)
    except Refused as refused:
        assert refused.address == address + 8
    else:
        found |= WRITE
    try:
        scene.memory.raw(address, 8)[:] = struct.pack("<Q", CALLABLE)
    except SysError:
        return found
    try:
        scene.jump(address)
    except Refused as refused:
        assert refused.address == address
    else:
        found |= EXEC
    return found


def wanted(prot: int) -> int:
    return prot | READ if prot else 0


@pytest.mark.parametrize("size", [PAGE, LARGE_PAGE, LARGE_PAGE + PAGE])
def test_rights_are_what_was_asked_for_last(scene: Scene, size: int) -> None:
    memory = scene.memory
    place = memory.mmap(0, size, 3, ANONYMOUS)
    last = place + size - PAGE
    for prot in (3, 1, 3, 5, 7, 1, 0, 3, 2, 4, 0, 7):
        memory.mprotect(place, size, prot)
        assert can(scene, place) == wanted(prot)
        assert can(scene, last) == wanted(prot)
    memory.munmap(place, size)
    assert can(scene, place) == can(scene, last) == 0


def test_a_host_that_cannot_protect_memory_makes_its_slots_again(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    refusals = []

    def refuse(address: int, size: int, *, writable: bool) -> None:
        refusals.append(address)
        raise OSError(errno.ENOMEM, "mprotect")

    monkeypatch.setattr(mapping, "protect", refuse)
    heap = scene.memory.brk(0)
    scene.memory.brk(heap + PAGE)
    for place in (scene.memory.mmap(0, PAGE, 3, ANONYMOUS), heap):
        for prot in (3, 1, 3, 0, 1):
            scene.memory.mprotect(place, PAGE, prot)
            assert can(scene, place) == wanted(prot)
    assert refusals


def test_contents_stay_when_rights_change_and_go_with_the_area(scene: Scene) -> None:
    memory = scene.memory
    place = memory.mmap(0, 2 * PAGE, 3, ANONYMOUS)
    scene.store(place, 7)
    for prot in (1, 0, 3):
        memory.mprotect(place, PAGE, prot)
    assert scene.load(place) == 7
    assert memory.read(place, 8) == struct.pack("<Q", 7)
    memory.munmap(place, 2 * PAGE)
    assert memory.mmap(place, 2 * PAGE, 3, FIXED) == place
    assert scene.load(place) == 0
    scene.store(place, 8)
    assert memory.mmap(place, PAGE, 1, FIXED) == place
    assert scene.load(place) == 0


def test_one_page_of_a_large_one_gets_other_rights(scene: Scene) -> None:
    memory = scene.memory
    place = memory.mmap(0, 4 * LARGE_PAGE, 3, ANONYMOUS)
    block = -(-place // LARGE_PAGE) * LARGE_PAGE
    pages = [block + n * PAGE for n in (0, 1, 255, 256, 510, 511)]
    for page in pages:
        scene.store(page, page)
    for prot in (1, 3, 0, 3):
        memory.mprotect(pages[2], PAGE, prot)
        for page in pages:
            here = prot if page == pages[2] else 3
            try:
                scene.store(page, page)
                assert here & WRITE
            except Refused:
                assert not here & WRITE
            try:
                assert scene.load(page) == page
                assert here
            except Refused:
                assert not here


def test_the_heap_is_zeros_again_after_it_was_given_back(scene: Scene) -> None:
    memory = scene.memory
    start = memory.brk(0)
    assert memory.brk(start + 6 * MIB) == start + 6 * MIB
    places = [start, start + PAGE, start + 3 * MIB, start + 6 * MIB - 8]
    for place in places:
        scene.store(place, 1)
    memory.brk(start)
    with pytest.raises(Refused):
        scene.load(start)
    memory.brk(start + 6 * MIB)
    assert [scene.load(place) for place in places] == [0, 0, 0, 0]


@pytest.mark.parametrize("size", [3 * PAGE, 3 * LARGE_PAGE])
def test_what_is_moved_is_there_and_not_here(scene: Scene, size: int) -> None:
    memory = scene.memory
    place = memory.mmap(0, size, 3, ANONYMOUS)
    memory.mmap(place + size, PAGE, 1, FIXED)  # it cannot grow where it is
    for at in range(0, size, PAGE):
        if at % (7 * PAGE) == 0:
            scene.store(place + at, at + 1)
    moved = memory.mremap(place, size, 2 * size, 1)
    assert moved != place
    with pytest.raises(Refused):
        scene.load(place)
    for at in range(0, 2 * size, PAGE):
        assert scene.load(moved + at) == (at + 1 if at % (7 * PAGE) == 0 and at < size else 0)
    scene.store(moved + 2 * size - 8, 5)
    memory.mmap(place, size, 3, FIXED)
    assert [scene.load(place + at) for at in range(0, size, 7 * PAGE)] == [0] * len(
        range(0, size, 7 * PAGE)
    )


@pytest.mark.smaller_in_lanes("fewer changes")
def test_any_changes_in_any_order(scene: Scene) -> None:
    rng = random.Random(11)
    memory, areas = scene.memory, scene.memory.areas
    base, pages = scene.layout.arena.base, 3 * 512
    # All of them are tried after each change, so that what a CPU remembers would be found out.
    watched = [base + page * PAGE for page in (0, 1, 2, 300, 511, 512, 700, 701, 1023, 1024, 1500)]
    written: dict[int, int] = {}

    def extent() -> tuple[int, int]:
        if rng.random() < 0.3:
            return base + rng.randrange(3) * LARGE_PAGE, LARGE_PAGE
        start = rng.choice(watched) - rng.choice((0, 0, 1, 5)) * PAGE
        start = max(start, base)
        size = rng.choice((1, 1, 2, 7, 300, 600)) * PAGE
        return start, min(size, base + pages * PAGE - start)

    for _ in range(sized(300, 40)):
        start, size = extent()
        match rng.randrange(6):
            case 0:
                memory.mmap(start, size, rng.choice((0, 1, 3, 3, 5, 7)), FIXED)
                forget(written, start, size)
            case 1:
                memory.munmap(start, size)
                forget(written, start, size)
            case 2 | 3 | 4:
                with contextlib.suppress(SysError):
                    memory.mprotect(start, size, rng.choice((0, 1, 3, 3, 5)))
            case 5:
                target = min(extent()[0], base + pages * PAGE - size)
                try:
                    memory.mremap(start, size, size, 3, target)
                except SysError:
                    continue
                forget(written, target, size)
                for page in [p for p in written if start <= p < start + size]:
                    written[page + target - start] = written.pop(page)
        for page in watched:
            area = areas.spans.at(page)
            prot = area.prot if area else 0
            try:
                assert scene.load(page) == written.get(page, 0)
                assert prot
            except Refused:
                assert not prot, f"{page:#x} is {prot}"
            try:
                scene.store(page, page + 1)
                assert prot & WRITE
                written[page] = page + 1
            except Refused:
                assert not prot & WRITE
            assert memory.tables.prot(page) == (prot and prot | READ)


def forget(written: dict[int, int], start: int, size: int) -> None:
    for page in [p for p in written if start <= p < start + size]:
        del written[page]


def test_a_program_has_no_more_than_it_should(scene: Scene) -> None:
    layout = scene.layout
    for address in (0x1000, 0x2000, 0x3000, 0x4000, 0x40000, layout.arena.end, layout.arena.base):
        with pytest.raises(Refused):
            scene.load(address)
    assert scene.load(ENTERED & -PAGE)
    with pytest.raises(Refused):
        scene.store(ENTERED & -PAGE, 0)
    scene.store(abi.CONTROL_GPA, 5)
    assert scene.memory.read(abi.CONTROL_GPA, 8) == struct.pack("<Q", 5)


def test_without_its_window_all_else_is_the_same(scene: Scene) -> None:
    place = scene.memory.mmap(0, PAGE, 3, ANONYMOUS)
    scene.store(place, 6)
    scene.root = scene.layout.tables.root_no_window
    assert scene.load(place) == 6
    assert scene.load(scene.stack) == 0
    scene.memory.mprotect(place, PAGE, 1)
    with pytest.raises(Refused) as refused:
        scene.store(place, 6)
    assert refused.value.address == place
    for address in (abi.WINDOW_GPA, scene.layout.window.end - 8):
        with pytest.raises(Refused) as refused:
            scene.load(address)
        assert refused.value.address == address


# mov ebx, N; again: mov eax, 39; syscall; add edx, eax; dec ebx; jnz again; then 60
_LOOP = bytes.fromhex("bb05000000 b827000000 0f05 01c2 ffcb 75f3 b83c000000 0f05 f4")


def test_system_calls_are_answered_and_the_program_goes_on(scene: Scene) -> None:
    place = scene.memory.mmap(0, PAGE, 5, ANONYMOUS)
    scene.memory.fill(place, _LOOP)
    enter(scene, place)
    for call in range(5):
        exit_ = scene.gate.run()
        assert scene.gate.called(exit_)
        registers = scene.gate.registers
        assert scene.gate.arguments()[0] == 39
        assert (registers[RAX], registers[RBX], registers[RDX]) == (39, 5 - call, 1000 * call)
        assert registers[RCX] == place + 12
        assert registers[RSP] == scene.stack
        scene.gate.answer(1)
        assert scene.gate.called(exit_), "until it runs on"
        assert scene.gate.registers[RAX] == 39
        scene.gate.answer(1000)
    assert scene.gate.called(scene.vcpu.run())
    assert scene.gate.registers[RAX] == 60
    assert scene.gate.registers[RDX] == 5000


def enter(scene: Scene, rip: int) -> None:
    scene.vcpu.set_regs(boot.regs(rip, scene.stack))


# std; mov r10, rcx... : flags and negative results
_FLAGS = bytes.fromhex("fd f9 0f05 9c 415a 48 3d01f0ffff b800000000 0f92c0 0f05 f4")


def test_flags_survive_a_call_and_errors_are_negative(scene: Scene) -> None:
    place = scene.memory.mmap(0, PAGE, 5, ANONYMOUS)
    scene.memory.fill(place, _FLAGS)
    enter(scene, place)
    assert scene.gate.called(scene.vcpu.run())
    assert scene.gate.registers[R11] & 0x401 == 0x401, "DF and CF"
    assert not scene.gate.registers[RFLAGS] & 0x3000
    scene.gate.answer(-38)
    assert scene.gate.called(scene.vcpu.run())
    assert scene.gate.registers[R10] & 0x401 == 0x401
    assert scene.gate.registers[RAX] == 0, "an error: not below -4095"


def test_a_jump_to_where_system_calls_lead_is_one(scene: Scene) -> None:
    place = scene.memory.mmap(0, PAGE, 5, ANONYMOUS)
    # mov rcx, 1 << 62; mov r11, -1; mov eax, ENTRY; jmp rax
    code = (
        bytes.fromhex("48b9 0000000000000040 49c7c3ffffffff b8")
        + struct.pack("<I", ENTERED - 7)
        + b"\xff\xe0"
    )
    scene.memory.fill(place, code)
    enter(scene, place)
    assert scene.gate.called(scene.vcpu.run())
    assert scene.gate.registers[RCX] == 1 << 62
    scene.gate.answer(0)
    assert scene.vcpu._shared().registers[RFLAGS] == 0x244FD7, "what a program may set, and IF"
    scene.vcpu.run()
    regs = scene.vcpu.get_regs()
    assert regs.rip == 0x3000 + 14 * 4 + 1, "a page fault"
    assert scene.frame()[1] == 0
    assert not scene.frame()[3] & 0x23000, "no VM, no IOPL"


def test_a_store_to_the_gate_is_no_system_call(scene: Scene) -> None:
    place = scene.memory.mmap(0, PAGE, 5, ANONYMOUS)
    scene.memory.fill(place, b"\x8c\x0c\x25" + struct.pack("<I", GATE) + b"\xf4")
    enter(scene, place)
    assert not scene.gate.called(scene.vcpu.run())
    assert scene.vcpu.get_regs().rip == place + 7


# vpcmpeqd ymm3,ymm3,ymm3; mov eax,1; syscall; vextracti128 xmm4,ymm3,1; vmovq rbx,xmm4; syscall
_VECTORS = bytes.fromhex("c5e576db b801000000 0f05 c4e37d39dc01 c4e1f97ee3 0f05")


def test_vector_registers_survive_a_call(scene: Scene) -> None:
    if scene.processor.xcr0 & 4 == 0:
        _VECTORS_OF_SSE(scene)
        return
    place = scene.memory.mmap(0, PAGE, 5, ANONYMOUS)
    scene.memory.fill(place, _VECTORS)
    enter(scene, place)
    assert scene.gate.called(scene.vcpu.run())
    scene.gate.answer(0)
    assert scene.gate.called(scene.vcpu.run())
    assert scene.gate.registers[RBX] == (1 << 64) - 1


def _VECTORS_OF_SSE(scene: Scene) -> None:
    # pcmpeqd xmm3,xmm3; mov eax,1; syscall; movq rbx,xmm3; syscall
    place = scene.memory.mmap(0, PAGE, 5, ANONYMOUS)
    scene.memory.fill(place, bytes.fromhex("660f76db b801000000 0f05 66480f7edb 0f05"))
    enter(scene, place)
    assert scene.gate.called(scene.vcpu.run())
    scene.gate.answer(0)
    assert scene.gate.called(scene.vcpu.run())
    assert scene.gate.registers[RBX] == (1 << 64) - 1


def test_rip_is_where_the_gate_says(scene: Scene) -> None:
    scene.load(scene.stack)
    assert scene.gate.registers[RIP] == ENTERED


def test_addresses_get_their_memslot_when_they_are_first_used() -> None:
    with Scene(low=64 * MIB, arena=96 * MIB) as scene:
        memory, layout = scene.memory, scene.layout
        assert len(memory.slots) == 2
        # What is shadowed takes the kernel as long as a slot is large.
        assert sum(size for _, _, size, _ in memory.slots) < 64 * MIB
        low, arena = layout.low.end - PAGE, layout.arena.base
        for count, address in ((3, low), (4, arena)):
            for prot in (READ, 0, READ | WRITE):
                memory.mmap(address, PAGE, prot, FIXED)
                assert can(scene, address) == prot
            assert len(memory.slots) == count
        slots = sorted((base, base + size) for _, base, size, _ in memory.slots)
        assert slots[0][0] == 0
        assert slots[0][1] == slots[1][0]
        assert slots[1][1] == layout.private.end
        assert slots[2][0] == arena
        assert slots[2][1] == slots[3][0]


def test_one_area_may_need_memslots_beyond_the_first_ones() -> None:
    with Scene(arena=96 * MIB) as scene:
        size = 64 * MIB
        address = scene.memory.mmap(0, size, READ | WRITE, ANONYMOUS)
        for at in range(address, address + size, 4 * MIB):
            scene.store(at, at)
        assert [scene.load(at) for at in range(address, address + size, 4 * MIB)] == [
            *range(address, address + size, 4 * MIB)
        ]


@pytest.mark.parametrize("before", [True, False])
def test_a_memslot_that_was_cut_off_is_made_before_the_program_runs_on(
    before: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Scene(arena=96 * MIB) as scene:
        address = scene.layout.arena.base
        original, cut = Vm.set_user_memory_region, [None]

        def cut_off(vm: Vm, *slot: int) -> None:
            if not before:
                original(vm, *slot)
            if cut:
                cut.pop()
                raise KeyboardInterrupt
            original(vm, *slot)

        monkeypatch.setattr(Vm, "set_user_memory_region", cut_off)
        with pytest.raises(KeyboardInterrupt):
            scene.memory.mmap(address, PAGE, READ | WRITE, FIXED)
        assert not cut
        scene.memory.begin(0)
        assert can(scene, address) == READ | WRITE
        assert len({number for number, *_ in scene.memory.slots}) == len(scene.memory.slots) == 3
