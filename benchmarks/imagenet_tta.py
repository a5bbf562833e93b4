"""Steered test-time augmentation on a frozen ImageNet encoder: MobileNetV2 with its own 1,000-way classifier.

    python benchmarks/imagenet_tta.py --data ../shared/data --cache CACHE

Maps of the simclr chain are fitted on photographs that are measured nowhere and on enlarged training images of the
transfer sets; one reads and moves the final embedding, one reads all stages too. The other photographs, clean and after
four corruptions at severity 3, are classified plain, by steered views, by views chosen on one half and measured on the
other (both ways round), by the folded head, and by the same views truly encoded. The photographs are almost surely
training pictures of the encoder: only paired differences mean anything.
One pass gives all layers; passes are cached, and a second run costs none. Writes results/imagenet_tta.json.
"""

import argparse
import hashlib
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from record import figure, record
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from steerable.data import ImageSet, load_images
from steerable.data.cache import write_whole
from steerable.data.images import as_float, random_order
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
CORRUPTIONS, SEVERITY = ("gaussian_noise", "defocus_blur", "brightness", "contrast"), 3
PHOTOS, SMALL, FITTED_VIEWS = 400, 150, 3  # images to fit on, of the photographs and of each transfer set
GENTLE, DRAWS = 0.25, 8  # share of the ranges, and views, of the draws that are also truly encoded
STRENGTHS = (1.0, 0.5, 0.25, 0.125)
MEMORY = 6.0  # GiB
STEP = 16  # images that are transformed and encoded at a time


class Passes:
    """Raw embeddings of image sets, kept on disk; the network is compiled, which halves the price of a pass."""

    def __init__(self, data: Path, cache: Path, name: str = "mobilenetv2_100"):
        self.data, self.cache = data, cache
        self.encoder: Encoder = load_encoder(
            f"timm/local-dir:{data.resolve() / 'weights' / name}", layers="all"
        ).eval()
        self.encoder._forward_raw = torch.compile(self.encoder._forward_raw, dynamic=False)
        self.chain = Chain.preset("simclr")

    def raw(self, images: ImageSet, theta: Tensor | None = None) -> Tensor:
        """(n, r) of images (n), each transformed by its theta (n, p) or by one (p,), if any."""
        key = hashlib.sha256(f"{images.fingerprint} {None if theta is None else theta.tolist()}".encode())
        path = self.cache / "imagenet" / f"{key.hexdigest()[:24]}.safetensors"
        if path.exists():
            return load_file(path)["raw"]
        began, parts = time.perf_counter(), []
        for i in range(0, len(images), STEP):
            batch = as_float(images.images[i : i + STEP])
            if theta is not None:
                own = theta[i : i + STEP] if theta.ndim == 2 else theta.expand(len(batch), -1)
                batch = self.chain.apply(batch, own)
            parts.append(self.encoder.raw(batch))
        raw = torch.cat(parts)
        write_whole(path, lambda partial: save_file({"raw": raw}, partial))
        print(images.name, len(raw), f"{time.perf_counter() - began:.0f} s", flush=True)
        return raw

    def images(self, source: str, split: str | None, limit: int | None = None) -> ImageSet:
        """At the encoder's size."""
        return load_images(str(self.data / source), split=split, size=self.encoder.image_size, limit=limit)


class Columns(nn.Module):
    """The columns of one layer."""

    def __init__(self, part: slice):
        super().__init__()
        self.part = part

    def forward(self, raw: Tensor) -> Tensor:
        return raw[..., self.part]


def photographs(passes: Passes) -> tuple[ImageSet, ImageSet]:
    """Those that maps are fitted on, and the others."""
    photos = passes.images("imagenet1k-sample", None)
    order = random_order(len(photos), 0)
    return photos.subset(order[:PHOTOS]), photos.subset(order[PHOTOS:])


def pairs_of(passes: Passes, views: int = FITTED_VIEWS) -> Pairs:
    """What maps are fitted on: photographs, and training images of the transfer sets."""
    small = [passes.images(f"transfer/{name}", "train", SMALL).images for name in SETS]
    pixels = torch.cat([photographs(passes)[0].images, *small])
    pixels = pixels[random_order(len(pixels), 1)]  # directions are chosen on the first pairs
    names = tuple(map(str, range(len(pixels))))
    images = ImageSet(pixels, torch.zeros(len(pixels), dtype=torch.int64), (), names)
    return Pairs(
        passes.encoder, images, passes.chain, views=views, seed=0, folder=passes.cache, progress=told()
    )


def spaces(passes: Passes) -> Iterator[tuple[str, nn.Module, SteeringMap, nn.Linear]]:
    """Name, embedding of raw columns, map, and the encoder's classifier on that embedding."""
    pairs = pairs_of(passes)
    encoder = passes.encoder
    final = Columns(encoder.layers["final"])
    layers = Neck.standardizing(pairs.plain(), encoder.layers)
    for name, embed in (("final", final), ("all layers", layers)):
        pairs.neck, began = embed, time.perf_counter()
        steering = fit_embeddings(
            iter(pairs), features=features_for(passes.chain, "linear"), projection="auto", memory=MEMORY, strict=False
        ).requires_grad_(False)  # fmt: skip
        whole = classifier_of(encoder.with_neck(layers))
        assert whole is not None
        head = whole
        if embed is final:
            plain = classifier_of(encoder)
            assert plain is not None
            head = nn.Linear(steering.dim, plain.out_features)
            weight = plain.weight[:, encoder.layers["final"]]
            head.load_state_dict({"weight": weight, "bias": plain.bias})
        print(name, f"map fitted in {time.perf_counter() - began:.0f} s", flush=True)
        yield name, embed, steering, head.requires_grad_(False)


