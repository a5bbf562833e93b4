"""How far a frozen ImageNet encoder can be steered, rung by rung: maps, layers, adapters; error, ranks, price, probe.

    python benchmarks/ladder.py --name mobilenetv2_100 --data ../shared/data --cache CACHE

One encoder pass per view gives all layers; the rungs on the final embedding read its columns. Fitted on photographs at
full size (imagenet1k-sample) and on training images of the transfer sets (128 pixels, enlarged); measured on held-out
images of both, apart. Passes are cached: a second run only fits and measures. Writes results/ladder_NAME.json.
"""

import argparse
import itertools
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from record import figure, record
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from steerable.auditing.measure import motion_figures, rank_figures
from steerable.auditing.plan import drawn_alone, only, spaced
from steerable.data import ImageSet, load_images
from steerable.data.cache import write_whole
from steerable.data.images import random_order
from steerable.encoders import Encoder, Neck, load_encoder
from steerable.errors import FitError
from steerable.evaluate import C_GRID, probe
from steerable.fitting import LARGEST, fit_embeddings
from steerable.maps import SteeringMap
from steerable.model import features_for
from steerable.posthoc.adapter import adapted
from steerable.posthoc.pairs import Pairs
from steerable.transforms import Chain

SETS = ("flowers", "textures", "grocery", "aerial", "trash", "caltech101")
PROBED = ("flowers", "textures", "aerial")
CROP = ("zoom", "aspect", "shift_x", "shift_y")
COLOR = ("brightness", "contrast", "saturation", "hue")
VIEWS = 50  # pool in which ranks are counted
GRID = C_GRID[12:22:3]  # 0.001 to 0.18: the optimum of standardized embeddings lies inside
SHOWN = ("relative_error", "r2", "invariance_level", "mrr", "hit_at_1", "hit_at_5")
GRADIENT, GRADIENT_BATCHES = ("rotation", "exponential"), 32
MEMORY = 6.0  # GiB


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--name", default="mobilenetv2_100", help="folder under DATA/weights")
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--cache", type=Path, required=True)
    parser.add_argument("--photos", type=int, default=800, help="full-size photographs to fit on")
    parser.add_argument("--small", type=int, default=500, help="images of each transfer set to fit on")
    parser.add_argument("--views", type=int, default=6)
    parser.add_argument("--measured", type=int, default=32, help="held-out images of each kind")
    parser.add_argument("--rungs", default="", help="only those whose name contains this")
    parser.add_argument("--encode-only", action="store_true")
    return parser.parse_args()


def main() -> None:
    args = arguments()
    place = args.data.resolve() / "weights" / args.name
    encoder = load_encoder(f"timm/local-dir:{place}", layers="all").eval()
    chain = Chain.preset("simclr")
    bench = Bench(args, encoder, chain)
    bench.encode_all()
    if not args.encode_only:
        bench.measure()


