"""What steered views cost: encoding and 1,000 views against one plain pass, and against encoding 1,000 views.

    python benchmarks/tta_cost.py [--threads 2] [--rounds 5]

ResNet-50 (timm, random weights: cost does not depend on them) at 224 pixels, 1,000 classes, batch 8, a random basis
map with k = 8. All timings of one width alternate in one process after a warm-up; medians over rounds, ratios by round.
Other widths put a random projection behind the encoder; its price is in both sides. "max of logits" has no
closed form: it is the price of visiting every view's logits. Re-encoding is measured on 4 views in each of 5
rounds, transformed by the chain and encoded, and scaled. Three minutes on two quiet cores.
Writes results/tta_cost.json.
"""

import argparse
import random
import time
from collections.abc import Callable
from statistics import median
from typing import Any

import timm
import torch
from record import cpu_name, figure, record
from torch import nn

from steerable.encoders import Encoder
from steerable.model import SteerableEncoder, steering_for
from steerable.transforms import Chain
from steerable.tta import SteeredClassifier, merged
from steerable.tta.merging import design, logit_basis, merged_basis

CLASSES, BATCH, VIEWS, SCALED = 1000, 8, (10, 100, 1000, 10000), 4
ARMS = {
    "logits": ("mean", "logits"),
    "max of logits": ("max", "logits"),
    "probabilities": ("mean", "probabilities"),
}


def model_of(width: int) -> SteerableEncoder:
    """ResNet-50 with embeddings of that width, a random map with k = 8, and a random head."""
    network = timm.create_model("resnet50", pretrained=False, num_classes=0)
    if width != network.num_features:
        network = nn.Sequential(network, nn.Linear(network.num_features, width))
    chain = Chain.preset("simclr")
    chain = Chain([member for member in chain.members if member.name != "hflip"])  # p = 8
    steering = steering_for(chain, width)
    with torch.no_grad():
        for weight in steering.parameters():
            weight.normal_(std=0.3 / width**0.5)
    model = SteerableEncoder(
        Encoder(network, image_size=224), chain, steering, head=nn.Linear(width, CLASSES)
    )
    return model.eval()


def rounds(jobs: dict[str, Callable[[], Any]], n: int) -> dict[str, list[float]]:
    """Seconds of every job in every round, after one unmeasured round; each round has its own order."""
    seconds: dict[str, list[float]] = {name: [] for name in jobs}
    for turn in range(n + 1):
        for name in random.Random(turn).sample(list(jobs), len(jobs)):
            began = time.perf_counter()
            jobs[name]()
            if turn:
                seconds[name].append(time.perf_counter() - began)
    return seconds


def measure(width: int, n: int) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Rows of one width, and its figures."""
    model, images = model_of(width), torch.rand(BATCH, 3, 224, 224)
    generator = torch.Generator().manual_seed(0)
    thetas = {v: model.chain.sample(v, generator=generator) for v in (*VIEWS, SCALED)}

    def encoded() -> None:
        for theta in thetas[SCALED]:
            model.head(model(model.chain.apply(images, theta.expand(BATCH, -1)))).softmax(-1)

    jobs: dict[str, Callable[[], Any]] = {"plain": lambda: model.head(model(images)).softmax(-1)}
    for v in VIEWS:
        for name, (how, of) in ARMS.items():
            classifier = SteeredClassifier(model, thetas[v], how=how, of=of).eval()
            jobs[f"{v} {name}"] = lambda classifier=classifier: classifier(images)
    jobs["plain again"] = jobs["plain"]  # the noise of the ratios below
    jobs[f"{SCALED} encoded"] = encoded
    seconds = rounds(jobs, n)
    again = [a / b for a, b in zip(seconds["plain again"], seconds["plain"], strict=True)]
    rows, figures = [], {f"d={width}: a second plain pass over the first": figure(again)}
    for v in VIEWS:
        for name in ARMS:
            ratios = [a / b for a, b in zip(seconds[f"{v} {name}"], seconds["plain"], strict=True)]
            times = zip(seconds[f"{SCALED} encoded"], seconds[f"{v} {name}"], strict=True)
            savings = [v / SCALED * a / b for a, b in times]
            rows.append(
                {
                    "d": width,
                    "views": v,
                    "merge": name,
                    "seconds": median(seconds[f"{v} {name}"]),
                    "plain seconds": median(seconds["plain"]),
                    "ratio to one plain pass": median(ratios),
                    "re-encoding over this": median(savings),
                }
            )
            if v == 1000:
                figures[f"d={width}: 1000 views, {name}, over one plain pass"] = figure(ratios)
                figures[f"d={width}: re-encoding 1000 views over this, {name}"] = figure(savings)
    return rows + parts(model, images, thetas[1000], n), figures


def parts(
    model: SteerableEncoder, images: torch.Tensor, thetas: torch.Tensor, n: int
) -> list[dict[str, Any]]:
    """Where the time of 1,000 views goes, without the encoder."""
    e, weights = model(images), torch.ones(len(thetas))
    classifier = SteeredClassifier(model, thetas).eval()
    basis, views = logit_basis(model.steering, model.head, e), design(model.steering, thetas)
    jobs = {
        "encoder": lambda: model(images),
        "basis, multiplied out": lambda: classifier.basis(e),  # pyright: ignore[reportOptionalCall]
        "basis, map then head": lambda: logit_basis(model.steering, model.head, e),
        "phi of 1,000 thetas": lambda: design(model.steering, thetas),
        "views, logits visited": lambda: merged_basis(basis, views, weights, "max", "logits"),
        "views, probabilities": lambda: merged_basis(basis, views, weights, "mean", "probabilities"),
        "all but the encoder, functional": lambda: merged(model.steering, model.head, e, thetas),
    }
    return [{"d": model.dim, "part": name, "seconds": median(s)} for name, s in rounds(jobs, n).items()]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--widths", type=int, nargs="+", default=[384, 768, 2048])
    parser.add_argument("--out", default=None)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    rows: list[dict[str, Any]] = []
    figures: dict[str, Any] = {}
    with torch.inference_mode():
        for width in args.widths:
            more, found = measure(width, args.rounds)
            rows += more
            figures |= found
    path = record(
        "tta_cost",
        claim="encoding and 1,000 steered views cost at most 1.05 (logits) and 1.10 (probabilities) plain passes, "
        "and re-encoding the views at least 900 times as much (measured on 4 views in each of 5 rounds, scaled)",
        command="python benchmarks/tta_cost.py",
        rows=rows,
        figures=figures,
        device=cpu_name(),
        path=args.out,
    )
    print(path.read_text())


if __name__ == "__main__":
    main()
