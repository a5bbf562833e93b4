"""A frozen ImageNet encoder as the benchmarks see it: raw embeddings of photographs, of their views, of labeled sets.

Images are bytes until they are on the encoder's device; transforms and network run there in batches, in float32 (with
TF32 in the convolutions of a GPU, as cuDNN does by default). One pass per view gives every layer; rungs read their
columns. Photographs at full size (imagenet1k-sample) and training images of the transfer sets (128 pixels, enlarged)
are fitted to together; held-out images of both are measured apart.
"""

import argparse
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch._inductor.config
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from steerable.auditing.measure import motion_figures, rank_figures
from steerable.auditing.plan import drawn_alone, only, spaced
from steerable.data import load_images
from steerable.data.cache import write_whole
from steerable.data.images import as_float, random_order
from steerable.encoders import load_encoder
from steerable.evaluate.minibatch import split_off
from steerable.posthoc.pairs import Pair
from steerable.transforms import Chain

SETS = ("flowers", "textures", "grocery", "aerial", "trash", "caltech101")
PROBED = ("flowers", "textures", "aerial")
CROP = ("zoom", "aspect", "shift_x", "shift_y")
COLOR = ("brightness", "contrast", "saturation", "hue")
VIEWS = 50  # pool in which ranks are counted
SHOWN = ("relative_error", "r2", "invariance_level", "mrr", "hit_at_1", "hit_at_5")
STRENGTHS = (0.001, 0.0056, 0.032, 0.18)  # of the probe: the optimum of standardized embeddings lies inside


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--name", default="mobilenetv2_100", help="folder under DATA/weights")
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument(
        "--cache", type=Path, help="folder that keeps passes between runs; without it nothing is kept"
    )
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--photos", type=int, default=800, help="full-size photographs to fit on")
    parser.add_argument(
        "--small", type=int, default=500, help="images of each transfer set to fit on, at most"
    )
    parser.add_argument(
        "--size", type=int, help="side in pixels, for a cheap look; by default the encoder's own"
    )
    parser.add_argument("--views", type=int, default=6)
    parser.add_argument("--measured", type=int, default=32, help="held-out images of each kind")
    parser.add_argument("--seconds", type=float, default=1e9, help="begin nothing new after so long")
    parser.add_argument("--out", type=Path, help="folder of the JSON; the default is results/")


@dataclass
class Space:
    """Columns of the raw embedding, and where each layer's are among these."""

    columns: Tensor
    layers: dict[str, slice]


