"""Steered test-time augmentation on a frozen ImageNet encoder: MobileNetV2 with its own 1,000-way classifier.

    python benchmarks/tta_imagenet.py --data ../shared/data --cache CACHE

Maps of the simclr chain are fitted on photographs that are measured nowhere and on training images of the transfer
sets, all at 128 pixels; one reads and moves the final embedding, one reads all stages too. The other photographs,
clean and after two corruptions at severity 3, are classified plain, by steered views, by views chosen on one half
and measured on the other (both ways round), by the folded head, and by the same views truly encoded. The photographs
are almost surely training pictures of the encoder: only paired differences mean anything. One pass gives all layers;
passes are cached, and a second run costs none. Writes results/tta_imagenet.json.
"""

import argparse
import hashlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from record import figure, record
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from steerable.data import ImageSet, load_images
from steerable.data.cache import write_whole
from steerable.data.images import random_order
from steerable.encoders import Encoder, Neck, classifier_of, load_encoder
from steerable.evaluate import corrupt
from steerable.evaluate.tta import calibration_error
from steerable.fitting import fit_embeddings
from steerable.maps import SteeringMap
from steerable.model import features_for
from steerable.posthoc.pairs import Pairs
from steerable.theta import named_theta
from steerable.transforms import Chain
from steerable.tta import choose_views, fold, merge, merged, views

SETS = ("flowers", "textures", "grocery", "aerial", "trash", "caltech101")
SPOILED = ("gaussian_noise", "contrast")  # of these two the photographs
CORRUPTIONS, SEVERITY = ("gaussian_noise", "defocus_blur", "brightness", "contrast"), 3
PHOTOS, SMALL, FITTED_VIEWS = 400, 80, 3  # images to fit on, of the photographs and of each transfer set
SIDE = 128  # pixels: a third of the price of 224, and what the transfer sets have
GENTLE, DRAWS = 0.25, 8  # share of the ranges, and views, of the draws that are also truly encoded
STRENGTHS = (1.0, 0.5, 0.25, 0.125)
MEMORY = 6.0  # GiB
STEP = 24  # images that are transformed and encoded at a time


class Passes:
    """Raw embeddings of image sets, kept on disk. encode: images (b, 3, h, w) -> (b, r). name: of what encodes."""

    def __init__(self, encode: Callable[[Tensor], Tensor], chain: Chain, cache: Path, name: str):
        self.encode, self.chain, self.cache, self.name = encode, chain, cache, name

    def __call__(self, images: ImageSet, theta: Tensor | None = None) -> Tensor:
        """(n, r) of images (n), all transformed by one theta (p,), if any."""
        about = f"{images.fingerprint} {None if theta is None else theta.tolist()}"
        path = (
            self.cache
            / "passes"
            / self.name
            / f"{hashlib.sha256(about.encode()).hexdigest()[:24]}.safetensors"
        )
        if path.exists():
            return load_file(path)["raw"]
        began, parts = time.perf_counter(), []
        for batch in images.batches(STEP):
            if theta is not None:
                batch = self.chain.apply(batch, theta.expand(len(batch), -1))
            parts.append(self.encode(batch))
        raw = torch.cat(parts)
        write_whole(path, lambda partial: save_file({"raw": raw}, partial))
        print(self.name, images.name, len(raw), f"{time.perf_counter() - began:.0f} s", flush=True)
        return raw


class Photographs:
    """The frozen encoder, and the images that it and its maps meet, at its size."""

    def __init__(self, data: Path, cache: Path, name: str = "mobilenetv2_100"):
        self.data, self.cache, self.chain = data, cache, Chain.preset("simclr")
        place = f"timm/local-dir:{data.resolve() / 'weights' / name}"
        self.encoder: Encoder = load_encoder(place, layers="all", image_size=SIDE).eval()
        self.passes = Passes(self.encoder.raw, self.chain, cache, name)
        photos = self.images("imagenet1k-sample", None)
        order = random_order(len(photos), 0)
        self.fitted, self.others = photos.subset(order[:PHOTOS]), photos.subset(order[PHOTOS:])

    def images(self, source: str, split: str | None, limit: int | None = None) -> ImageSet:
        return load_images(str(self.data / source), split=split, size=self.encoder.image_size, limit=limit)

    def for_maps(self) -> ImageSet:
        """What maps are fitted on: photographs, and training images of the transfer sets."""
        small = [self.images(f"transfer/{name}", "train", SMALL).images for name in SETS]
        pixels = torch.cat([self.fitted.images, *small])
        pixels = pixels[random_order(len(pixels), 1)]  # directions are chosen on the first pairs
        names = tuple(map(str, range(len(pixels))))
        return ImageSet(pixels, torch.zeros(len(pixels), dtype=torch.int64), (), names)

    def pairs(self) -> Pairs:
        return Pairs(
            self.encoder, self.for_maps(), self.chain, views=FITTED_VIEWS, seed=0, folder=self.cache, progress=told()
        )  # fmt: skip

    def spaces(self) -> Iterator["Space"]:
        """The final embedding, and all layers standardized, each with a map and the encoder's own classifier."""
        pairs, layers = self.pairs(), self.encoder.layers
        standard = Neck.standardizing(pairs.plain(), layers)
        whole, raw = classifier_of(self.encoder.with_neck(standard)), classifier_of(self.encoder)
        assert whole is not None
        assert raw is not None
        final = nn.Linear(layers["final"].stop - layers["final"].start, raw.out_features)
        final.load_state_dict({"weight": raw.weight[:, layers["final"]], "bias": raw.bias})
        for name, embed, head in (
            ("final", Columns(layers["final"]), final),
            ("all layers", standard, whole),
        ):
            pairs.neck, began = embed, time.perf_counter()
            steering = fit_embeddings(
                iter(pairs), features=features_for(self.chain, "linear"), projection="auto", memory=MEMORY,
                strict=False,
            ).requires_grad_(False)  # fmt: skip
            print(name, f"map fitted in {time.perf_counter() - began:.0f} s", flush=True)
            yield Space(name, embed, steering, head.requires_grad_(False))


