"""Call a plug-in that tries everything, and tell what came of it: python3 hostile.py"""

from __future__ import annotations

import errno
from pathlib import Path
from typing import Any

import numpy as np

from vmm import CallError, ConfigError, Sandbox

SYSTEM = (  # what the system does not give: an error number is the answer
    *("read_passwords", "start_a_process", "run_a_shell", "open_a_socket", "kill_the_caller"),
    *("look_at_other_processes", "ask_for_everything"),
)


class Attacked:
    """A sandbox with the plug-in, and what the attacks would have to get at."""

    def __init__(self) -> None:
        plugin = Path(__file__).with_name("plugin.c")
        self.lib = Sandbox(plugin, timeout=20, memory="64M", disk="16M", cflags=["-w"])
        self.given = self.lib.array([7] * 4096, np.uint8)  # one call has it
        self.secret = self.lib.array([9] * 4096, np.uint8)  # no call is given it
        self.calls: dict[str, tuple[Any, ...]] = {
            **dict.fromkeys(SYSTEM, ()),
            "run_for_ever": (),
            "take_all_memory": (),
            "fill_the_disk": (),
            "print_for_ever": (),
            "remember": (self.given,),
            "look_again": (),
            "write_through_const": (self.given,),
            "write_beyond_the_end": (self.given, self.given.size),
            "write_before_the_start": (self.given,),
            "write_everywhere": (),
            "overflow_the_stack": (),
            "smash_the_stack": (),
            "halt_the_processor": (),
            "write_a_page_table_register": (),
            "jump_into_nothing": (),
            "leave": (),
            "print_escape_codes": (),
            "return_nonsense": (),
            "forge_answers": (),
            "send_it_away": (self.given,),
        }

    def attack(self, name: str) -> str:
        """Call a function; return what came of it, in a line."""
        function = self.lib[name].with_timeout(0.5 if name == "run_for_ever" else 20)
        try:
            result = function(*self.calls[name])
        except (CallError, ConfigError) as error:
            return f"{type(error).__name__}: {error}"
        if name in SYSTEM or name == "send_it_away":
            return "it got that" if result == 0 else f"refused: {errno.errorcode[result]}"
        return f"returned {result}"

    def unharmed(self) -> bool:
        """Whether everything is as it was, and the next call is served."""
        bytes_are = (self.given == 7).all() and (self.secret == 9).all()
        return bool(bytes_are) and self.lib.honest() == 42


def main() -> None:
    """Print what came of each attack."""
    attacked = Attacked()
    with attacked.lib:
        for name in attacked.calls:
            print(f"{name:28} {attacked.attack(name)}")
            print(f"{'':28} {'unharmed' if attacked.unharmed() else 'HARMED'}")
        print(attacked.lib.stats)


if __name__ == "__main__":
    main()
