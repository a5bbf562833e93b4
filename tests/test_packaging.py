"""Packaging: the tested set covers everything that an installation brings in."""

import tomllib
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parent.parent


def pins() -> dict[str, Requirement]:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    found = [Requirement(line) for line in lines if line and not line.startswith("#")]
    return {canonicalize_name(pin.name): pin for pin in found}


def project() -> dict:
    return tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def direct() -> list[Requirement]:
    extras = project()["optional-dependencies"].values()
    return [Requirement(line) for part in [project()["dependencies"], *extras] for line in part]


def test_everything_that_is_installed_is_pinned():
    todo, seen = direct(), set()
    while todo:
        wanted = todo.pop()
        key = (canonicalize_name(wanted.name), frozenset(wanted.extras))
        if key in seen or key[0] == "steerable":
            continue
        seen.add(key)
        if key[0] == "ray" and not find_spec("ray"):  # large, and not in what `make test` installs
            continue
        for line in metadata.distribution(wanted.name).requires or ():
            needed = Requirement(line)
            names = ("", *wanted.extras)
            if needed.marker is None or any(needed.marker.evaluate({"extra": name}) for name in names):
                todo.append(needed)
    assert {name for name, _ in seen} <= set(pins())


def test_pins_are_exact_and_allowed_by_the_project():
    for name, pin in pins().items():
        (specifier,) = pin.specifier
        assert specifier.operator == "==", name
    for wanted in direct():
        name = canonicalize_name(wanted.name)
        if name != "steerable":
            (pin,) = pins()[name].specifier
            assert wanted.specifier.contains(pin.version), name


@pytest.mark.parametrize("extra", ["train", "eval", "search", "ray", "app", "dev", "docs", "all"])
def test_extras_exist(extra: str):
    assert extra in project()["optional-dependencies"]


def test_version_is_the_same_everywhere():
    import steerable

    assert steerable.__version__ == project()["version"]