class Frozen:
    """Encoder, views of the images to fit on, held-out views, labeled sets: all raw, on the device."""

    def __init__(self, args: argparse.Namespace):
        self.args, self.began = args, time.perf_counter()
        self.device = torch.device(args.device)
        torch.backends.cudnn.benchmark = True
        self.chain = Chain.preset("simclr")
        place = args.data.resolve() / "weights" / args.name
        encoder = load_encoder(f"timm/local-dir:{place}", layers="all", image_size=args.size)
        self.encoder = encoder.eval().requires_grad_(False).to(self.device)
        self.encoder.network.to(memory_format=torch.channels_last)
        self.look = self.encoder.raw
        if self.device.type == "cpu":  # half the time, for a minute of compiling; equal to 1e-6
            torch._inductor.config.freezing = True
            self.look = torch.compile(self.encoder._forward_raw, dynamic=True)
        layers, columns = encoder.layers, torch.arange(encoder.raw_dim, device=self.device)
        final = columns[layers["final"]]
        self.spaces = {
            "final": Space(final, {"final": slice(0, len(final))}),
            "layers": Space(columns, dict(layers)),
        }
        self.passes = self.new = 0  # in all; not found in the cache
        self.seconds = 0.0  # that the new ones took
        self._load()

    def _load(self) -> None:
        args, side = self.args, self.encoder.image_size
        photos = load_images(str(args.data / "imagenet1k-sample"), size=side).images
        order = random_order(len(photos), 0)
        few = -(-args.measured // len(SETS))
        fitted, small, self.labeled_images = [photos[order[: args.photos]]], [], {}
        assert args.photos + args.measured <= len(photos)
        for name in SETS:
            parts = [
                load_images(str(args.data / "transfer" / name), split=s, size=side) for s in ("train", "test")
            ]
            fitted.append(parts[0].images[random_order(len(parts[0]), 0)[: args.small]])
            small.append(parts[1].images[random_order(len(parts[1]), 0)[:few]])
            if name in PROBED:
                self.labeled_images[name] = parts
        images = torch.cat(fitted)
        self.images = images[random_order(len(images), 1)]  # directions are chosen on the first pairs
        self.held = {"photographs": photos[order[len(order) - args.measured :]]}
        self.held["transfer sets"] = torch.cat(small)[: args.measured]
        self.tell(f"{len(self.images):,} images to fit on")

    def encode(self, *, probes: bool = True) -> None:
        """Everything that is measured later."""
        p = len(self.chain.params)
        theta = torch.zeros(len(self.images), 1 + self.args.views, p)
        for view in range(1, 1 + self.args.views):
            theta[:, view] = self.chain.sample(
                len(self.images), generator=torch.Generator().manual_seed(view)
            )
        raw = self.raw("pairs", self.images, theta)
        self.theta, self.plain, self.moved = theta[:, 1:].to(self.device), raw[:, 0], raw[:, 1:]
        self.tell(f"pairs encoded: {self.passes:,} passes")
        self.tests = {kind: self._test(kind) for kind in self.held}
        self.labeled = {
            name: tuple(
                (self.raw(f"{name}{i}", part.images)[:, 0], part.labels) for i, part in enumerate(parts)
            )
            for name, parts in (self.labeled_images.items() if probes else ())
        }
        self.tell(f"all encoded: {self.passes:,} passes")

    @torch.no_grad()
    def raw(self, tag: str, images: Tensor, theta: Tensor | None = None) -> Tensor:
        """Raw embeddings (n, v, r) of images at thetas (n, v, p); plain ones (n, 1, r) without."""
        theta = torch.zeros(len(images), 1, len(self.chain.params)) if theta is None else theta
        out = torch.empty(*theta.shape[:2], self.encoder.raw_dim, device=self.device)
        size = 256 if self.device.type == "cuda" else 16
        self.passes += theta.shape[0] * theta.shape[1]
        for start in range(0, len(images), size):
            rows = slice(start, start + size)
            out[rows] = self._kept(f"{tag}-{start}", lambda rows=rows: self._views(images[rows], theta[rows]))
        return out

    def _views(self, images: Tensor, theta: Tensor) -> Tensor:
        began, batch, views = time.perf_counter(), as_float(images.to(self.device)), []
        for v in range(theta.shape[1]):
            moved = self.chain.apply(batch, theta[:, v]) if bool(theta[:, v].any()) else batch
            views.append(self.look(moved.contiguous(memory_format=torch.channels_last)).cpu())
        self.new += theta.shape[0] * theta.shape[1]
        self.seconds += time.perf_counter() - began
        return torch.stack(views, dim=1)

    def _kept(self, tag: str, make: Callable[[], Tensor]) -> Tensor:
        args = self.args
        if args.cache is None:
            return make()
        settings = f"{args.size}-{args.photos}-{args.small}-{args.views}-{args.measured}"
        path = args.cache / "ladder" / args.name / settings / f"{tag.replace(' ', '-')}.safetensors"
        if not path.exists():
            raw = make()
            write_whole(path, lambda partial: save_file({"raw": raw}, partial))
        return load_file(path)["raw"]

    def _test(self, kind: str) -> dict[str, tuple[Tensor, Tensor]]:
        """Raw views (n, v, r) with thetas (n, v, p), by what is drawn; "plain" has one view."""
        images, params = self.held[kind], self.chain.params
        p, n = len(params), len(self.held[kind])
        generator = torch.Generator().manual_seed(7)
        theta = self.chain.sample(n * VIEWS, generator=generator).view(n, VIEWS, p)
        drawn = {"joint": theta, "plain": torch.zeros(n, 1, p)}
        for group, names in (("crop", CROP), ("color", COLOR)):
            drawn[group] = theta * torch.tensor([param.name in names for param in params])
        few = max(2, n // 4)
        for place, param in enumerate(params):
            if param.is_switch:
                drawn[param.name] = only(drawn_alone(param, n, generator), place, p)[:, None]
            else:
                drawn[param.name] = only(spaced(param, VIEWS), place, p).expand(few, -1, -1)
        return {
            name: (self.raw(f"{kind}-{name}", images[: len(part)], part), part.to(self.device))
            for name, part in drawn.items()
        }

    def pairs(self, embed: nn.Module, images: int | None = None, views: int | None = None) -> Iterator[Pair]:
        """Pairs of the first images in their first views, seen through ``embed``."""
        n = len(self.plain) if images is None else images
        for ids in torch.arange(n).split(1024):
            rows = slice(int(ids[0]), int(ids[-1]) + 1)
            with torch.no_grad():
                source = embed(self.plain[rows])
                for v in range(self.moved.shape[1] if views is None else views):
                    yield Pair(source, self.theta[rows, v], embed(self.moved[rows, v]), ids)

    @torch.no_grad()
    def figures(
        self, kind: str, drawn: str, embed: nn.Module, steer: Callable[[Tensor, Tensor], Tensor]
    ) -> dict[str, Any]:
        """Figures of a map on held-out views; steer: embeddings (n, 1, d) and thetas (n, v, p) to (n, v, d)."""
        raw, theta = self.tests[kind][drawn]
        views, source = embed(raw), embed(self.tests[kind]["plain"][0][: len(raw), 0])
        steered = steer(source[:, None], theta).expand(views.shape)
        pairs = source[:, None].expand_as(views).flatten(0, 1), views.flatten(0, 1), steered.flatten(0, 1)
        ranked = rank_figures(steered, views) if theta.shape[1] > 1 else {}
        return motion_figures(*pairs) | ranked

    @torch.no_grad()
    def probe(self, embed: nn.Module) -> float:
        """Accuracy of a linear probe, mean over the probed sets."""
        found = [
            probe_accuracy(embed(train), labels, embed(test), wanted)
            for (train, labels), (test, wanted) in self.labeled.values()
        ]
        return sum(found) / len(found)

    @property
    def elapsed(self) -> float:
        return time.perf_counter() - self.began

    def price(self) -> str:
        cached = "" if self.new == self.passes else f", all but {self.new:,} of them from the cache"
        return f"{self.passes:,} encoder passes ({self.seconds:.0f} s{cached})"

    def tell(self, text: str) -> None:
        print(f"{self.elapsed:6.0f} s  {text}", flush=True)

    def ranges(self) -> str:
        return ", ".join(f"{param.name} {param.low:g} to {param.high:g}" for param in self.chain.params)


class Columns(nn.Module):
    """Some columns."""

    def __init__(self, columns: Tensor):
        super().__init__()
        self.columns = columns

    def forward(self, raw: Tensor) -> Tensor:
        return raw[..., self.columns]


def probe_accuracy(train: Tensor, labels: Tensor, test: Tensor, wanted: Tensor) -> float:
    """L2 logistic regression as `steerable.evaluate.probe` has it, solved by L-BFGS on the embeddings' device."""
    fit, val = (torch.from_numpy(rows).to(train.device) for rows in split_off(labels, len(train), 0))
    mean, std = train.mean(0), train.std(0, correction=0)
    train, test = ((e - mean) / torch.where(std > 0, std, 1.0) for e in (train, test))
    y, wanted = labels.to(train.device), wanted.to(train.device)
    scores, weights = [], None
    for c in STRENGTHS:
        weights = _logistic(train[fit], y[fit], c, weights)
        scores.append((_logits(train[val], weights).argmax(1) == y[val]).float().mean().item())
    weights = _logistic(train, y, STRENGTHS[scores.index(max(scores))], None)
    return (_logits(test, weights).argmax(1) == wanted).double().mean().item()


def _logits(x: Tensor, weights: Tensor) -> Tensor:
    return x @ weights[:-1] + weights[-1]


@torch.enable_grad()
def _logistic(x: Tensor, y: Tensor, c: float, start: Tensor | None) -> Tensor:
    weights = x.new_zeros(x.shape[1] + 1, int(y.max()) + 1) if start is None else start.clone()
    weights.requires_grad_(True)
    optimizer = torch.optim.LBFGS([weights], max_iter=200, history_size=10, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        penalty = weights[:-1].square().sum() / (2 * c * len(x))
        loss = F.cross_entropy(_logits(x, weights), y) + penalty
        loss.backward()
        return loss

    optimizer.step(closure)
    return weights.detach()
