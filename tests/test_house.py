"""The house rules that a machine can read: who imports whom, sizes, names, what the library must not do."""

import ast
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

import steerable

ROOT = Path(__file__).parents[1]
SRC = ROOT / "src" / "steerable"
FILES = sorted(SRC.rglob("*.py"))
FLOORS = (
    {"errors", "theta", "metrics"},
    {"transforms", "maps"},
    {"losses", "fitting", "tta", "ood", "retrieval", "encoders", "testing"},
    {"data", "model"},
    {"training", "auditing", "posthoc", "embedding", "export", "progress"},
    {"evaluate"},
    {"app", "demo"},
    {"cli"},
)
FLOOR_OF = {name: floor for floor, names in enumerate(FLOORS) for name in names}
PARTS = {"bundle": "model", "__main__": "cli"}  # modules that are one with another
FREE = {"errors"}  # what everybody may import, its own floor too
MAX_FILE, MAX_FUNCTION = 300, 60
LONG: set[str] = set()  # "path::function" or "path": allowed to be longer, each with its reason beside it


def unit(path: Path) -> str:
    """The module of the house that a file belongs to: ``maps`` for maps/basis.py."""
    first = path.relative_to(SRC).parts[0].removesuffix(".py")
    return PARTS.get(first, first)


def imported(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Line and module of every import of the package's own modules, in functions and TYPE_CHECKING too."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            module = node.module or ""
            names = [f"{module}.{alias.name}" for alias in node.names] if module == "steerable" else [module]
            if node.level:
                names = ["steerable.RELATIVE"]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        else:
            continue
        for name in names:
            parts = name.split(".")
            if parts[0] == "steerable":
                module = parts[1] if len(parts) > 1 else "__init__"
                yield node.lineno, PARTS.get(module, module)


def violations(source: str, own: str) -> list[str]:
    """What a file of module ``own`` imports against the table."""
    found = []
    for line, other in imported(ast.parse(source)):
        if other == own or other in FREE or other == "__version__" or (own == "cli" and other == "__init__"):
            continue
        if other not in FLOOR_OF:
            found.append(f"line {line}: {other} is on no floor")
        elif FLOOR_OF[other] >= FLOOR_OF[own]:
            found.append(
                f"line {line}: {own} (floor {FLOOR_OF[own]}) imports {other} (floor {FLOOR_OF[other]})"
            )
    return found


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(SRC)))
def test_modules_import_from_lower_floors_only(path: Path):
    if path == SRC / "__init__.py":
        return  # the public names, from everywhere, when they are used
    assert unit(path) in FLOOR_OF, f"{unit(path)} is on no floor: add it to FLOORS and to docs/concepts.md"
    assert violations(path.read_text(), unit(path)) == []


@pytest.mark.parametrize(
    ("source", "own"),
    [
        ("from steerable.data import load_images", "maps"),
        ("from steerable import transforms", "maps"),
        ("import steerable.encoders", "retrieval"),
        ("def f():\n    from steerable.cli import main", "demo"),
        ("from steerable.bundle import read_bundle", "encoders"),
        ("from .base import SteeringMap", "maps"),
        ("from steerable.helpers import x", "cli"),
    ],
)
def test_the_floors_test_can_fail(source: str, own: str):
    assert violations(source, own)


def test_bundle_and_model_do_not_import_each_other_in_a_ring():
    """They are one module to the floors, so the ring is looked for here."""
    for path in (SRC / "bundle").glob("*.py"):
        assert "steerable.model" not in path.read_text(), path.name


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(SRC)))
def test_files_and_functions_are_short(path: Path):
    name = str(path.relative_to(SRC))
    text = path.read_text()
    assert name in LONG or len(text.splitlines()) <= MAX_FILE
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            doc = ast.get_docstring(node, clean=False) or ""  # a docstring may be as long as it needs to be
            length = (node.end_lineno or node.lineno) - node.lineno + 1 - (doc.count("\n") + 1 if doc else 0)
            assert f"{name}::{node.name}" in LONG or length <= MAX_FUNCTION, f"{node.name} has {length} lines"


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(SRC)))
def test_banned_forms(path: Path):
    tree = ast.parse(path.read_text())
    assert ast.get_docstring(tree), "a module says in its docstring what it is for"
    assert not {"utils", "core", "common", "helpers"} & set(path.relative_to(SRC).with_suffix("").parts)
    for node in ast.walk(tree):
        assert not isinstance(node, ast.Assert), f"line {node.lineno}: assert is not for users' input"
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "print":
            assert unit(path) == "cli", f"line {node.lineno}: only the command line prints"
        if (
            isinstance(node, ast.Call)
            and isinstance(node.func, ast.Attribute)
            and node.func.attr == "squeeze"
        ):
            assert node.args or node.keywords, (
                f"line {node.lineno}: squeeze() would lose the batch axis at size one"
            )
        if (
            isinstance(node, ast.Attribute)
            and isinstance(node.value, ast.Name)
            and node.value.id == "logging"
        ):
            assert unit(path) == "cli" or node.attr not in ("basicConfig", "captureWarnings"), (
                f"line {node.lineno}"
            )


def test_public_names_equal_all():
    assert sorted(steerable.__all__) == sorted(set(steerable.__all__))
    assert dir(steerable) == sorted(steerable.__all__)
    homes = {*steerable._HOME_OF, *steerable._MODULES, "__version__"}
    assert homes == set(steerable.__all__)
    stubs = [node for node in ast.parse((SRC / "__init__.py").read_text()).body if isinstance(node, ast.If)]
    typed = {
        alias.asname or alias.name
        for node in ast.walk(stubs[0])
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    assert typed | {"__version__"} == set(steerable.__all__), "type checkers see what users see"


@pytest.mark.parametrize("name", steerable.__all__)
def test_public_names_import(name: str):
    assert getattr(steerable, name) is not None


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'trane'"):
        steerable.trane  # noqa: B018


def test_public_names_are_in_the_reference():
    text = (ROOT / "docs" / "reference.md").read_text()
    assert [name for name in steerable.__all__ if name != "__version__" and f"`{name}`" not in text] == []


@pytest.mark.parametrize(
    "name",
    [
        "app",
        "transforms",
        "maps",
        "data",
        "training",
        "auditing",
        "fitting",
        "testing",
        "bundle",
        "encoders",
        "tta",
        "ood",
        "retrieval",
        "evaluate",
        "posthoc",
    ],
)
def test_all_of_subpackages_exist(name: str):
    module = __import__(f"steerable.{name}", fromlist=["x"])
    assert list(module.__all__) == sorted(
        module.__all__, key=lambda n: (not n.isupper(), not n[0].isupper(), n)
    )
    assert [entry for entry in module.__all__ if not hasattr(module, entry)] == []


def test_the_version_is_the_projects():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["version"] == steerable.__version__


def test_import_brings_no_torch():
    code = "import sys, steerable; steerable.TrainConfig; sys.exit('torch' in sys.modules)"
    env = {"PYTHONPATH": str(SRC.parent)}
    assert subprocess.run([sys.executable, "-c", code], env=env, check=False).returncode == 0
