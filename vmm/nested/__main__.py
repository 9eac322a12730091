"""`python -m vmm.nested`: the same as `pageferry nested`, for a checkout without the command."""

from vmm.nested.command import nested

if __name__ == "__main__":
    nested(prog_name="python -m vmm.nested")
