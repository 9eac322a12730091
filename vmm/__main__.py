"""The `pageferry` command, also as `python -m vmm`."""

from __future__ import annotations

import sys


def main() -> None:
    """Run the command; what happens while it is being loaded ends in one line as well."""
    try:
        from vmm.command.cli import main as command
    except KeyboardInterrupt:
        _end("interrupted", 130)
    except (MemoryError, OSError) as error:
        _end(f"cannot be loaded: {error or 'out of memory'}: raise the limits (ulimit)", 1)
    command(prog_name="pageferry")


def _end(line: str, code: int) -> None:
    print(f"pageferry: {line}", file=sys.stderr)
    sys.exit(code)


if __name__ == "__main__":
    main()
