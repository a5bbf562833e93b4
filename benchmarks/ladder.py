"""How far a frozen ImageNet encoder can be steered, rung by rung: maps, layers, adapters; error, ranks, price, probe.

    python benchmarks/ladder.py --name mobilenetv2_100 --data ../shared/data --cache CACHE

One encoder pass per view gives all layers; the rungs on the final embedding read its columns. With --cache a second
run only fits and measures. Writes ladder_NAME.json (all rungs) and maps_NAME.json (map families by parameter) after
each rung; --keep goes on there.
"""

import argparse
import json
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from frozen import SHOWN, VIEWS, Columns, Frozen, add_arguments
from record import RESULTS, figure, record
from torch import Tensor, nn

from steerable.encoders import Neck
from steerable.fitting import fit_embeddings
from steerable.maps import Features
from steerable.model import features_for
from steerable.posthoc.adapter import adapted
from steerable.posthoc.pairs import Pair

FAMILIES = ("identity", "shift", "basis", "low_rank", "rotation", "exponential")
GRADIENT, GRADIENT_IMAGES = (
    ("rotation", "exponential"),
    1366,
)  # these keep their pairs, and look at 8,192 of them
Steer = Callable[[Tensor, Tensor], Tensor]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_arguments(parser)
    parser.add_argument("--rungs", default="", help="only those whose name contains this")
    parser.add_argument("--keep", action="store_true", help="go on with what the last run's JSON holds")
    parser.add_argument("--memory", type=float, default=6.0, help="GiB that one fit may take")
    args = parser.parse_args()
    frozen = Frozen(args)
    frozen.encode()
    Ladder(frozen).measure()


class Ladder:
    """The rungs, fitted to one table of embeddings, and their figures."""

    def __init__(self, frozen: Frozen):
        self.frozen, self.args = frozen, frozen.args
        self.rows: list[dict[str, Any]] = []
        self.alone: list[dict[str, Any]] = []
        self.probes: dict[str, float] = {}
        if self.args.keep:
            tables = (json.loads(self.path(name).read_text())["rows"] for name in ("ladder", "maps"))
            self.rows, self.alone = tables
        self.known = {row["rung"] for row in self.rows}

    def measure(self) -> None:
        for rung in self.rungs():
            if self.args.rungs not in rung.name or rung.name in self.known:
                continue
            if self.frozen.elapsed > self.args.seconds:
                self.frozen.tell(f"time is up before {rung.name}")
                break
            with self.told(rung.name):
                self.one(rung)
            self.write()

    @contextmanager
    def told(self, name: str) -> Iterator[None]:
        """What is measured so far, and the other rungs, are worth more than a clean end."""
        try:
            yield
        except Exception:
            self.frozen.tell(f"{name} failed:\n{traceback.format_exc()}")

    def one(self, rung: "Rung") -> None:
        began = time.perf_counter()
        steer, width = rung.fit()
        seconds = time.perf_counter() - began + rung.neck_seconds
        if rung.space not in self.probes:
            self.probes[rung.space] = self.frozen.probe(rung.embed)
        for kind in self.frozen.tests:
            facts = {"rung": rung.name, "images": kind, "pairs": rung.pairs, "width": width}
            row = facts | {"fit_seconds": round(seconds, 1), "probe": self.probes[rung.space]}
            for drawn in ("joint", "crop", "color"):
                figures = self.frozen.figures(kind, drawn, rung.embed, steer)
                row |= {f"{drawn}_{key}": figures[key] for key in SHOWN}
            self.rows.append(row)
            short = {
                key: round(v, 3) for key, v in row.items() if isinstance(v, float) and "hit_at_5" not in key
            }
            self.frozen.tell(f"{rung.name}, {kind}: {short}")
            for param in self.frozen.chain.params if rung.by_parameter else ():
                figures = self.frozen.figures(kind, param.name, rung.embed, steer)
                self.alone.append(facts | {"param": param.name} | figures)

    def rungs(self) -> "Iterator[Rung]":
        """From the cheapest to the dearest; a neck is made when its rung is reached."""
        final = Rung("maps: identity", "final", Columns(self.frozen.spaces["final"].columns), self)
        yield from final.families()
        yield final.but("maps: basis, features auto", map="basis", features="auto")
        yield final.but("maps: basis, cosine", map="basis", refine="cosine")
        yield final.but("maps: basis, contrastive", map="basis", refine="contrastive")
        yield from self.depth()
        yield from self.adapters("final", "discriminant", "linear")
        yield from self.adapters("layers", "discriminant", "linear")
        for kind in ("discriminant", "linear", "hidden"):
            yield from self.adapters("layers", kind, "linear+window")
        standard = self.standard("layers")
        layers = Rung("layers: basis", "layers", nn.Sequential(*standard), self, map="basis")
        yield layers

    def depth(self) -> "Iterator[Rung]":
        """One layer alone, standardized, from the first to the last."""
        layers = self.frozen.spaces["layers"]
        for name, part in layers.layers.items():
            columns = Columns(layers.columns[part])
            whole = {name: slice(0, part.stop - part.start)}
            embed = nn.Sequential(columns, Neck.standardizing(columns(self.frozen.plain), whole))
            yield Rung(f"depth: {name}", f"depth {name}", embed, self, map="basis")

    def adapters(self, space: str, kind: str, features: str) -> "Iterator[Rung]":
        name = f"adapter on {space}: {kind}{', window' if 'window' in features else ''}"
        with self.told(name):
            rung = self.adapter(name, space, kind, features)
            whole = space == "layers" and features == "linear"
            yield from rung.families() if whole else (rung,)
            if whole:
                yield rung.but(f"{name}, features auto", features="auto")
            yield rung.but(f"{name}, contrastive", refine="contrastive")

    def standard(self, space: str) -> tuple[Columns, Neck]:
        chosen = self.frozen.spaces[space]
        columns = Columns(chosen.columns)
        return columns, Neck.standardizing(columns(self.frozen.plain), chosen.layers)

    def adapter(self, name: str, space: str, kind: str, features: str) -> "Rung":
        """Behind the standardized columns, made with a basis map of these features, which the rung then reads too."""
        began = time.perf_counter()
        columns, standard = self.standard(space)
        plain = standard(columns(self.frozen.plain))
        rung = Rung(name, name, nn.Sequential(columns, standard), self, map="basis", features=features)
        settings = {"map": "basis", "projection": "auto", "features": rung.phi()}
        neck = adapted(
            standard, rung.source(), plain, self.frozen.spaces[space].layers["final"], kind, views=self.args.views,
            settings=settings, memory=10 * self.args.memory,
        )  # fmt: skip
        return replace(rung, embed=nn.Sequential(columns, neck), neck_seconds=time.perf_counter() - began)

    def write(self) -> None:
        if not self.rows or (self.args.rungs and self.args.out is None):
            return
        args, rows = self.args, self.rows
        given = f"--photos {args.photos} --small {args.small} --views {args.views} --measured {args.measured}"
        command = f"python benchmarks/ladder.py --name {args.name} {given}"
        kinds = {key: [row for row in rows if row["images"] == key] for key in self.frozen.tests}
        best = {
            f"best {key}, {drawn}, {kind}": figure([max(row[f"{drawn}_{key}"] for row in kinds[kind])])
            for key in ("mrr", "hit_at_1") for drawn in ("crop", "color") for kind in kinds
        }  # fmt: skip
        ranks = f"ranks among {VIEWS} views of one image; {self.args.measured} held-out images of each kind"
        claims = {
            "ladder": f"how far frozen {args.name} can be steered, rung by rung; {self.frozen.price()}; {ranks}; "
            f"chain {self.frozen.ranges()}",
            "maps": f"frozen {args.name}: map families by parameter, each alone, over its range; {ranks}",
        }
        for name, table, figures in (("ladder", rows, best), ("maps", self.alone, {})):
            record(
                self.path(name).stem,
                claim=claims[name],
                command=command,
                rows=table,
                figures=figures,
                seeds=[0],
                path=self.path(name),
            )

    def path(self, name: str) -> Path:
        return (self.args.out or RESULTS) / f"{name}_{self.args.name}.json"


