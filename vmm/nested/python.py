"""The lanes' Python.

Debian's, unpacked. It also runs here, with its own libraries, to compile for itself.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

from vmm.nested import apt
from vmm.nested.errors import LaneError

# What python3 depends on but the lanes' root can do without.
_LEFT_OUT = (
    "dpkg",
    "gcc-",
    "libacl",
    "libcom-err",
    "libdb5",
    "libgssapi",
    "libk5crypto",
    "libkeyutils",
    "libkrb5",
    "libmd0",
    "libnsl",
    "libpcre2",
    "libselinux",
    "libtirpc",
    "media-types",
    "netbase",
    "python3-minimal",
    "readline-common",
    "tar",
    "tzdata",
)
_PRUNED = (
    "usr/share",
    "usr/sbin",
    "sbin",
    "usr/lib/x86_64-linux-gnu/gconv",
    "usr/lib/x86_64-linux-gnu/audit",
    "usr/lib/python3*/ensurepip",
    "usr/lib/python3*/idlelib",
    "usr/lib/python3*/lib2to3",
    "usr/lib/python3*/pydoc_data",
    "usr/lib/python3*/test",
    "usr/lib/python3*/tkinter",
)
_PIP_WHEEL = "python3-pip-whl"
TREE, PIP = "tree", "pip.whl"


def build(into: Path) -> None:
    """Put a Python with its libraries, compiled, below TREE, and a pip of its time into PIP."""
    tree, scratch = into / TREE, into / "scratch"
    tree.mkdir()
    scratch.mkdir()
    merge_usr(tree)
    names = [name for name in apt.closure("python3") if not name.startswith(_LEFT_OUT)]
    apt.unpack([*names, _PIP_WHEEL], tree, scratch)
    scratch.rmdir()
    wheels = sorted(tree.glob("usr/share/python-wheels/pip-*.whl"))
    if wheels:
        shutil.copyfile(wheels[-1], into / PIP)
    for pattern in _PRUNED:
        for path in tree.glob(pattern):
            shutil.rmtree(path)
    (tree / "sbin").mkdir(exist_ok=True)
    libraries = f"usr/lib/python{Python(into).version()}"
    Python(into).run("-m", "compileall", "-q", *COMPILE, "-s", str(tree), str(tree / libraries))


def merge_usr(tree: Path) -> None:
    """Make the directories of /usr that today's Debian also has below /."""
    for name in ("bin", "lib", "lib64"):
        (tree / "usr" / name).mkdir(parents=True)
        (tree / name).symlink_to(f"usr/{name}")


# Compiled files that are believed without a look at their source.
COMPILE = ("--invalidation-mode", "unchecked-hash")


class Python:
    """The Python of a built stage."""

    def __init__(self, stage: Path) -> None:
        self.tree = stage / TREE
        self.pip = stage / PIP

    def version(self) -> str:
        """Return its version, such as "3.11". Raises LaneError if there is none."""
        for path in self.tree.glob("usr/bin/python3.*"):
            if path.name.removeprefix("python3.").isdigit():
                return path.name.removeprefix("python")
        raise LaneError("Debian's python3 has no interpreter in it")

    def run(self, *arguments: str, text: str = "") -> str:
        """Run it on this host; return what it printed. Raises LaneError if it fails."""
        libraries = [self.tree / "usr/lib/x86_64-linux-gnu", self.tree / "lib/x86_64-linux-gnu"]
        command = [
            str(self.tree / "lib64/ld-linux-x86-64.so.2"),
            "--library-path",
            ":".join(map(str, libraries)),
            str(self.tree / f"usr/bin/python{self.version()}"),
            *arguments,
        ]
        kept = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
        env = {**kept, "PYTHONHOME": str(self.tree / "usr"), "PYTHONDONTWRITEBYTECODE": "1"}
        result = subprocess.run(command, env=env, input=text, capture_output=True, text=True)
        if result.returncode:
            said = apt.complaint(result.stderr or result.stdout)
            raise LaneError(f"the lanes' Python failed on this host: {said}")
        return result.stdout
