"""An index whose process is killed, and tables that are damaged or not ours."""

import random
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from steerable.errors import DataError, MissingExtra, SteerableError
from steerable.retrieval import Index

lancedb = pytest.importorskip("lancedb")

ADDER = """
import sys
sys.path.insert(0, sys.argv[1])
from test_retrieval_faults import add_all
add_all(sys.argv[2])
"""


def add_all(folder: str) -> None:
    """96 rows in 24 additions, each told when it is done."""
    e = torch.randn(96, 8, generator=torch.Generator().manual_seed(0))
    index = Index.open(folder)
    for start in range(0, 96, 4):
        index.add(e[start : start + 4], id=[str(i) for i in range(start, start + 4)])
        sys.stdout.write(f"{start}\n")
        sys.stdout.flush()


@pytest.fixture
def table(tmp_path: Path) -> Path:
    """A folder with an index of 16 rows in two commits."""
    e = torch.randn(16, 8, generator=torch.Generator().manual_seed(0))
    index = Index.open(tmp_path / "db")
    index.add(e[:8])
    index.add(e[8:])
    return tmp_path / "db"


def use(folder: Path) -> list[str]:
    index = Index.open(folder)
    index.ids()
    return [hit["id"] for hit in index.search(torch.ones(8), 16)]


def test_killed_while_adding_no_row_is_lost_or_doubled(tmp_path: Path):
    command = [sys.executable, "-c", ADDER, str(Path(__file__).parent), str(tmp_path / "db")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        for line in child.stdout:
            if line == "40\n":
                child.kill()  # at work on the next ones
    assert child.returncode == -signal.SIGKILL
    before = Index.open(tmp_path / "db").ids()
    assert {str(i) for i in range(44)} <= before
    assert len(before) < 96
    assert len(before) % 4 == 0, "each addition whole or not at all"
    add_all(str(tmp_path / "db"))
    index = Index.open(tmp_path / "db")
    e = torch.randn(96, 8, generator=torch.Generator().manual_seed(0))
    assert sorted(hit["id"] for hit in index.search(e[0], 200)) == sorted(map(str, range(96)))
    assert all(index.search(e[i], 1)[0]["id"] == str(i) for i in (0, 43, 44, 47, 95))


def test_a_begun_table_without_a_version_is_begun_again(tmp_path: Path):
    (tmp_path / "db" / "images.lance" / "_versions").mkdir(parents=True)
    index = Index.open(tmp_path / "db")
    assert index.add(torch.ones(1, 8)) == 1
    assert len(use(tmp_path / "db")) == 1


@pytest.mark.parametrize("how", ["empty", "half", "garbage"])
@pytest.mark.parametrize("part", ["data/*.lance", "_versions/*.manifest"])
def test_a_damaged_table_is_one_line(table: Path, part: str, how: str):
    for path in (table / "images.lance").glob(part):
        content = path.read_bytes()
        noise = random.Random(0).randbytes(len(content))
        path.write_bytes({"empty": b"", "half": content[: len(content) // 2], "garbage": noise}[how])
    with pytest.raises(DataError, match=r"is damaged .* run steerable index again") as caught:
        use(table)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("part", ["data", "_versions"])
def test_missing_parts_are_one_line(table: Path, part: str):
    shutil.rmtree(table / "images.lance" / part)
    with pytest.raises(DataError, match="is damaged"):
        use(table)


def test_any_flipped_bit_gives_rows_or_one_line(table: Path, tmp_path: Path):
    rng = random.Random(1)
    refused = 0
    for path in sorted(path for path in table.rglob("*") if path.is_file()):
        shutil.rmtree(tmp_path / "copy", ignore_errors=True)
        shutil.copytree(table, tmp_path / "copy")
        content = bytearray(path.read_bytes())
        content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
        (tmp_path / "copy" / path.relative_to(table)).write_bytes(content)
        try:
            assert len(use(tmp_path / "copy")) in (8, 16)
        except SteerableError:
            refused += 1
    assert refused, "damage that shows is said"


def test_a_table_of_others_is_refused(tmp_path: Path):
    lancedb.connect(tmp_path / "db").create_table("images", data=[{"id": "a", "vector": [1.0, 2.0]}])
    with pytest.raises(DataError, match="was not written by steerable"):
        Index.open(tmp_path / "db")
    (tmp_path / "file").write_text("x")
    with pytest.raises(DataError, match="is a file"):
        Index.open(tmp_path / "file")


def test_without_lancedb_the_line_that_installs_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "lancedb", None)
    with pytest.raises(MissingExtra, match=r"pip install 'steerable\[search\]'"):
        Index.open(tmp_path / "db").add(torch.ones(1, 8))
    assert Index.open("memory").add(torch.ones(1, 8)) == 1
