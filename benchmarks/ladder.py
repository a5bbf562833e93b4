"""How far a frozen ImageNet encoder can be steered, rung by rung: maps, layers, adapters; error, ranks, price, probe.

    python benchmarks/ladder.py --name mobilenetv2_100 --data ../shared/data --cache CACHE

One encoder pass per view gives all layers; the rungs on the final embedding read its columns. Fitted on photographs at
full size (imagenet1k-sample) and on training images of the transfer sets (128 pixels, enlarged); measured on held-out
images of both, apart. Passes are cached: a second run only fits and measures. Writes results/ladder_NAME.json.
"""

import argparse
import time
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from steerable.auditing.plan import drawn_alone, only, spaced
from steerable.data import ImageSet, load_images
from steerable.data.cache import write_whole
from steerable.data.images import random_order
from steerable.encoders import Encoder, load_encoder
from steerable.evaluate import C_GRID
from steerable.posthoc.pairs import Pairs
from steerable.transforms import Chain

SETS = ("flowers", "textures", "grocery", "aerial", "trash", "caltech101")
PROBED = ("flowers", "textures", "aerial")
CROP = ("zoom", "aspect", "shift_x", "shift_y")
COLOR = ("brightness", "contrast", "saturation", "hue")
VIEWS = 50  # pool in which ranks are counted
GRID = C_GRID[10:26:5]  # 9e-5 to 1.6: the optimum of standardized embeddings lies inside
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
        raise SystemExit("measured elsewhere")


def told() -> Callable[[int, int, str], None]:
    began = time.perf_counter()

    def progress(done: int, total: int, what: str) -> None:
        print(f"{done}/{total} {what} {time.perf_counter() - began:.0f} s", flush=True)

    return progress


if __name__ == "__main__":
    main()