class Bench:
    """Images, cached raw embeddings, and the rungs fitted to them."""

    def __init__(self, args: argparse.Namespace, encoder: Encoder, chain: Chain):
        self.args, self.encoder, self.chain = args, encoder, chain
        self.final = encoder.layers["final"]
        side = encoder.image_size
        photos = load_images(str(args.data / "imagenet1k-sample"), size=side)
        order = random_order(len(photos), 0)
        self.held = {"photographs": photos.subset(order[len(order) - args.measured :]).images}
        fitted = [photos.subset(order[: args.photos]).images]
        small = []
        self.probed: dict[str, tuple[ImageSet, ImageSet]] = {}
        for name in SETS:
            train, test = (
                load_images(str(args.data / "transfer" / name), split=s, size=side) for s in ("train", "test")
            )
            fitted.append(train.images[random_order(len(train), 0)[: args.small]])
            small.append(test.images[random_order(len(test), 0)[: -(-args.measured // len(SETS))]])
            if name in PROBED:
                self.probed[name] = (train, test)
        self.held["transfer sets"] = torch.cat(small)[: args.measured]
        images = torch.cat(fitted)
        images = images[random_order(len(images), 1)]  # directions are chosen on the first pairs
        labels = torch.zeros(len(images), dtype=torch.int64)
        names = tuple(map(str, range(len(images))))
        self.images = ImageSet(images, labels, (), names)
        self.pairs = Pairs(
            encoder, self.images, chain, views=args.views, seed=0, folder=args.cache, progress=told()
        )
        self.encoding_seconds = 0.0

    def encode_all(self) -> None:
        began = time.perf_counter()
        for _ in self.pairs:
            pass
        self.encoding_seconds = time.perf_counter() - began
        new = self.pairs.encoded
        print(f"pairs: {new} passes in {self.encoding_seconds:.0f} s", flush=True)
        self.tests = {kind: self._test(kind) for kind in self.held}
        self.labeled = {
            name: tuple(
                (self._raw(f"probe-{name}-{i}", part.images), part.labels) for i, part in enumerate(parts)
            )
            for name, parts in self.probed.items()
        }

    def _test(self, kind: str) -> dict[str, tuple[Tensor, Tensor]]:
        """Raw views (n, v, r) with thetas (n, v, p), by what is drawn; "plain" has one view."""
        images, params = self.held[kind], self.chain.params
        p, n = len(params), len(self.held[kind])
        generator = torch.Generator().manual_seed(7)
        theta = self.chain.sample(n * VIEWS, generator=generator).view(n, VIEWS, p)
        drawn = {"joint": theta, "plain": torch.zeros(n, 1, p)}
        for group, names in (("crop", CROP), ("color", COLOR)):
            drawn[group] = theta * torch.tensor([param.name in names for param in params])
        for place, param in enumerate(params):
            if param.is_switch:
                drawn[param.name] = only(drawn_alone(param, n, generator), place, p)[:, None]
            else:
                drawn[param.name] = only(spaced(param, VIEWS), place, p).expand(n, -1, -1)
        rows = {name: n if name in ("joint", "plain", "crop", "color") else max(2, n // 4) for name in drawn}
        return {
            name: (
                self._raw(f"{kind}-{name}-{rows[name]}", images[: rows[name]], part[: rows[name]]),
                part[: rows[name]],
            )
            for name, part in drawn.items()
        }

    def _raw(self, tag: str, images: Tensor, theta: Tensor | None = None) -> Tensor:
        """Raw embeddings (n, r), or (n, v, r) with thetas; kept in the cache by name."""
        path = self.args.cache / "ladder" / self.args.name / f"{tag.replace(' ', '-')}.safetensors"
        if path.exists():
            return load_file(path)["raw"]
        parts = []
        for i in range(0, len(images), 16):
            batch = images[i : i + 16].float() / 255
            if theta is None:
                parts.append(self.encoder.raw(batch))
                continue
            own = theta[i : i + 16]
            views = [self.encoder.raw(self.chain.apply(batch, own[:, v])) for v in range(own.shape[1])]
            parts.append(torch.stack(views, dim=1))
        raw = torch.cat(parts)
        write_whole(path, lambda partial: save_file({"raw": raw.contiguous()}, partial))
        print(tag, tuple(raw.shape), flush=True)
        return raw

    def measure(self) -> None:
        """Fit every rung, measure it on what was held out, and write both results."""
        rows: list[dict[str, Any]] = []
        alone: list[dict[str, Any]] = []
        probes: dict[str, float] = {}
        for rung in self.rungs():
            if self.args.rungs not in rung.name:
                continue
            began = time.perf_counter()
            try:
                steering = rung.fit()
            except FitError as error:
                print(f"{rung.name}: {error}", flush=True)
                continue
            seconds = time.perf_counter() - began + rung.neck_seconds
            if rung.space not in probes:
                probes[rung.space] = self.probe(rung.embed)
            for kind in self.tests:
                facts = {"rung": rung.name, "images": kind, "pairs": rung.pairs, "width": steering.dim}
                row = facts | {"fit_seconds": round(seconds, 1), "probe": probes[rung.space]}
                for drawn in ("joint", "crop", "color"):
                    figures = self.figures(kind, drawn, rung.embed, steering)
                    row |= {f"{drawn}_{key}": figures[key] for key in SHOWN}
                rows.append(row)
                print({key: round(v, 3) if isinstance(v, float) else v for key, v in row.items()}, flush=True)
                if rung.by_parameter:
                    alone += [
                        facts | {"param": param.name} | self.figures(kind, param.name, rung.embed, steering)
                        for param in self.chain.params
                    ]
            self.write(rows, alone)  # after each rung, so that what is measured is never lost

    def rungs(self) -> "Iterator[Rung]":
        """From the cheapest to the dearest; a neck is made when its rung is reached."""
        final = Rung("identity", "final", Columns(self.final), self, by_parameter=True)
        yield final
        for name in ("shift", "basis", "low_rank"):
            extra = {"rank": 64} if name == "low_rank" else {}
            yield final.but(f"maps: {name}", map=name, by_parameter=True, **extra)
        yield final.but("maps: basis, features auto", map="basis", features="auto")
        yield final.but("maps: basis, cosine", map="basis", refine="cosine")
        yield final.but("maps: basis, contrastive", map="basis", refine="contrastive")
        self.pairs.neck = None
        raw = self.pairs.plain()
        yield from self._adapted(
            "final",
            Columns(self.final),
            raw,
            {"final": slice(0, self.final.stop - self.final.start)},
            ("discriminant",),
        )
        standard = Neck.standardizing(raw, self.encoder.layers)
        layers = Rung("layers: basis", "layers", standard, self, map="basis")
        yield layers
        yield layers.but("layers: basis, contrastive", refine="contrastive")
        yield from self._adapted(
            "layers", None, raw, self.encoder.layers, ("discriminant", "linear", "hidden")
        )

    def _adapted(
        self,
        space: str,
        columns: "Columns | None",
        raw: Tensor,
        layers: dict[str, slice],
        kinds: tuple[str, ...],
    ) -> "Iterator[Rung]":
        read = raw if columns is None else columns(raw)
        standard = Neck.standardizing(read, layers)
        before = standard if columns is None else nn.Sequential(columns, standard)
        for kind in kinds:
            began = time.perf_counter()
            self.pairs.neck = before
            settings = {"map": "basis", "projection": "auto"} | self.coordinates("linear")
            neck = adapted(
                standard, self.pairs, standard(read), layers["final"], kind, views=self.pairs.views,
                settings=settings, memory=MEMORY,
            )  # fmt: skip
            embed = neck if columns is None else nn.Sequential(columns, neck)
            rung = Rung(f"adapter on {space}: {kind}", f"{space} {kind}", embed, self, map="basis")
            rung.neck_seconds = time.perf_counter() - began
            yield replace(rung, by_parameter=kind == "discriminant")
            yield rung.but(f"{rung.name}, features auto", features="auto")
            yield rung.but(f"{rung.name}, contrastive", refine="contrastive")
            if kind == "discriminant" and space == "layers":
                yield rung.but(
                    f"{rung.name}, features auto, contrastive", features="auto", refine="contrastive"
                )
                for views in (1, 2, 4):
                    yield rung.but(f"{rung.name}, {views} views", views=views)

    def coordinates(self, features: str) -> dict[str, Any]:
        expansion = features_for(self.chain, LARGEST if features == "auto" else features)
        if features != "auto":
            return {"features": expansion}
        return {"features": "auto", "scales": expansion.scale_values, "periods": expansion.period_values}

    @torch.no_grad()
    def figures(
        self, kind: str, drawn: str, embed: nn.Module, steering: SteeringMap
    ) -> dict[str, float | None]:
        raw, theta = self.tests[kind][drawn]
        views, source = embed(raw), embed(self.tests[kind]["plain"][0][: len(raw), 0])
        steered = steering(source[:, None], theta)
        pairs = source[:, None].expand_as(views).flatten(0, 1), views.flatten(0, 1), steered.flatten(0, 1)
        ranked = rank_figures(steered, views) if theta.shape[1] > 1 else {}
        return motion_figures(*pairs) | ranked

    @torch.no_grad()
    def probe(self, embed: nn.Module) -> float:
        """Accuracy of a linear probe, mean over the probed sets."""
        found = []
        for (train, labels), (test, wanted) in self.labeled.values():
            found.append(probe(embed(train), labels, embed(test), wanted, grid=GRID).accuracy)
        return sum(found) / len(found)

    def write(self, rows: list[dict[str, Any]], alone: list[dict[str, Any]]) -> None:
        if self.args.rungs or not rows:
            return
        name = self.args.name
        command = f"python benchmarks/ladder.py --name {name} --cache CACHE --views {self.args.views}"
        passes = f"{self.pairs.passes:,} encoder passes for all rungs; ranks among {VIEWS} views of one image"
        best = {
            f"{figure}, {drawn}, {kind}": max(row[f"{drawn}_{figure}"] for row in rows if row["images"] == kind)
            for figure in ("mrr", "hit_at_1") for drawn in ("crop", "color") for kind in self.tests
        }  # fmt: skip
        figures = {f"best {key}": figure([value]) for key, value in best.items()}
        claim = f"how far frozen {name} can be steered, rung by rung; {passes}; chain {self.ranges()}"
        record(f"ladder_{name}", claim=claim, command=command, rows=rows, figures=figures, seeds=[0])
        claim = f"frozen {name}: map families by parameter, each alone, over its range"
        record(f"maps_{name}", claim=claim, command=command, rows=alone, figures={}, seeds=[0])

    def ranges(self) -> str:
        return ", ".join(f"{param.name} {param.low:g} to {param.high:g}" for param in self.chain.params)


class Columns(nn.Module):
    """The columns of one layer."""

    def __init__(self, part: slice):
        super().__init__()
        self.part = part

    def forward(self, raw: Tensor) -> Tensor:
        return raw[..., self.part]


@dataclass
class Rung:
    """One way to steer: an embedding made of the raw one, and how a map is fitted to it."""

    name: str
    space: str
    embed: nn.Module
    bench: Bench
    map: str = "identity"
    features: str = "linear"
    refine: str | None = None
    rank: int | None = None
    views: int | None = None
    by_parameter: bool = False
    neck_seconds: float = 0.0

    def but(self, name: str, **changes: Any) -> "Rung":
        return replace(self, name=name, **{"by_parameter": False} | changes)

    @property
    def pairs(self) -> int:
        return len(self.bench.images) * (self.views or self.bench.args.views)

    def fit(self) -> SteeringMap:
        pairs = self.bench.pairs
        pairs.neck, pairs.views = self.embed, self.views or self.bench.args.views
        few = self.map in GRADIENT  # these keep their pairs, and look at 8,192 of them
        source = itertools.islice(iter(pairs), GRADIENT_BATCHES) if few else pairs
        projection = "auto" if self.map in ("basis", "low_rank") else None
        try:
            return fit_embeddings(
                source, map=self.map, rank=self.rank, refine=self.refine, projection=projection, memory=MEMORY,
                strict=False, **self.bench.coordinates(self.features),
            ).requires_grad_(False)  # fmt: skip
        finally:
            pairs.views = self.bench.args.views


def told() -> Callable[[int, int, str], None]:
    began = time.perf_counter()

    def progress(done: int, total: int, what: str) -> None:
        print(f"{done}/{total} {what} {time.perf_counter() - began:.0f} s", flush=True)

    return progress


if __name__ == "__main__":
    main()
