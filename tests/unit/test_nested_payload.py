"""What a run takes into its lane, and what comes back."""

from __future__ import annotations

import io
import os
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest
from click.testing import CliRunner

from vmm.command import nested as command_module
from vmm.command.nested import nested
from vmm.errors import ConfigError, HostError
from vmm.nested import image, payload
from vmm.nested.cache import Cache
from vmm.nested.compiled import MTIME, Compiler
from vmm.nested.errors import LaneError, LaneTimeout
from vmm.nested.packages import find_program
from vmm.nested.payload import Job, named_files, project_files, scripts
from vmm.nested.run import fetch

ROOT = Path(__file__).resolve().parent.parent.parent


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("a.bin", "with space", "-c"):
        (tmp_path / name).write_text(name)
    (tmp_path / "sub").mkdir()
    return tmp_path


def test_named_files_are_those_that_exist(folder: Path) -> None:
    words = ["pageferry", "demo", "./a.bin", "with space", "sub", "nothing", "sub/../a.bin", "-c"]
    found = named_files(words, folder)
    assert found == [folder / "a.bin", folder / "with space", folder / "-c"]


def test_a_file_may_be_an_options_value(folder: Path) -> None:
    words = ["x", f"--file={folder}/a.bin", "--empty=", "=", "a=b=c"]
    assert named_files(words, folder) == [folder / "a.bin"]


def test_a_program_is_the_lanes_unless_it_is_a_path(folder: Path) -> None:
    assert named_files(["a.bin"], folder) == []
    assert named_files(["./a.bin"], folder) == [folder / "a.bin"]


@pytest.mark.parametrize("word", ["", "x" * 5000, "nul\0byte", "/proc/version", "/dev/null"])
def test_words_that_name_no_file_of_the_users(folder: Path, word: str) -> None:
    assert named_files(["x", word], folder) == []


def test_the_project_is_what_a_clone_has(tmp_path: Path) -> None:
    wanted = ["vmm/a.py", "vmm/_guests/bin/x.elf", "tests/t.py", "pyproject.toml"]
    others = ["vmm/__pycache__/a.pyc", "vmm/_guests/.obj/o", ".git/config", "results/npt.xml"]
    for name in wanted + others:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    assert {str(path.relative_to(tmp_path)) for path in project_files(tmp_path)} == set(wanted)


def test_of_an_installation_only_the_package_is_taken(tmp_path: Path) -> None:
    for name in ("vmm/a.py", "click/b.py", "tests/c.py"):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).touch()
    assert list(project_files(tmp_path)) == [tmp_path / "vmm/a.py"]


@pytest.mark.parametrize(
    "words",
    [("echo", "a b", "$HOME", "'", '"', "\\", ";", "*", "é"), ("printf", "%s\n", "")],
)
def test_the_commands_words_survive_the_lanes_shell(tmp_path: Path, words: tuple[str, ...]) -> None:
    job = Job("npt", words, tmp_path)
    script = tmp_path / "command"
    script.write_text(scripts(job, tmp_path, "vdc")["lane/command"])
    here, there = (
        subprocess.run(line, capture_output=True, check=True).stdout
        for line in (words, ("sh", str(script)))
    )
    assert here == there


def test_the_settings_are_a_shells(tmp_path: Path) -> None:
    job = Job("ept", (), tmp_path, tmp_path / "it's here", 50, 120)
    text = scripts(job, tmp_path, "sdc")["lane/settings"]
    line = f"{text}\nprintf '%s|' $lane $shell $rows $columns \"$output\" $output_disk"
    got = subprocess.run(["sh", "-c", line], capture_output=True, text=True, check=True).stdout
    assert got == f"ept|yes|50|120|{tmp_path}/it's here|/dev/sdc|"


@pytest.mark.parametrize("name", ["init.sh", "run.sh"])
def test_the_lanes_scripts_are_a_shells(name: str) -> None:
    path = ROOT / "vmm" / "nested" / name
    subprocess.run(["sh", "-n", str(path)], check=True)


class FakePython:
    """Compiles a file to its source's name; what it cannot do is to be found in `broken`."""

    tree = pip = Path()

    def __init__(self) -> None:
        self.compiled: list[str] = []
        self.broken = False

    def version(self) -> str:
        return "3.11"

    def run(self, *arguments: str, text: str = "") -> str:
        if self.broken:
            raise LaneError("it broke")
        for line in text.splitlines():
            source, target = line.split("\0")
            self.compiled.append(Path(source).name)
            Path(target).write_text(source)
        return ""


@pytest.fixture
def python() -> FakePython:
    return FakePython()


@pytest.fixture
def compiler(tmp_path: Path, python: FakePython) -> Compiler:
    (tmp_path / "site" / "pytest-9.2.0.dist-info").mkdir(parents=True)
    cache = Cache(tmp_path / "cache", print)
    return Compiler(python, tmp_path / "site", cache)  # type: ignore[arg-type]


