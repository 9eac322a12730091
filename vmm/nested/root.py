"""The lanes' root: Python, what the project and its tests import, and busybox for all the rest."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from importlib.util import find_spec
from pathlib import Path

from vmm.errors import HostError
from vmm.nested import apt, image
from vmm.nested.packages import BUSYBOX
from vmm.nested.python import COMPILE, Python

# pyproject.toml's dependencies and those of its extra "test", but for what builds (a test
# compares).
REQUIREMENTS = (
    "click>=8.1",
    "hypothesis>=6.100",
    "pyelftools>=0.32",
    "pytest>=8.2",
    "pytest-timeout>=2.3.1",
    "rich>=13",
)
IMAGE, SITE = "root.img", "site"

_SITE = "usr/lib/python3/dist-packages"
_DIRECTORIES = (
    "dev",
    "proc",
    "sys",
    "tmp",
    "run",
    "root",
    "etc",
    "lane",
    "var/tmp",
    "usr/local/bin",
)
_FILES = {
    "etc/passwd": "root:x:0:0:root:/root:/bin/sh\n",
    "etc/group": "root:x:0:\n",
    "etc/hosts": "127.0.0.1 localhost\n",
    "usr/bin/pageferry": '#!/bin/sh\nexec python3 -c "from vmm.command.cli import main; '
    'main(prog_name=\'pageferry\')" "$@"\n',
}


def build(python: Python, into: Path) -> None:
    """Put the root's file system into IMAGE, and what pip has installed in it into SITE."""
    tree = into / "tree"
    shutil.copytree(python.tree, tree, symlinks=True)
    site = into / SITE
    install(python, site)
    python.run("-m", "compileall", "-q", *COMPILE, "-s", str(site), "-p", f"/{_SITE}", str(site))
    _rewrite_plugins(python, site)
    shutil.copytree(site, tree / _SITE, dirs_exist_ok=True)
    _furnish(tree, python.version())
    image.make(tree, into / IMAGE)
    shutil.rmtree(tree)


def install(python: Python, site: Path) -> None:
    """Install REQUIREMENTS for the lanes' Python into a directory.

    Raises HostError if they cannot be had.
    """
    here = f"{sys.version_info[0]}.{sys.version_info[1]}"
    foreign = ["--only-binary=:all:", "--python-version", python.version()]
    command = [
        sys.executable,
        *(["-m", "pip"] if find_spec("pip") else [str(python.pip / "pip")]),
        *("install", "--quiet", "--no-input", "--no-compile", "--disable-pip-version-check"),
        *("--target", str(site)),
        *(foreign if here != python.version() else []),
        *REQUIREMENTS,
    ]
    kept = {
        k: v for k, v in os.environ.items() if k not in ("PIP_USER", "PIP_TARGET", "PIP_PREFIX")
    }
    result = subprocess.run(command, env=kept, capture_output=True, text=True)
    if result.returncode:
        raise HostError(
            f"the project's dependencies could not be installed ({apt.complaint(result.stderr)})",
            "a first build needs the network, or a pip that knows where else to find packages",
        )
    shutil.rmtree(site / "bin", ignore_errors=True)


_TEST = "import hypothesis.strategies\n\n\ndef test():\n    assert True\n"


def _rewrite_plugins(python: Python, site: Path) -> None:
    """Let pytest compile its plugins its own way, which it would do at every start of a lane."""
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "test_it.py").write_text(_TEST)
        start = f"import sys; sys.path.insert(0, {str(site)!r}); sys.dont_write_bytecode = False\n"
        run = f"import pytest; sys.exit(pytest.main(['-q', {folder!r}, '--rootdir', {folder!r}]))"
        python.run("-c", start + run)


def _furnish(tree: Path, version: str) -> None:
    """Make the directories, files and links that a running system has."""
    for name in _DIRECTORIES:
        (tree / name).mkdir(parents=True, exist_ok=True)
    for name, text in _FILES.items():
        (tree / name).write_text(text)
    (tree / "tmp").chmod(0o1777)
    (tree / "var/tmp").chmod(0o1777)
    (tree / "usr/bin/pageferry").chmod(0o755)
    for name in ("python", "python3"):
        (tree / "usr/bin" / name).unlink(missing_ok=True)
        (tree / "usr/bin" / name).symlink_to(f"python{version}")
    shutil.copy(BUSYBOX, tree / "usr/bin/busybox")
    for name in apt.run([BUSYBOX, "--list"]).split():
        link = tree / "usr/bin" / name
        if not link.exists():
            link.symlink_to("busybox")
