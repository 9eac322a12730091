"""Which instructions are SSE's or AVX's; the bytes are the GNU assembler's."""

from __future__ import annotations

import pytest

from vmm.guest.simd import simd

SSE = {
    "movdqu (%rdi), %xmm0": "f30f6f07",
    "movaps %xmm0, %xmm9": "440f28c8",
    "cvtsi2sd %rax, %xmm0": "f2480f2ac0",
    "movd %eax, %mm0": "0f6ec0",
    "movsd %fs:8(%rax), %xmm3": "64f20f105808",
    "pcmpistri $1, %xmm0, %xmm1": "660f3a63c801",
    "aesenc %xmm0, %xmm1": "660f38dcc8",
    "sha256rnds2 %xmm0, %xmm1, %xmm2": "0f38cbd1",
    "pextrq $1, %xmm0, %rax": "66480f3a16c001",
    "movntdq %xmm0, (%rax)": "660fe700",
    "emms": "0f77",
}
AVX = {
    "vmovdqu (%rdi), %ymm0": "c5fe6f07",
    "vpshufb %xmm0, %xmm1, %xmm2": "c4e27100d0",
    "vmovdqa64 %zmm0, %zmm1": "62f1fd486fc8",
}
OTHERS = {
    "mov %rax, %rbx": "4889c3",
    "rep movsb": "f3a4",
    "syscall": "0f05",
    "movnti %rax, (%rbx)": "480fc303",
    "crc32q %rax, %rbx": "f2480f38f1d8",
    "movbe (%rax), %rbx": "480f38f018",
    "popcnt %rax, %rbx": "f3480fb8d8",
    "imul %rax, %rbx": "480fafd8",
    "movzbl %al, %eax": "0fb6c0",
    "cmpxchg16b (%rax)": "480fc708",
    "bswap %rax": "480fc8",
    "fxsave (%rax)": "0fae00",
    "ud2": "0f0b",
    "vmread %rax, %rbx": "0f78c3",
    "invept (%rax), %rbx": "660f388018",
    "endbr64": "f30f1efa",
    "rorx $1, %rax, %rbx": "c4e3fbf0d801",
    "andn %rax, %rbx, %rcx": "c4e2e0f2c8",
    "prefixes only": "66" * 15,
}


@pytest.mark.parametrize("tail", ["", "90" * 8, "0f" * 8])
@pytest.mark.parametrize(
    ("code", "kind"),
    [
        *((code, "SSE") for code in SSE.values()),
        *((code, "AVX") for code in AVX.values()),
        *((code, None) for code in OTHERS.values()),
    ],
    ids=[*SSE, *AVX, *OTHERS],
)
def test_an_instruction_is_known_by_its_bytes(code: str, kind: str | None, tail: str) -> None:
    assert simd((bytes.fromhex(code) + bytes.fromhex(tail))[:15]) == kind


def test_no_bytes_are_no_instruction() -> None:
    assert simd(b"") is None