def test_a_module_is_compiled_once_and_again_when_it_changes(
    tmp_path: Path, python: FakePython, compiler: Compiler
) -> None:
    source = tmp_path / "a.py"
    for text in ("one", "one", "two", "one"):
        source.write_text(text)
        [(shown, kept)] = compiler.compiled([source, tmp_path / "data.txt"])
    assert python.compiled == ["a.py", "a.py"]
    assert shown == tmp_path / "__pycache__" / "a.cpython-311.pyc"
    assert kept.read_text() == str(source)


def test_tests_are_compiled_pytests_way_too(tmp_path: Path, compiler: Compiler) -> None:
    names = ("test_a.py", "conftest.py", "helper.py")
    for name in names:
        (tmp_path / name).touch()
    found = {shown.name for shown, _ in compiler.compiled([tmp_path / name for name in names])}
    assert found == {f"{Path(name).stem}.cpython-311.pyc" for name in names} | {
        f"{stem}.cpython-311-pytest-9.2.0.pyc" for stem in ("test_a", "conftest")
    }


class ThisPython(FakePython):
    """The very Python, and the pytest, that run these tests."""

    def version(self) -> str:
        return f"{sys.version_info[0]}.{sys.version_info[1]}"

    def run(self, *arguments: str, text: str = "") -> str:
        command = [sys.executable, *arguments]
        return subprocess.run(
            command, input=text, stdout=subprocess.PIPE, text=True, check=True
        ).stdout


def test_pytest_takes_a_test_that_has_been_compiled_its_way_as_it_is(tmp_path: Path) -> None:
    """A lane has to compile all tests otherwise, and spends more time on it than on most tests."""
    test, site = tmp_path / "test_a.py", Path(pytest.__file__).parents[1]
    test.write_text("def test():\n    one = 1\n    assert one == 2\n")
    compiler = Compiler(ThisPython(), site, Cache(tmp_path / "cache", print))  # type: ignore[arg-type]
    for shown, kept in compiler.compiled([test]):
        shown.parent.mkdir(exist_ok=True)
        shutil.copyfile(kept, shown)
    os.utime(test, (MTIME, MTIME))
    (ours,) = tmp_path.glob("__pycache__/*-pytest-*.pyc")
    before = ours.stat().st_ino
    env = {**os.environ, "PYTHONDONTWRITEBYTECODE": ""}
    ended = subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", test],
        cwd=tmp_path,
        env=env,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert "assert 1 == 2" in ended.stdout
    assert ours.stat().st_ino == before  # one of its own would have taken its place


def test_what_cannot_be_compiled_here_is_left_to_the_lane(
    tmp_path: Path, python: FakePython, compiler: Compiler
) -> None:
    (tmp_path / "test_a.py").touch()
    python.broken = True
    assert list(compiler.compiled([tmp_path / "test_a.py"])) == []


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, compiler: Compiler) -> object:
    """Write a payload of a small project, without a Python of the lanes'; give its tree."""
    project = tmp_path / "project"
    (project / "vmm").mkdir(parents=True)
    (project / "vmm" / "a.py").write_text("x = 1\n")
    monkeypatch.setattr(payload, "project_root", lambda: project)

    def make(job: Job) -> Path:
        tree = tmp_path / "tree"
        payload.write(job, compiler, "vdc", tree)
        return tree

    return make


def test_all_lies_where_it_lies_here(write, folder: Path) -> None:  # type: ignore[no-untyped-def]
    (folder / "a.bin").chmod(0o751)
    tree = write(Job("npt", ("x", "a.bin"), folder))
    inside = tree / str(folder).lstrip("/")
    assert (inside / "a.bin").read_text() == "a.bin"
    assert (inside / "a.bin").stat().st_mode & 0o777 == 0o755
    assert (inside / "project/vmm/a.py").stat().st_mtime == MTIME
    assert (inside / "project/vmm/__pycache__/a.cpython-311.pyc").is_file()
    assert {path.name for path in (tree / "lane").iterdir()} == {"run.sh", "settings", "command"}


def test_an_earlier_runs_output_stays_here(write, folder: Path) -> None:  # type: ignore[no-untyped-def]
    (folder / "out").mkdir()
    (folder / "out" / "old.xml").touch()
    tree = write(Job("npt", ("x", "--xml=out/old.xml"), folder, output=folder / "out"))
    out = tree / str(folder).lstrip("/") / "out"
    assert list(out.iterdir()) == []


def test_a_file_that_cannot_be_read_is_named(  # type: ignore[no-untyped-def]
    write, folder: Path, monkeypatch
) -> None:
    usual = shutil.copyfile

    def refuse(source: Path, target: Path) -> object:
        if source.name == "a.bin":
            raise PermissionError(13, "Permission denied")
        return usual(source, target)

    monkeypatch.setattr(shutil, "copyfile", refuse)
    with pytest.raises(ConfigError, match=r"a\.bin: cannot be taken into the lane: Permission"):
        write(Job("npt", ("x", "a.bin"), folder))


