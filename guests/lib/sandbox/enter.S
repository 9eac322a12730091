/* SPDX-License-Identifier: Apache-2.0
 * void pf_enter_function(struct frame *frame): calls a function of any signature, by the System V AMD64 ABI.
 * The offsets are those of struct frame in sandbox.c, which checks them. */
    .text
    .globl pf_enter_function
    .type pf_enter_function, @function
pf_enter_function:
    .cfi_startproc
    pushq %rbp
    .cfi_def_cfa_offset 16
    .cfi_offset %rbp, -16
    movq %rsp, %rbp
    .cfi_def_cfa_register %rbp
    pushq %rbx
    .cfi_offset %rbx, -24
    subq $8, %rsp
    movq %rdi, %rbx

    /* What goes onto the stack, which is aligned to 16 bytes at the call. */
    movq 136(%rbx), %rcx
    leaq 1(%rcx), %rax
    shrq $1, %rax
    shlq $4, %rax
    subq %rax, %rsp
    movq 128(%rbx), %rsi
    movq %rsp, %rdi
    cld
    rep movsq

    movsd 56(%rbx), %xmm0
    movsd 64(%rbx), %xmm1
    movsd 72(%rbx), %xmm2
    movsd 80(%rbx), %xmm3
    movsd 88(%rbx), %xmm4
    movsd 96(%rbx), %xmm5
    movsd 104(%rbx), %xmm6
    movsd 112(%rbx), %xmm7
    movq 8(%rbx), %rdi
    movq 16(%rbx), %rsi
    movq 24(%rbx), %rdx
    movq 32(%rbx), %rcx
    movq 40(%rbx), %r8
    movq 48(%rbx), %r9
    movl 120(%rbx), %eax /* for a variadic function: how many vector registers */
    call *(%rbx)

    movq %rax, 144(%rbx)
    movq %rdx, 152(%rbx)
    movsd %xmm0, 160(%rbx)
    movsd %xmm1, 168(%rbx)
    leaq -8(%rbp), %rsp
    popq %rbx
    popq %rbp
    .cfi_def_cfa %rsp, 8
    ret
    .cfi_endproc
    .size pf_enter_function, . - pf_enter_function
    .section .note.GNU-stack, "", @progbits
