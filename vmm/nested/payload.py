"""What a run takes into its lane: the project, the files that the command names, and the command.

All of it lies in the lane where it lies here, so that the command's arguments mean the same there.
"""

from __future__ import annotations

import dataclasses
import errno
import os
import shlex
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

from vmm.errors import ConfigError
from vmm.nested.compiled import MTIME, Compiler

# Of a clone. Of an installed package it is only the package itself.
_PROJECT = (
    "vmm",
    "guests",
    "tests",
    "scripts",
    "docs",
    "pyproject.toml",
    "README.md",
    "CHANGELOG.md",
    "LICENSE",
    "Vagrantfile",
    ".hypothesis/constants",  # what it knows of the sources: it takes it long to find out
)
_UNWANTED = ("__pycache__", ".obj", ".ruff_cache", ".mypy_cache")
_OWN_IN_LANE = ("/dev/", "/proc/", "/sys/", "/lane/")  # what a lane has of its own

RUN = Path(__file__).with_name("run.sh")


def project_root() -> Path:
    """Return the directory that has the package `vmm` in it.

    A clone's root, or where it is installed.
    """
    return Path(__file__).resolve().parent.parent.parent


@dataclasses.dataclass(frozen=True, slots=True)
class Job:
    """What is to be run in a lane.

    command   its words; none for a shell
    cwd       where: an absolute path
    output    the directory whose contents come back, an absolute path; None if nothing does
    rows, columns  the terminal's size
    """

    lane: str
    command: tuple[str, ...]
    cwd: Path
    output: Path | None = None
    rows: int = 24
    columns: int = 80

    @property
    def shell(self) -> bool:
        """Whether somebody types the commands."""
        return not self.command


def project_files(root: Path) -> Iterator[Path]:
    """Give the project's files, in a fixed order."""
    names = _PROJECT if (root / "pyproject.toml").is_file() else ("vmm",)
    for name in names:
        top = root / name
        found = [top] if top.is_file() else sorted(top.rglob("*"))
        for path in found:
            if path.is_file() and not set(path.relative_to(root).parts) & set(_UNWANTED):
                yield path


def named_files(command: Sequence[str], cwd: Path) -> list[Path]:
    """Return the regular files that a command's words name.

    A word names a file by its path, or by what follows a "=" in it (`--file=PATH`). A bare first
    word is a program of the lane's.
    """
    words = [word for word in command[:1] if "/" in word] + list(command[1:])
    words += [value for word in words for _, equals, value in [word.partition("=")] if equals]
    paths = (Path(os.path.normpath(cwd / word)) for word in words if word and "\0" not in word)
    return list(dict.fromkeys(path for path in paths if _is_file(path)))


def _is_file(path: Path) -> bool:
    try:
        return path.is_file() and not str(path).startswith(_OWN_IN_LANE)
    except OSError:
        return False  # a word too long to be a name


def scripts(job: Job, root: Path, output_disk: str) -> dict[str, str]:
    """Return the texts that tell the lane's first process what to do, by their paths.

    See run.sh.
    """
    settings = {
        "lane": job.lane,
        "shell": "yes" if job.shell else "no",
        "rows": job.rows,
        "columns": job.columns,
        "output": job.output or "",
        "output_disk": f"/dev/{output_disk}",
    }
    lines = [
        f"export PYTHONPATH={shlex.quote(str(root))}",
        f"cd {shlex.quote(str(job.cwd))} || exit 126",
        f"exec {shlex.join(job.command or ('sh', '-i'))}",
    ]
    return {
        "lane/run.sh": RUN.read_text(),
        "lane/settings": "".join(f"{k}={shlex.quote(str(v))}\n" for k, v in settings.items()),
        "lane/command": "\n".join(lines) + "\n",
    }


def write(job: Job, compiler: Compiler, output_disk: str, tree: Path) -> None:
    """Lay a job's payload out below the directory `tree`, each file at its own path.

    Raises ConfigError for a file of the command's that cannot be read.
    """
    root = project_root()
    files = list(project_files(root))
    for directory in (job.cwd, root, *([job.output] if job.output else [])):
        _inside(tree, directory).mkdir(parents=True, exist_ok=True)
    for name, text in scripts(job, root, output_disk).items():
        _inside(tree, Path("/", name)).write_bytes(os.fsencode(text))
    for path, compiled in compiler.compiled(files):
        _copy(compiled, _inside(tree, path))
    for path in dict.fromkeys([*files, *_taken_along(job)]):
        try:
            _copy(path, _inside(tree, path))
        except OSError as error:
            raise _unreadable(path, error) from error


def _taken_along(job: Job) -> list[Path]:
    """Return the files that the command names, but for those in the output's directory.

    What is in there has to come from the lane, not from an earlier run.
    """
    output = job.output
    found = named_files(job.command, job.cwd)
    return [path for path in found if output is None or not path.is_relative_to(output)]


def _unreadable(path: Path, error: OSError) -> Exception:
    if error.errno in (errno.EACCES, errno.EPERM, errno.ENOENT, errno.EIO):
        what = f"{path}: cannot be taken into the lane: {error.strerror}"
        return ConfigError(f"{what}: give a file that you may read")
    return error


def _inside(tree: Path, path: Path) -> Path:
    """Return the place below `tree` of an absolute path, in a directory that is there."""
    place = tree / str(path).lstrip("/")
    place.parent.mkdir(parents=True, exist_ok=True)
    return place


def _copy(source: Path, target: Path) -> None:
    shutil.copyfile(source, target)
    target.chmod(source.stat().st_mode & 0o777 | 0o444)
    os.utime(target, (MTIME, MTIME))
