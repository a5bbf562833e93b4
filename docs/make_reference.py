"""Writes docs/reference.md: every public name with its signature and docstring.

    python docs/make_reference.py [--check]

``--check`` writes nothing and fails where the page differs from the code.
"""

import argparse
import ast
import dataclasses
import importlib
import inspect
import itertools
import re
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import steerable

TARGET = Path(__file__).parent / "reference.md"
MODULES = (
    "steerable",
    "steerable.transforms",
    "steerable.maps",
    "steerable.fitting",
    "steerable.tta",
    "steerable.ood",
    "steerable.retrieval",
    "steerable.encoders",
    "steerable.model",
    "steerable.data",
    "steerable.posthoc",
    "steerable.training",
    "steerable.auditing",
    "steerable.evaluate",
    "steerable.embedding",
    "steerable.export",
    "steerable.app",
    "steerable.losses",
    "steerable.metrics",
    "steerable.testing",
    "steerable.theta",
    "steerable.errors",
)
HEAD = """# Reference

Written by `make docs` from the docstrings; do not edit. The commands describe themselves:
`steerable COMMAND --help`.
"""


def page() -> str:
    """The whole page."""
    modules = [importlib.import_module(name) for name in MODULES]
    links = " · ".join(f"[{name}](#{name.replace('.', '')})" for name in MODULES)
    return "\n".join([HEAD, links, *(part for module in modules for part in section(module))]) + "\n"


def section(module: ModuleType) -> Iterator[str]:
    """A module's docstring, then its public names; names that live elsewhere are listed, not repeated."""
    yield f"\n## {module.__name__}\n\n```text\n{inspect.getdoc(module)}\n```"
    here, elsewhere = [], []
    for name in public(module):
        value = getattr(module, name)
        own = getattr(value, "__module__", module.__name__)
        if inspect.ismodule(value) or (module is steerable and own != "steerable"):
            elsewhere.append(f"`{name}` ({value.__name__ if inspect.ismodule(value) else own})")
        elif callable(value):
            here.append((name, value))
    if elsewhere:
        yield "\nNames to import from here, and where they are described: " + ", ".join(elsewhere) + "."
    for name, value in here:
        yield entry(name, value, level=3)
        if inspect.isclass(value):
            yield from (entry(f"{name}.{key}", method, level=4) for key, method in methods(value))


def public(module: ModuleType) -> list[str]:
    """``__all__``, or what the module defines itself without a leading underscore."""
    if hasattr(module, "__all__"):
        return list(module.__all__)
    own = [
        name for name, value in vars(module).items() if getattr(value, "__module__", "") == module.__name__
    ]
    return [name for name in own if not name.startswith("_")]


def methods(cls: type) -> Iterator[tuple[str, Any]]:
    """Methods and properties that the class defines itself and documents."""
    for name, value in vars(cls).items():
        target = value.fget if isinstance(value, property) else getattr(value, "__func__", value)
        if not name.startswith("_") and inspect.isfunction(target) and target.__doc__:
            yield name, value


def entry(name: str, value: Any, *, level: int) -> str:
    """One name: heading, signature, docstring as written."""
    target = value.fget if isinstance(value, property) else getattr(value, "__func__", value)
    called = "" if isinstance(value, property) or enumerated(target) else signature(target)
    doc = inspect.getdoc(target) if "__doc__" in vars(target) or not inspect.isclass(target) else None
    doc = "\n\n".join(filter(None, [doc, field_docs(target)]))
    text = f"\n{'#' * level} {name}\n\n```python\n{name}{called}\n```"
    return text + (f"\n\n```text\n{doc}\n```" if doc else "")


def field_docs(target: Any) -> str:
    """What the strings below a dataclass's fields say, one line each."""
    if not (inspect.isclass(target) and dataclasses.is_dataclass(target)):
        return ""
    body = source(target).body
    lines = [
        f"{field.target.id}: {text.value.value}"
        for field, text in itertools.pairwise(body)
        if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name)
        if isinstance(text, ast.Expr) and isinstance(text.value, ast.Constant)
    ]
    return "\n".join(lines)


def enumerated(target: Any) -> bool:
    return inspect.isclass(target) and hasattr(target, "__members__")


def signature(target: Any) -> str:
    """The signature as the source has it, without self."""
    if not inspect.isclass(target):
        node = source(target)
        args, returns = [arg for arg in arguments(node.args) if arg not in ("self", "cls")], node.returns
        return f"({', '.join(args)})" + (f" -> {plain(returns)}" if returns else "")
    if dataclasses.is_dataclass(target):
        fields = [node for node in source(target).body if isinstance(node, ast.AnnAssign)]
        return f"({', '.join(map(ast.unparse, fields))})"
    init = next((vars(cls)["__init__"] for cls in target.__mro__ if "__init__" in vars(cls)), None)
    return signature(init).removesuffix(" -> None") if inspect.isfunction(init) else ""


def source(target: Any) -> Any:
    """The syntax tree of a function or class."""
    return ast.parse(textwrap.dedent(inspect.getsource(target))).body[0]


def arguments(args: ast.arguments) -> list[str]:
    return [arg for arg in re.split(r", (?![^\[({]*[\])}])", ast.unparse(args)) if arg]


def plain(annotation: ast.expr) -> str:
    """An annotation without the quotes of a forward reference."""
    return str(annotation.value) if isinstance(annotation, ast.Constant) else ast.unparse(annotation)


def main() -> None:
    parser = argparse.ArgumentParser(description="Write docs/reference.md from the docstrings.")
    parser.add_argument("--check", action="store_true", help="only fail where the page is out of date")
    text = page()
    if TARGET.exists() and TARGET.read_text() == text:
        return
    if parser.parse_args().check:
        sys.exit("out of date: reference.md; run make docs")
    TARGET.write_text(text)
    print(f"wrote {TARGET.name}")


if __name__ == "__main__":
    main()
