"""What the pages say is true: their Python runs, their links lead somewhere, their tables follow the JSON."""

import importlib.util
import json
import re
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch
import yaml

ROOT = Path(__file__).parent.parent
PAGES = sorted(
    path
    for path in [*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")]
    if path.name not in ("reference.md", "results.md")
)
BLOCK = re.compile(r"(?P<before>[^\n]*)\n```python\n(?P<code>.*?)\n```", re.DOTALL)
NOT_RUN = "<!-- not run:"


def blocks(text: str) -> list[tuple[int, str, bool]]:
    """Line, code, and whether to run it, of each Python block; the line before may say that it is not run."""
    return [
        (text.count("\n", 0, found.start("code")), found["code"], not found["before"].startswith(NOT_RUN))
        for found in BLOCK.finditer(text)
    ]


def script(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(Path(name).stem, ROOT / name)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    "page", [page for page in PAGES if blocks(page.read_text())], ids=lambda page: page.name
)
def test_python_on_the_page_runs(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    namespace = {"__name__": page.stem}
    for line, code, run in blocks(page.read_text()):
        if run:
            # leading newlines make the line numbers of a traceback those of the page
            exec(compile("\n" * line + code, str(page), "exec"), namespace)


def test_blocks_are_found_and_exempted():
    text = f"a\n```python\nx = 1\n```\n{NOT_RUN} why -->\n```python\ny = 2\n```\n"
    assert [(code, run) for _, code, run in blocks(text)] == [("x = 1", True), ("y = 2", False)]
    assert blocks((ROOT / "README.md").read_text())


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_and_pictures_are_there(page: Path):
    text = re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL)
    found = re.findall(r"\]\(([^)\s]+)\)|(?:src|srcset)=\"([^\"]+)\"", text)
    local = [link for pair in found for link in pair if link and not link.startswith("http")]
    missing = [link for link in local if not (page.parent / link.partition("#")[0]).exists()]
    assert not missing
    anchors = [link.partition("#") for link in local if "#" in link]
    for name, _, anchor in anchors:
        target = page.parent / name if name else page
        titles = re.findall(r"^#+ (.*)$", target.read_text(), flags=re.MULTILINE)
        assert anchor in [re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles]


def test_make_targets_on_the_pages_exist():
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE))
    for page in PAGES:
        named = set(re.findall(r"(?:^|`)make ([a-z]+)", page.read_text(), flags=re.MULTILINE))
        assert named <= targets, page.name
    assert "make test" in (ROOT / ".ci" / "run").read_text()


def test_results_on_the_pages_follow_the_json():
    table = script("benchmarks/results_table.py")
    results = table.load(ROOT / "results")
    readme = (ROOT / "README.md").read_text()
    assert table.fill(readme, table.readme_table(results)) == readme, "run make docs"
    assert (ROOT / "docs" / "results.md").read_text() == table.page(results), "run make docs"


def test_results_are_written_and_shown(tmp_path: Path):
    record, table = script("benchmarks/record.py"), script("benchmarks/results_table.py")
    path = record.record(
        "speed",
        claim="Steered views are cheap",
        command="python benchmarks/speed.py",
        rows=[{"views": 10, "ratio": 3.14159}, {"views": 1000, "ratio": float("nan")}],
        figures={"ratio": record.figure([1.0, 2.0, 3.0], "x"), "one run": record.figure([0.123456])},
        seeds=(0, 1, 2),
        path=tmp_path / "speed.json",
    )
    (result,) = table.load(tmp_path)
    assert result == json.loads(path.read_text())
    header = {"name", "claim", "command", "commit", "date", "versions", "device", "threads", "seeds"}
    assert set(result) == header | {"rows", "figures"}
    assert result["versions"]["torch"] == torch.__version__.partition("+")[0]
    assert result["versions"]["python"] == ".".join(map(str, sys.version_info[:3]))
    assert result["rows"][1]["ratio"] is None
    table.EXCERPT = {
        "speed": ("Views are cheap", {"cost": "ratio", "absent": "no such figure"}),
        "absent": ("-", {}),
    }
    rows = table.readme_table([result]).splitlines()[2:]
    assert rows == ["| Views are cheap ([rows](docs/results.md#speed)) | cost: 2 ± 1 x |"]
    page = table.page([result])
    assert "| 10 | 3.14 |" in page
    assert "| 1,000 | n/a |" in page
    assert "seeds 0, 1, 2" in page


def test_table_goes_between_the_markers():
    table = script("benchmarks/results_table.py")
    page = f"before\n{table.START}\nold\n{table.END}\nafter"
    assert table.fill(page, "new") == f"before\n{table.START}\nnew\n{table.END}\nafter"
    with pytest.raises(SystemExit, match="marker"):
        table.fill("no markers", "new")


def test_citation_names_this_version():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert f'version = "{citation["version"]}"' in (ROOT / "pyproject.toml").read_text()
    assert f"## {citation['version']}" in (ROOT / "CHANGELOG.md").read_text()
