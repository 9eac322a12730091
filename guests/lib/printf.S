/* SPDX-License-Identifier: Apache-2.0
 * pf_printf: makes a va_list of its arguments, as the System V ABI lays it out (AMD64 supplement, 3.5.7), and calls
 * pf_vprintf. Not in C: the registers that carry floating-point numbers are to be touched only if a caller says, in AL,
 * that there are any, so that callers that do without SSE can use it where there is none. */

    .globl pf_printf
    .type pf_printf, @function
    .text
pf_printf:
    .cfi_startproc
    sub     $0xd8, %rsp
    .cfi_adjust_cfa_offset 0xd8
    mov     %rsi, 0x28(%rsp)        /* the saved registers: from 0x20 on, rdi's place first */
    mov     %rdx, 0x30(%rsp)
    mov     %rcx, 0x38(%rsp)
    mov     %r8, 0x40(%rsp)
    mov     %r9, 0x48(%rsp)
    test    %al, %al
    je      1f
    movaps  %xmm0, 0x50(%rsp)
    movaps  %xmm1, 0x60(%rsp)
    movaps  %xmm2, 0x70(%rsp)
    movaps  %xmm3, 0x80(%rsp)
    movaps  %xmm4, 0x90(%rsp)
    movaps  %xmm5, 0xa0(%rsp)
    movaps  %xmm6, 0xb0(%rsp)
    movaps  %xmm7, 0xc0(%rsp)
1:  movl    $8, 0x00(%rsp)          /* gp_offset: the format is taken */
    movl    $48, 0x04(%rsp)         /* fp_offset */
    lea     0xe0(%rsp), %rax
    mov     %rax, 0x08(%rsp)        /* overflow_arg_area */
    lea     0x20(%rsp), %rax
    mov     %rax, 0x10(%rsp)        /* reg_save_area */
    mov     %rsp, %rsi
    call    pf_vprintf
    add     $0xd8, %rsp
    .cfi_adjust_cfa_offset -0xd8
    ret
    .cfi_endproc
    .size pf_printf, . - pf_printf
    .section .note.GNU-stack, "", @progbits
