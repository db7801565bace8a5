/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Where the NOPs of a probed function call to: save the registers of its arguments, ask agent_hit(), and go on in the
 * function, or back to its caller with the value in regs->rax. Kernels are built with -fno-ipa-ra: no caller has anything
 * in other registers that the ABI gives to a callee.
 *
 * The CFI makes a backtrace through here read as if the function had been stopped at its entry, arguments included.
 */
#include <linux/linkage.h>

	.cfi_sections .debug_frame
	.text
	.globl agent_trampoline
	.type agent_trampoline, @function
agent_trampoline:
	.cfi_startproc
	pushq %rbp
	.cfi_adjust_cfa_offset 8
	.cfi_rel_offset %rbp, 0
	movq %rsp, %rbp
	.cfi_def_cfa_register %rbp
	pushq %rdi
	.cfi_offset %rdi, -24
	pushq %rsi
	.cfi_offset %rsi, -32
	pushq %rdx
	.cfi_offset %rdx, -40
	pushq %rcx
	.cfi_offset %rcx, -48
	pushq %r8
	.cfi_offset %r8, -56
	pushq %r9
	.cfi_offset %r9, -64
	pushq %rax
	.cfi_offset %rax, -72
	movq %rsp, %rdi
	andq $-16, %rsp
	call agent_hit
	testl %eax, %eax
	leaq -56(%rbp), %rsp
	popq %rax
	popq %r9
	popq %r8
	popq %rcx
	popq %rdx
	popq %rsi
	popq %rdi
	popq %rbp
	.cfi_def_cfa %rsp, 8
	.cfi_same_value %rbp
	jnz 1f
	ret
1:	leaq 8(%rsp), %rsp
	.cfi_adjust_cfa_offset -8
	ret
	.cfi_endproc
	.size agent_trampoline, . - agent_trampoline

/*
 * Where a call returns to whose return is of interest (calls.c): the place of its return address is taken again, and
 * agent_returned() says what belongs there. What is read below the stack's end is safe: an interrupt is a signal, and the
 * host leaves 128 bytes free. A debugger looks for a frame's function at the byte before: the NOP.
 */
	.globl agent_return
	.type agent_return, @function
	.cfi_startproc
	.cfi_def_cfa %rsp, 0
	nop
agent_return:
	subq $8, %rsp
	.cfi_adjust_cfa_offset 8
	pushq %rbp
	.cfi_adjust_cfa_offset 8
	.cfi_rel_offset %rbp, 0
	movq %rsp, %rbp
	.cfi_def_cfa_register %rbp
	pushq %rdi
	pushq %rsi
	pushq %rdx
	pushq %rcx
	pushq %r8
	pushq %r9
	pushq %rax
	movq %rsp, %rdi
	andq $-16, %rsp
	call agent_returned
	movq %rax, 8(%rbp)
	leaq -56(%rbp), %rsp
	popq %rax
	popq %r9
	popq %r8
	popq %rcx
	popq %rdx
	popq %rsi
	popq %rdi
	popq %rbp
	.cfi_def_cfa %rsp, 8
	.cfi_same_value %rbp
	addq $8, %rsp
	.cfi_adjust_cfa_offset -8
	jmp *-8(%rsp) /* no ret: the processor's own stack of return addresses stays in step with this one */
	.cfi_endproc
	.size agent_return, . - agent_return

/*
 * unsigned long agent_call_as(regs, words): call a probed function behind its NOPs as its caller has called it. So many words
 * of the stack behind the return address are copied: there the caller has put the arguments that no register holds.
 */
	.globl agent_call_as
	.type agent_call_as, @function
agent_call_as:
	.cfi_startproc
	pushq %rbp
	.cfi_adjust_cfa_offset 8
	.cfi_rel_offset %rbp, 0
	movq %rsp, %rbp
	.cfi_def_cfa_register %rbp
	movq %rdi, %r10
	movq %rsi, %rcx
	negq %rsi
	leaq (%rsp,%rsi,8), %rsp
	andq $-16, %rsp
	leaq 80(%r10), %rsi
	movq %rsp, %rdi
	rep movsq
	movq (%r10), %rax /* of a variadic function: how many vector registers */
	movq 8(%r10), %r9
	movq 16(%r10), %r8
	movq 24(%r10), %rcx
	movq 32(%r10), %rdx
	movq 40(%r10), %rsi
	movq 48(%r10), %rdi
	call *64(%r10)
	leave
	.cfi_def_cfa %rsp, 8
	.cfi_same_value %rbp
	ret
	.cfi_endproc
	.size agent_call_as, . - agent_call_as

	.section .note.GNU-stack, "", @progbits