class Bench:
    """The measured photographs, clean and corrupted, their true views, and the rows."""

    def __init__(self, passes: Passes, measured: int, encoded: int):
        self.passes, chain = passes, passes.chain
        self.encoded = encoded
        test = photographs(passes)[1].subset(range(measured))
        self.labels = test.labels
        self.gentle = views(f"chain:{DRAWS}", chain, strength=GENTLE)
        self.flip = torch.stack([torch.zeros(len(chain.params)), named_theta(chain.params, {"hflip": 1.0})])
        sets = {"clean": test}
        sets |= {name: corrupt(test, name, SEVERITY, cache=passes.cache) for name in CORRUPTIONS}
        self.plain, self.moved = {}, {}
        few = range(encoded)
        for name, images in sets.items():
            self.plain[name] = passes.raw(images)
            self.moved[name] = {
                "hflip": torch.stack([passes.raw(images, theta) for theta in self.flip[1:]], 1),
                f"{DRAWS} x {GENTLE}": torch.stack(
                    [passes.raw(images.subset(few), theta) for theta in self.gentle[1:]], 1
                ),
            }

    @torch.no_grad()
    def rows(
        self, space: str, embed: nn.Module, steering: SteeringMap, head: nn.Linear
    ) -> Iterator[dict[str, Any]]:
        """One row per set and method, of each set's images, with the hits of every image under "hits"."""
        chain = self.passes.chain
        true = {"hflip": self.flip, f"{DRAWS} x {GENTLE}": self.gentle}
        sets = true | {f"1000 x {s}": views("chain:1000", chain, strength=s) for s in STRENGTHS}
        pool = torch.cat([self.flip[1:], *(views("chain:25", chain, strength=s)[1:] for s in STRENGTHS)])
        folded = fold(steering, head, sets["1000 x 1.0"])
        for name, raw in self.plain.items():
            e = embed(raw)
            plain = head(e).softmax(1)
            facts = {"images": name, "map": space}
            yield facts | self.row("plain", "", plain, plain)
            yield facts | self.row("folded", "1000 x 1.0", folded(e).softmax(1), plain)
            for key, thetas in sets.items():
                p = merged(steering, head, e, thetas)
                row = facts | self.row("steered", key, p, plain)
                yield row
                if key in true:
                    moved = self.moved[name][key]
                    n = len(moved)
                    q = merge(torch.cat([plain[:n, None], head(embed(moved)).softmax(-1)], 1))
                    yield (
                        facts | self.row("re-encoded", key, q, plain[:n]) | {"steered hits": row["hits"][:n]}
                    )
            for how, title in (("greedy", "chosen"), ("learned", "weighted")):
                yield facts | self.row(title, "few", self.crossed(e, steering, head, pool, how), plain)

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
    if "steered hits" in rows[0]:
        ours = torch.cat([row["steered hits"] for row in rows])
        out["steered gain on these"] = 100 * (ours - plain).mean().item()
        out["share of the true gain"] = out["steered gain on these"] / gain if gain > 2 * error else None
    return out


def table(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Each set alone, and the corrupted ones pooled."""
    cells: dict[tuple[str, ...], list[Mapping[str, Any]]] = {}
    for row in rows:
        own = tuple(row[key] for key in ("map", "method", "views"))
        cells.setdefault((row["images"], *own), []).append(row)
        if row["images"] != "clean":
            cells.setdefault(("corrupted, all", *own), []).append(row)
    order = ("clean", "corrupted, all", *CORRUPTIONS)
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
    parser.add_argument("--measured", type=int, default=500, help="photographs, each clean and corrupted")
    parser.add_argument("--encoded", type=int, default=200, help="of them, truly encoded with 7 draws")
    parser.add_argument("--encode-only", action="store_true")
    args = parser.parse_args()
    passes = Passes(args.data, args.cache)
    bench = Bench(passes, args.measured, args.encoded)
    if args.encode_only:
        for _ in pairs_of(passes):
            pass
        return
    rows = [row for space in spaces(passes) for row in bench.rows(*space)]
    found = table(rows)
    record(
        "imagenet_tta",
        claim=f"steered test-time augmentation of a frozen MobileNetV2 with its own classifier: {args.measured} "
        f"photographs, clean and after each of {', '.join(CORRUPTIONS)} at severity {SEVERITY}; paired gains; views "
        "are COUNT x STRENGTH of the simclr chain's ranges; chosen and weighted views are measured on images that did "
        "not choose them; the photographs are probably training pictures, so that accuracies themselves mean nothing",
        command="python benchmarks/imagenet_tta.py --data DATA --cache CACHE",
        seeds=[0],
        rows=found,
        figures=summary(found),
    )  # fmt: skip


if __name__ == "__main__":
    main()
