"""What a run takes into its lane: the project, the files that the command names, and the command.

All of it lies in the lane where it lies here, so that the command's arguments mean the same there.
"""

from __future__ import annotations

import dataclasses
import io
import os
import shlex
import tarfile
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


def write(job: Job, compiler: Compiler, output_disk: str, target: Path) -> None:
    """Write the payload's tar for a job.

    Raises ConfigError for a file of the command's that cannot be read.
    """
    root = project_root()
    files = list(project_files(root))
    with tarfile.open(target, "w", format=tarfile.GNU_FORMAT) as tar:
        for directory in (job.cwd, root, *([job.output] if job.output else [])):
            tar.addfile(_owned(tarfile.TarInfo(_inside(directory)), 0o755, tarfile.DIRTYPE))
        for name, text in scripts(job, root, output_disk).items():
            _add_bytes(tar, name, text.encode())
        for path in files:
            _add_file(tar, path)
        for path, compiled in compiler.compiled(files):
            _add_bytes(tar, _inside(path), compiled.read_bytes())
        taken = set(files)
        for path in named_files(job.command, job.cwd):
            # What is in the output's directory comes from the lane, not from an earlier run.
            if path not in taken and not (job.output and path.is_relative_to(job.output)):
                _add_file(tar, path)


def _inside(path: Path) -> str:
    return str(path).lstrip("/") or "."


def _owned(info: tarfile.TarInfo, mode: int, kind: bytes = tarfile.REGTYPE) -> tarfile.TarInfo:
    info.mode, info.type, info.mtime = mode, kind, MTIME
    return info


def _add_bytes(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    info = _owned(tarfile.TarInfo(name), 0o644)
    info.size = len(data)
    tar.addfile(info, io.BytesIO(data))


def _add_file(tar: tarfile.TarFile, path: Path) -> None:
    try:
        with path.open("rb") as file:
            status = os.fstat(file.fileno())
            info = _owned(tarfile.TarInfo(_inside(path)), status.st_mode & 0o777)
            info.size = status.st_size
            tar.addfile(info, file)
    except OSError as error:
        raise ConfigError(
            f"{path}: cannot be taken into the lane: {error.strerror or 'it became shorter'}: "
            "give a file that you may read"
        ) from error
