"""Whether an instruction is one of SSE's or AVX's, by its bytes. Pure.

Source: Intel SDM volume 2, 2.3 (VEX), 2.7 (EVEX), and appendix A's opcode maps.
"""

from __future__ import annotations

LONGEST = 15  # bytes of an instruction

_PREFIXES = frozenset(b"\x26\x2e\x36\x3e\x64\x65\x66\x67\xf0\xf2\xf3")
_VEX3, _VEX2, _EVEX = 0xC4, 0xC5, 0x62
# With VEX, by map and opcode, but of the general registers: BMI's.
_GENERAL = frozenset(((2, 0xF2), (2, 0xF3), (2, 0xF5), (2, 0xF6), (2, 0xF7), (3, 0xF0)))
_ESCAPE, _MAP_38, _MAP_3A = 0x0F, 0x38, 0x3A
# After 0F: those that name XMM or MMX registers, whatever their prefix. 78 and 79 are VMREAD and
# VMWRITE, C3 is MOVNTI, FF is UD0.
_SIMD = (
    frozenset(range(0x10, 0x18))
    | frozenset(range(0x28, 0x30))
    | frozenset(range(0x50, 0x80)) - {0x78, 0x79}
    | {0xC2, 0xC4, 0xC5, 0xC6}
    | frozenset(range(0xD0, 0xFF))
)
_SIMD_38 = frozenset((*range(0x42), *range(0xC8, 0xE0)))  # the others are of other registers
_SIMD_3A = frozenset((*range(0x08, 0x64), 0xCC, 0xCE, 0xCF, 0xDF))


def simd(code: bytes) -> str | None:
    """Return "SSE" or "AVX" if 64-bit code begins with an instruction of theirs, else None."""
    at = 0
    while code[at : at + 1] and code[at] in _PREFIXES:
        at += 1
    opcode = code[at : at + 4]
    if len(opcode) < 4:  # with what follows it, each of them is as long as this at least
        opcode += bytes(4 - len(opcode))
    if opcode[0] == _VEX3 and (opcode[1] & 0x1F, opcode[3]) in _GENERAL:
        return None
    if opcode[0] in (_VEX3, _VEX2, _EVEX):  # in 64-bit code these are nothing else
        return "AVX"
    if 0x40 <= opcode[0] <= 0x4F:  # REX
        opcode = opcode[1:] + b"\0"
    if opcode[0] != _ESCAPE:
        return None
    if opcode[1] == _MAP_38:
        return "SSE" if opcode[2] in _SIMD_38 else None
    if opcode[1] == _MAP_3A:
        return "SSE" if opcode[2] in _SIMD_3A else None
    return "SSE" if opcode[1] in _SIMD else None
