"""Index, in memory and in LanceDB: the two are held to the same rules, and to a plain cosine."""

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from steerable.errors import BundleError, ConfigError, DataError, ShapeError
from steerable.retrieval import Index, results_page
from steerable.transforms import Chain

pytest.importorskip("lancedb")

N, D = 60, 16
LABELS = ["rose" if i % 3 else "o'malley" for i in range(N)]
COLUMNS = {
    "id": [f"id{i}" for i in range(N)],
    "path": [f"a/{i}.jpg" for i in range(N)],
    "label": LABELS,
    "width": list(range(N)),
    "price": [i / 2 for i in range(N)],
}


@pytest.fixture(scope="module")
def e() -> torch.Tensor:
    return torch.randn(N, D, generator=torch.Generator().manual_seed(1))


@pytest.fixture(params=["memory", "lance"])
def uri(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return "memory" if request.param == "memory" else str(tmp_path / "db")


@pytest.fixture(scope="module")
def galleries(e: torch.Tensor, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Index]:
    made = {"memory": Index.open(), "lance": Index.open(tmp_path_factory.mktemp("g") / "db")}
    for index in made.values():
        # in parts and longer ones too: neither cosine nor ids may depend on that
        index.add(3 * e[:40], **{key: values[:40] for key, values in COLUMNS.items()})
        index.add(e[40:], **{key: values[40:] for key, values in COLUMNS.items()})
    return made


KIND = pytest.mark.parametrize("kind", ["memory", "lance"])


@KIND
def test_search_is_by_cosine(galleries, e, kind: str):
    query = torch.randn(D, generator=torch.Generator().manual_seed(2))
    cosines = F.normalize(e, dim=1) @ F.normalize(query, dim=0)
    best, place = cosines.sort(descending=True)
    hits = galleries[kind].search(query, N + 5)
    assert [hit["id"] for hit in hits] == [f"id{i}" for i in place.tolist()]
    assert [hit["score"] for hit in hits] == pytest.approx(best.tolist(), abs=1e-5)
    first = int(place[0])
    row = {"path": f"a/{first}.jpg", "label": LABELS[first], "width": first, "price": first / 2}
    assert row.items() <= hits[0].items()
    assert hits[0]["thumbnail"] is None
    assert "vector" not in hits[0]
    one = galleries[kind].search(100 * query[None], 1)
    assert one[0]["id"] == hits[0]["id"]


@KIND
@pytest.mark.parametrize(
    ("where", "meets"),
    [
        ("label = 'rose'", lambda i: i % 3),
        ("label = 'o''malley' and width >= 30", lambda i: i % 3 == 0 and i >= 30),
        ("price < 5 or path like 'a/5%'", lambda i: i < 10 or str(i)[0] == "5"),
        ("path LIKE 'A/%'", lambda i: False),
        ("thumbnail is null and id in ('id3', 'id4')", lambda i: i in (3, 4)),
    ],
)
def test_conditions_mean_the_same_in_both(galleries, e, kind: str, where: str, meets):
    hits = galleries[kind].search(e[0], N, where=where)
    assert {hit["id"] for hit in hits} == {f"id{i}" for i in range(N) if meets(i)}
    if hits:
        assert galleries[kind].search(e[0], 1, where=where) == hits[:1], (
            "filtered before the nearest are taken"
        )


@KIND
@pytest.mark.parametrize("where", ["lable = 'rose'", "label =", "1; drop table images", "width = 'x"])
def test_a_condition_that_cannot_be_read_is_one_line(galleries, e, kind: str, where: str):
    with pytest.raises(DataError, match=r"where is .* expected a condition on id, path, label") as caught:
        galleries[kind].search(e[0], where=where)
    assert "\n" not in str(caught.value)
    assert len(galleries[kind]) == N


def test_ids_are_added_once(uri: str, e):
    index = Index.open(uri)
    assert (len(index), index.ids(), index.facts) == (0, set(), {})
    assert index.add(e[:5], id=list("abcab"), label=list("12345")) == 3
    assert index.add(e[3:8], id=list("cdefg")) == 4
    assert index.add(e[:3], id=list("aag")) == 0
    assert index.add(e[:0]) == 0
    assert index.ids() == set("abcdefg")
    assert len(index) == 7
    assert index.search(e[0], 1)[0]["label"] == "1", "the first of a kind counts"


def test_without_ids_equal_embeddings_are_one_row(uri: str, e):
    index = Index.open(uri)
    assert index.add(torch.cat([e[:4], e[:2]])) == 4
    assert index.add(e[:5].double()) == 1


def test_columns_may_come_later(uri: str, e):
    index = Index.open(uri)
    index.add(e[:2], label=[None, "x"])
    index.add(e[2:4], mood=["sad", None], weight=[1, 2.5])
    hit = {hit["mood"]: hit for hit in index.search(e[2], 4)}["sad"]
    assert (hit["weight"], hit["label"]) == (1.0, None)
    assert sum(hit["mood"] is None for hit in index.search(e[2], 4)) == 3


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"label": ["a"]}, "1 values for 2 embeddings"),
        ({"width": ["wide", "x"]}, "column 'width' cannot be stored"),
        ({"mood": [1, "sad"]}, "column 'mood' cannot be stored"),
        ({"vector": [1, 2]}, "not called vector or score"),
    ],
)
def test_columns_that_do_not_fit_are_refused_whole(uri: str, e, columns, message: str):
    index = Index.open(uri)
    index.add(e[:1])
    with pytest.raises(DataError, match=message):
        index.add(e[1:3], **columns)
    assert len(index) == 1


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (torch.zeros(1, D), "zero or not finite"),
        (torch.full((1, D), torch.nan), "zero or not finite"),
        (torch.ones(1, D + 1), r"floating \(n, 16\)"),
        (torch.ones(1, D, dtype=torch.int64), "torch.int64"),
        (torch.ones(2, 2, D), r"shape \(2, 2, 16\)"),
    ],
)
def test_embeddings_that_do_not_fit_are_refused(galleries, bad: torch.Tensor, message: str):
    for index in galleries.values():
        with pytest.raises(ShapeError, match=message):
            index.add(bad)
        with pytest.raises(ShapeError, match=message):
            index.search(bad)


