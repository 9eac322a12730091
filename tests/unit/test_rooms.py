"""The architecture, as the imports have it: rooms in layers, no circles, and the public names."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import vmm

PACKAGE = Path(vmm.__file__).parent

# From the ground up; a room may import from its own row, and from the rows above it in this list.
LAYERS = (
    {"errors", "sizes", "guest.abi", "guest.text", "kvm"},
    {"memory"},
    {"guest"},
    {"ferry"},
    {"engine"},
    {"linux"},
    {"endpoint", "host"},
    {"monitor"},
    {"sandbox"},
    {"observe", "bench", "nested", "dask"},
    {"command"},
    {"__init__", "__main__"},
)


def modules() -> dict[str, Path]:
    """Return every module by its name below `vmm`."""
    found = {}
    for path in PACKAGE.rglob("*.py"):
        name = ".".join(path.relative_to(PACKAGE).with_suffix("").parts)
        if not name.startswith("_guests"):
            found[name if name == "__init__" else name.removesuffix(".__init__")] = path
    return found


def imported(path: Path, known: dict[str, Path], *, typing: bool = True) -> Iterator[str]:
    """Yield what a module imports of `vmm`, whenever it does; without `typing`, not what only a
    type checker does.
    """
    tree = ast.parse(path.read_text())
    if not typing:
        tree.body = [node for node in tree.body if not _is_for_types(node)]
    for node in ast.walk(tree):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
        for name in names:
            below = name.removeprefix("vmm.")
            if name.startswith("vmm.") and below in known:
                yield below


def _is_for_types(node: ast.stmt) -> bool:
    return isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"


def layer(module: str) -> int:
    for index, rooms in enumerate(LAYERS):
        if module in rooms:
            return index
    return next(i for i, rooms in enumerate(LAYERS) if module.split(".")[0] in rooms)


def test_no_module_lies_loose() -> None:
    loose = {name for name, path in modules().items() if path.parent == PACKAGE}
    assert loose == {"__init__", "__main__", "errors", "monitor", "sizes"}


def test_imports_go_down_only() -> None:
    known = modules()
    upward = {
        (name, other)
        for name, path in known.items()
        for other in imported(path, known)
        if layer(other) > layer(name) and name != "__init__"
    }
    assert upward == set()


def test_no_modules_import_each_other_in_a_circle() -> None:
    known = modules()
    # A package's own file imports what is in it, and is imported with it: that is no circle. Nor is
    # the name that a part has for its whole, for a type checker.
    left = {
        name: {
            other
            for other in imported(path, known, typing=False)
            if known[other].name != "__init__.py"
        }
        for name, path in known.items()
        if path.name != "__init__.py"
    }
    while free := {name for name, others in left.items() if not others & left.keys()}:
        left = {name: others for name, others in left.items() if name not in free}
    assert left == {}


def test_the_public_names_are_the_same_for_the_interpreter_and_for_type_checkers() -> None:
    assert all(getattr(vmm, name) is not None for name in vmm.__all__)
    tree = ast.parse((PACKAGE / "__init__.py").read_text())
    typed = {
        alias.name
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("vmm.")
        for alias in node.names
    }
    assert typed | {"__version__"} == set(vmm.__all__) == {"__version__", *HELD}


# What users import. To take one away is to break their programs.
HELD = (
    *(
        "AccessError",
        "Buffer",
        "BusyError",
        "ClosedError",
        "ConfigError",
        "GuestError",
        "GuestFault",
    ),
    *("GuestImageError", "HandleError", "HostEndpoint", "HostError", "Machine", "Monitor"),
    *("PageferryError", "Place", "Received", "ResourceError", "State"),
    *("Hold", "LinuxMachine", "Operation", "Status"),
    *("CallCancelled", "CallCrash", "CallError", "CallExit", "CallTimeout", "Pool", "Sandbox"),
)


def test_importing_the_package_loads_none_of_its_rooms() -> None:
    code = "import sys, vmm; print([m for m in sys.modules if m.startswith('vmm.')])"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"