@dataclass
class Rung:
    """One way to steer: an embedding made of the raw one, and how a map is fitted to it."""

    name: str
    space: str
    embed: nn.Module
    ladder: Ladder
    map: str = "identity"
    features: str = "linear"
    refine: str | None = None
    rank: int | None = None
    by_parameter: bool = False
    neck_seconds: float = 0.0

    def but(self, name: str, **changes: Any) -> "Rung":
        return replace(self, name=name, **{"by_parameter": False} | changes)

    def families(self) -> "Iterator[Rung]":
        """Each family on this embedding, and by parameter."""
        place = self.name.removesuffix(": identity")
        for name in FAMILIES:
            rank = {"low_rank": 64, "exponential": 16}.get(name)
            yield self.but(f"{place}: {name}", map=name, rank=rank, by_parameter=True)

    @property
    def pairs(self) -> int:
        return self.images * self.ladder.args.views

    @property
    def images(self) -> int:
        n = len(self.ladder.frozen.plain)
        return min(n, GRADIENT_IMAGES) if self.map in GRADIENT else n

    def source(self) -> Iterator[Pair]:
        return self.ladder.frozen.pairs(self.embed, self.images)

    def fit(self) -> tuple[Steer, int]:
        steering = fit_embeddings(
            self.source(), map=self.map, rank=self.rank, refine=self.refine, memory=self.ladder.args.memory,
            projection="auto" if self.map in ("basis", "low_rank") else None, strict=False,
            features=self.phi(),
        ).requires_grad_(False)  # fmt: skip
        return steering, steering.dim

    def phi(self) -> Features:
        return features_for(self.ladder.frozen.chain, self.features)


if __name__ == "__main__":
    main()