class Columns(nn.Module):
    """The columns of one layer."""

    def __init__(self, part: slice):
        super().__init__()
        self.part = part

    def forward(self, raw: Tensor) -> Tensor:
        return raw[..., self.part]


class Space(NamedTuple):
    """An embedding made of the raw one, its map, and a head."""

    name: str
    embed: Callable[[Tensor], Tensor]
    steering: SteeringMap
    head: nn.Linear


class Bench:
    """The measured photographs, clean and corrupted, their true views, and the rows."""

    def __init__(self, passes: Passes, test: ImageSet, corruptions: Sequence[str], encoded: int):
        self.chain, self.labels = passes.chain, test.labels
        self.gentle = views(f"chain:{DRAWS}", self.chain, strength=GENTLE)
        still = torch.zeros(len(self.chain.params))
        self.flip = torch.stack([still, named_theta(self.chain.params, {"hflip": 1.0})])
        sets = {"clean": test}
        sets |= {name: corrupt(test, name, SEVERITY, cache=passes.cache) for name in corruptions}
        self.plain, self.moved = {}, {}
        few = range(encoded)
        for name, images in sets.items():
            self.plain[name] = passes(images)
            self.moved[name] = {
                "hflip": torch.stack([passes(images, theta) for theta in self.flip[1:]], 1),
                f"{DRAWS} x {GENTLE}": torch.stack(
                    [passes(images.subset(few), theta) for theta in self.gentle[1:]], 1
                ),
            }

    @torch.no_grad()
    def rows(self, space: Space) -> Iterator[dict[str, Any]]:
        """One row per set and method, with the hits of every image."""
        chain, (name_of_map, embed, steering, head) = self.chain, space
        true = {"hflip": self.flip, f"{DRAWS} x {GENTLE}": self.gentle}
        sets = true | {f"1000 x {s}": views("chain:1000", chain, strength=s) for s in STRENGTHS}
        pool = torch.cat([self.flip[1:], *(views("chain:25", chain, strength=s)[1:] for s in STRENGTHS)])
        folded = fold(steering, head, sets["1000 x 1.0"])
        for name, raw in self.plain.items():
            e = embed(raw)
            plain = head(e).softmax(1)
            facts = {"images": name, "map": name_of_map}
            yield facts | self.row("plain", "", plain, plain)
            chosen = {
                title: facts | self.row(title, "few", self.crossed(e, steering, head, pool, how), plain)
                for how, title in (("greedy", "chosen"), ("learned", "weighted"))
            }
            yield from chosen.values()
            yield facts | self.row("folded", "1000 x 1.0", folded(e).softmax(1), plain)
            for key, thetas in sets.items():
                p = merged(steering, head, e, thetas)
                row = facts | self.row("steered", key, p, plain)
                yield row
                if key in true:
                    moved = self.moved[name][key]
                    n = len(moved)
                    q = merge(torch.cat([plain[:n, None], head(embed(moved)).softmax(-1)], 1))
                    ours = {"steered": row["hits"][:n], "weighted": chosen["weighted"]["hits"][:n]}
                    yield facts | self.row("re-encoded", key, q, plain[:n]) | {"ours": ours}

    def crossed(self, e: Tensor, steering: SteeringMap, head: nn.Linear, pool: Tensor, how: str) -> Tensor:
        """Probabilities of each half by the views that the other half chose."""
        half, out = torch.arange(len(e)) % 2 == 0, torch.empty(len(e), head.out_features)
        for part in (half, ~half):
            kept, weights = choose_views(steering, head, e[part], self.labels[part], pool, how=how)
            out[~part] = merged(steering, head, e[~part], kept, weights=weights)
        return out

    def row(self, method: str, key: str, p: Tensor, plain: Tensor) -> dict[str, Any]:
        y = self.labels[: len(p)]
        likelihood = p.gather(1, y[:, None]).clamp(min=1e-30).log().mean().item()
        return {
            "method": method, "views": key, "hits": (p.argmax(1) == y).double(),
            "plain hits": (plain.argmax(1) == y).double(), "log_likelihood": likelihood,
            "ece": calibration_error(p / p.sum(1, keepdim=True), y),
        }  # fmt: skip