@KIND
def test_one_query_and_one_result_at_least(galleries, e, kind: str):
    with pytest.raises(ShapeError, match="one at a time"):
        galleries[kind].search(e[:2])
    with pytest.raises(ConfigError, match="k is 0"):
        galleries[kind].search(e[0], 0)


def test_an_index_that_is_not_there_is_not_made_by_looking(tmp_path: Path, e):
    index = Index.open(tmp_path / "none")
    with pytest.raises(DataError, match=r"no index at .*none"):
        index.search(e[0])
    assert index.compact() is None
    assert not (tmp_path / "none").exists()


class Stand:
    """As much of a SteerableEncoder as an index asks for."""

    def __init__(self, dim: int = D, fingerprint: str = "f" * 64, name: str = "timm/one"):
        self.dim, self.name, self.chain, self.encoder = dim, name, Chain.preset("photometric"), self
        self.fingerprint = lambda: fingerprint


def test_facts_stay_and_another_encoder_is_refused(tmp_path: Path, e):
    Index.open(tmp_path / "db", model=Stand(), notes={"model": "here", "size": 32}).add(e)
    index = Index.open(tmp_path / "db", model=Stand(), notes={"model": "elsewhere"})
    assert index.facts == {
        "dim": D,
        "encoder": "timm/one",
        "fingerprint": "f" * 64,
        "chain": Chain.preset("photometric").config(),
        "model": "here",
        "size": 32,
    }
    for other in (Stand(fingerprint="0" * 64), Stand(dim=D + 1, name="timm/two")):
        with pytest.raises(
            BundleError, match=r"holds embeddings of timm/one .* expected the same encoder"
        ) as caught:
            Index.open(tmp_path / "db", model=other)
        assert "\n" not in str(caught.value)


def test_approximate_search_says_what_it_loses(tmp_path: Path):
    generator = torch.Generator().manual_seed(3)
    centers = torch.randn(20, 32, generator=generator)
    e = centers[torch.randint(0, 20, (600,), generator=generator)]
    e = e + 0.5 * torch.randn(600, 32, generator=generator)
    index = Index.open(tmp_path / "db")
    index.add(e, label=["x"] * 600)
    assert index.compact(ann_from=601) is None
    recall = index.compact(ann_from=600)
    assert recall is not None
    assert 0.9 < recall <= 1
    index.add(e[:1] + 10, label=["new"])
    assert index.search(e[0] + 10, 1)[0]["label"] == "new", "rows after the index are searched too"
    assert len(index.search(e[0], 7, where="label = 'x'")) == 7


def test_the_page_escapes_and_needs_nothing_else():
    hits = [
        {"id": "1", "path": "<script>alert(1)</script>", "label": "a&b", "score": 0.5, "thumbnail": b"jpeg"},
        {"id": "2", "path": None, "label": None, "score": 0.25, "thumbnail": None},
    ]
    page = results_page(hits, title="<b>", about="hue +0.1", query=b"q")
    assert "<script>" not in page
    assert "<b>" not in page
    assert "a&amp;b" in page
    assert page.count("data:image/jpeg;base64,") == 2
    assert "http" not in page
