"""Linux programs as machines: an executable made ready, and its system calls answered.

Nothing that a program asks for is passed on to the host's kernel: files are those that were
offered, memory is its machine's own, and time is the monitor's word.
"""
