"""From an ELF file to a runnable vCPU, and from a stopped vCPU to a fault."""