@pytest.mark.skipif(find_program("mkfs.ext4") is None, reason="no mkfs.ext4 (package e2fsprogs)")
@pytest.mark.parametrize(("files", "size"), [(0, 0), (1, 50_000_000), (3000, 100), (300, 5000)])
def test_a_disk_is_large_enough_for_what_is_put_on_it(
    tmp_path: Path, files: int, size: int
) -> None:
    tree = tmp_path / "tree"
    for number in range(files):
        path = tree / str(number % 30) / str(number)
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("wb") as file:
            file.write(bytes([number % 255 + 1]) * size)
    tree.mkdir(exist_ok=True)
    image.make(tree, tmp_path / "image")
    assert (tmp_path / "image").stat().st_size % image.DISK_UNIT == 0


# ---- the way out ----


def archive(path: Path, members: dict[str, bytes]) -> Path:
    with tarfile.open(path, "w") as tar:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
        link = tarfile.TarInfo("link")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(link)
    with path.open("ab") as file:
        file.truncate(path.stat().st_size + (1 << 20))  # as the disk is longer than what is on it
    return path


def test_files_come_back(tmp_path: Path) -> None:
    source = archive(tmp_path / "tar", {"./npt.xml": b"<x/>", "./deep/er/file": bytes(100_000)})
    fetch(source, tmp_path / "results")
    found = {p.relative_to(tmp_path / "results") for p in tmp_path.glob("results/**/*")}
    assert found == {Path("npt.xml"), Path("deep"), Path("deep/er"), Path("deep/er/file")}
    assert (tmp_path / "results/npt.xml").read_bytes() == b"<x/>"


def test_no_file_comes_back_to_another_place(tmp_path: Path) -> None:
    with pytest.raises(LaneError, match="outside its directory"):
        fetch(archive(tmp_path / "tar", {"../evil": b"x"}), tmp_path / "results")
    (tmp_path / "results").mkdir()
    (tmp_path / "results/elsewhere").symlink_to("/tmp")
    with pytest.raises(LaneError, match="outside its directory"):
        fetch(archive(tmp_path / "tar", {"elsewhere/evil": b"x"}), tmp_path / "results")


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "results").touch()
    with pytest.raises(ConfigError, match="cannot be written"):
        fetch(archive(tmp_path / "tar", {"file": b"x"}), tmp_path / "results")


def test_an_empty_disk_is_no_archive(tmp_path: Path) -> None:
    (tmp_path / "tar").write_bytes(b"\x01" * 4096)
    with pytest.raises(LaneError, match="cannot be read back"):
        fetch(tmp_path / "tar", tmp_path)


# ---- the command ----


def invoke(*words: str) -> tuple[int, str]:
    result = CliRunner().invoke(nested, words)
    return result.exit_code, result.output


@pytest.mark.parametrize(
    "words",
    [
        (),
        ("--lane", "npt"),
        ("--lane", "tpt", "x"),
        ("--lane", "npt", "--shell", "x"),
        ("--lane", "npt", "--limit", "0", "x"),
        ("--lane", "npt", "--unknown", "x"),
    ],
)
def test_a_wrong_command_line_is_2(words: tuple[str, ...]) -> None:
    assert invoke(*words)[0] == 2


def test_a_shell_needs_a_terminal() -> None:
    code, output = invoke("--lane", "npt", "--shell")
    assert (code, "a shell needs a terminal" in output) == (1, True)


@pytest.mark.parametrize(
    ("words", "command"),
    [
        (("x", "--lane", "y"), ("x", "--lane", "y")),
        (("--", "x", "--help"), ("x", "--help")),
        (("x", "--", "y"), ("x", "--", "y")),
    ],
)
def test_the_command_has_its_own_options(  # type: ignore[no-untyped-def]
    monkeypatch, tmp_path: Path, words: tuple[str, ...], command: tuple[str, ...]
) -> None:
    jobs: list[Job] = []
    monkeypatch.setenv("PAGEFERRY_CACHE", str(tmp_path))
    monkeypatch.setattr(command_module, "run", lambda job, *_: jobs.append(job) or 41)
    assert invoke("--lane", "ept", *words) == (41, "")
    assert [job.command for job in jobs] == [command]


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (LaneTimeout("too long"), 124, "pageferry: too long\n"),
        (LaneError("it died"), 1, "pageferry: it died\n"),
        (HostError("no x", "get one"), 69, "pageferry: no x: get one\n"),
        (KeyboardInterrupt(), 130, "pageferry: interrupted\n"),
    ],
)
def test_an_error_is_a_line_and_a_code(  # type: ignore[no-untyped-def]
    monkeypatch, tmp_path: Path, error: BaseException, code: int, line: str
) -> None:
    def fail(*_: object) -> int:
        raise error

    monkeypatch.setenv("PAGEFERRY_CACHE", str(tmp_path))
    monkeypatch.setattr(command_module, "run", fail)
    assert invoke("--lane", "npt", "x") == (code, line)