def told() -> Any:
    began = time.perf_counter()

    def progress(done: int, total: int, what: str) -> None:
        print(f"{done}/{total} {what} {time.perf_counter() - began:.0f} s", flush=True)

    return progress


def shown(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """One row of the table from rows of one method and several image sets: gains are paired by image."""
    hits, plain = (torch.cat([row[key] for row in rows]) for key in ("hits", "plain hits"))
    gain, error = 100 * (hits - plain).mean().item(), 100 * (hits - plain).std().item() / len(hits) ** 0.5
    out = {key: rows[0][key] for key in ("map", "method", "views")}
    out |= {
        "n": len(hits),
        "accuracy": 100 * hits.mean().item(),
        "gain, points": gain,
        "its standard error": error,
    }
    out |= {key: sum(row[key] for row in rows) / len(rows) for key in ("log_likelihood", "ece")}
    for name in rows[0].get("ours", ()):
        ours = torch.cat([row["ours"][name] for row in rows])
        out[f"{name} gain on these"] = 100 * (ours - plain).mean().item()
        out[f"{name}: share of the true gain"] = (
            out[f"{name} gain on these"] / gain if gain > 2 * error else None
        )
    return out


def table(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Each set alone, and the corrupted ones pooled."""
    cells: dict[tuple[str, ...], list[Mapping[str, Any]]] = {}
    for row in rows:
        own = tuple(row[key] for key in ("map", "method", "views"))
        cells.setdefault((row["images"], *own), []).append(row)
        if row["images"] != "clean":
            cells.setdefault(("corrupted, all", *own), []).append(row)
    order = dict.fromkeys(["clean", "corrupted, all", *(row["images"] for row in rows)])
    return [
        {"images": images, **shown(cells[key])}
        for images in order for key in cells if key[0] == images
    ]  # fmt: skip


def summary(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """What the README may show: plain, and views weighted on the other half; the folded head; true augmentation."""
    figures = {}
    for images in ("clean", "corrupted, all"):
        own = [row for row in rows if row["images"] == images]
        figures[f"accuracy, {images}: plain"] = figure([own[0]["accuracy"]], "%")
        for method, key in (
            ("weighted", "few"),
            ("folded", "1000 x 1.0"),
            ("re-encoded", f"{DRAWS} x {GENTLE}"),
        ):
            for row in own:
                if (row["method"], row["views"]) == (method, key) and (
                    method != "re-encoded" or row["map"] == "final"
                ):
                    title = (
                        f"gain, {images}: {method} ({row['map']})"
                        if method != "re-encoded"
                        else f"gain, {images}: re-encoded"
                    )
                    unit = f"points, standard error {row['its standard error']:.2g}"
                    figures[title] = figure([row["gain, points"]], unit)
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--cache", type=Path, required=True)
    parser.add_argument("--measured", type=int, default=300, help="photographs, each clean and corrupted")
    parser.add_argument("--encoded", type=int, default=150, help="of them, truly encoded with 7 draws")
    parser.add_argument("--encode-only", action="store_true")
    args = parser.parse_args()
    photographs = Photographs(args.data, args.cache)
    bench = Bench(photographs.passes, photographs.others.subset(range(args.measured)), SPOILED, args.encoded)
    if args.encode_only:
        for _ in photographs.pairs():
            pass
        return
    rows: list[dict[str, Any]] = []
    for space in photographs.spaces():
        rows += bench.rows(space)
        write(table(rows), args)


def write(found: list[dict[str, Any]], args: argparse.Namespace) -> None:
    record(
        "tta_imagenet",
        claim=f"steered test-time augmentation of a frozen MobileNetV2 with its own classifier at {SIDE} pixels: "
        f"{args.measured} photographs, clean and after each of {', '.join(SPOILED)} at severity {SEVERITY}; paired "
        "gains; views are COUNT x STRENGTH of the simclr chain's ranges; chosen and weighted views are measured on "
        "images that did not choose them; the photographs are probably training pictures, so that accuracies "
        "themselves mean nothing",
        command="python benchmarks/tta_imagenet.py --data DATA --cache CACHE",
        seeds=[0],
        rows=found,
        figures=summary(found),
    )  # fmt: skip


if __name__ == "__main__":
    main()
