"""What steered views cost: encoding and 1,000 views against one plain pass, and against encoding 1,000 views.

    OMP_WAIT_POLICY=passive python benchmarks/tta_cost.py [--threads 2] [--rounds 10]

ResNet-50 (timm, random weights: cost does not depend on them) at 224 pixels, 1,000 classes, batch 8, a random basis
map with k = 8, all in channels-last, which makes the plain pass faster. All timings of one width alternate in one
process after a warm-up. Costs are processor time over all threads, the least of the rounds: unlike time by the clock
(also the least, beside) it hardly depends on what else the machine does, as long as threads do not wait by spinning.
Other widths put a random projection behind the encoder; its price is in both sides. Means of logits are folded into one
layer; "max of logits" has no closed form: it is the price of visiting every view's logits. Re-encoding is measured on 4
views in each round, transformed by the chain and encoded, and scaled. Three minutes on two quiet cores.
Writes results/tta_cost.json after each width.
"""

import argparse
import json
import random
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import timm
import torch
from record import RESULTS, cpu_name, record
from torch import nn

from steerable.encoders import Encoder
from steerable.model import SteerableEncoder, steering_for
from steerable.transforms import Chain
from steerable.tta import SteeredClassifier
from steerable.tta.merging import design, logit_basis, merged_basis

CLASSES, BATCH, VIEWS, SCALED = 1000, 8, (10, 100, 1000, 10000), 4
ARMS = {  # merge, of what, at how many views
    "logits": ("mean", "logits", (1000,)),  # one layer, whatever the number of views
    "max of logits": ("max", "logits", (1000,)),
    "probabilities": ("mean", "probabilities", VIEWS),
}
AIMED = 1000  # views of the figures


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
    return model.eval().to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]


def rounds(jobs: dict[str, Callable[[], Any]], n: int) -> dict[str, tuple[float, float]]:
    """Least processor and clock milliseconds of every job over n rounds, each in its own order, after a warm-up."""
    least = {name: (float("inf"), float("inf")) for name in jobs}
    for turn in range(n + 1):
        for name in random.Random(turn).sample(list(jobs), len(jobs)):
            began = time.process_time(), time.perf_counter()
            jobs[name]()
            took = 1e3 * (time.process_time() - began[0]), 1e3 * (time.perf_counter() - began[1])
            if turn:
                least[name] = min(least[name][0], took[0]), min(least[name][1], took[1])
    return least


def measure(width: int, n: int) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Rows of one width, and its figures."""
    model = model_of(width)
    images = torch.rand(BATCH, 3, 224, 224).to(memory_format=torch.channels_last)
    generator = torch.Generator().manual_seed(0)
    thetas = {v: model.chain.sample(v, generator=generator) for v in (*VIEWS, SCALED)}

    def encoded() -> None:
        for theta in thetas[SCALED]:
            model.head(model(model.chain.apply(images, theta.expand(BATCH, -1)))).softmax(-1)

    jobs: dict[str, Callable[[], Any]] = {"plain": lambda: model.head(model(images)).softmax(-1)}
    cells = [(name, v) for name, (_, _, counts) in ARMS.items() for v in counts]
    folded = SteeredClassifier(model, thetas[AIMED], of="logits").eval()
    visiting = SteeredClassifier(model, thetas[AIMED]).eval()

    def classified(how: str, of: str, views: torch.Tensor) -> Any:
        if (how, of) == ("mean", "logits"):
            return folded(images)
        visiting.how, visiting.of = how, of  # one snapshot of head and basis serves all merges and views
        visiting.thetas, visiting.weights = views, torch.ones(len(views))
        return visiting(images)

    for name, v in cells:
        how, of, _ = ARMS[name]
        jobs[f"{v} {name}"] = partial(classified, how, of, thetas[v])
    jobs["plain again"] = jobs["plain"]  # the noise of the ratios below
    jobs["encoded"] = encoded
    least = rounds(jobs, n)
    plain, clock = least["plain"]
    figures = {f"d={width}: a second plain pass over the first": ratio(least["plain again"][0] / plain)}
    rows: list[dict[str, Any]] = [
        {"d": width, "views": 1, "merge": "plain pass", "cpu ms": plain, "clock ms": clock}
    ]
    for name, v in cells:
        cost, elapsed = least[f"{v} {name}"]
        row = {"d": width, "views": v, "merge": name, "cpu ms": cost, "clock ms": elapsed}
        row["over one plain pass"], row["by the clock"] = cost / plain, elapsed / clock
        row["re-encoding over this"] = v / SCALED * least["encoded"][0] / cost
        rows.append(row)
        if v == AIMED:
            figures[f"d={width}: {v} views, {name}, over one plain pass"] = ratio(cost / plain)
            saved = ratio(row["re-encoding over this"])
            figures[f"d={width}: re-encoding {v} views over this, {name}"] = saved
    visiting.how, visiting.of, visiting.thetas = "mean", "probabilities", thetas[AIMED]
    return rows + parts(visiting, images, n), figures


def ratio(value: float) -> dict[str, Any]:
    return {"mean": value, "spread": None, "unit": ""}


def parts(classifier: SteeredClassifier, images: torch.Tensor, n: int) -> list[dict[str, Any]]:
    """Where the time of the classifier's views goes, without the encoder."""
    model, thetas = classifier.model, classifier.thetas
    e, weights = model(images), torch.ones(len(thetas))
    basis, views = logit_basis(model.steering, model.head, e), design(model.steering, thetas)
    jobs = {
        "encoder": lambda: model(images),
        "head and basis in one layer": lambda: classifier.basis(e),  # pyright: ignore[reportOptionalCall]
        "basis, map then head": lambda: logit_basis(model.steering, model.head, e),
        "phi of 1,000 thetas": lambda: design(model.steering, thetas),
        "views, logits visited": lambda: merged_basis(basis, views, weights, "max", "logits"),
        "views, probabilities": lambda: merged_basis(basis, views, weights, "mean", "probabilities"),
    }
    return [
        {"d": model.dim, "views": AIMED, "part": name, "cpu ms": cost, "clock ms": clock}
        for name, (cost, clock) in rounds(jobs, n).items()
    ]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--widths", type=int, nargs="+", default=[384, 768, 2048])
    parser.add_argument("--out", default=None)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    rows: list[dict[str, Any]] = []
    figures: dict[str, Any] = {}
    path = RESULTS
    with torch.inference_mode():
        for width in args.widths:
            more, found = measure(width, args.rounds)
            rows += more
            figures |= found
            path = write(rows, figures, args)
    print(path.read_text())


def write(rows: list[dict[str, Any]], figures: dict[str, Any], args: argparse.Namespace) -> Path:
    """Results so far; widths that an earlier run measured stay."""
    path = RESULTS / "tta_cost.json" if args.out is None else Path(args.out)
    if path.exists():
        old, new = json.loads(path.read_text()), {row["d"] for row in rows}
        rows = [row for row in old["rows"] if row["d"] not in new] + rows
        figures = {**old["figures"], **figures}
    return record(
        "tta_cost",
        claim="encoding and 1,000 steered views cost at most 1.05 (logits) and 1.10 (probabilities) plain passes of "
        f"ResNet-50, batch {BATCH}, and re-encoding the views at least 900 times as much ({SCALED} views measured, and "
        f"scaled; least of {args.rounds} rounds); by parts: without the noise of the encoder's own time",
        command="OMP_WAIT_POLICY=passive python benchmarks/tta_cost.py "
        f"--threads {args.threads} --rounds {args.rounds}",
        rows=rows,
        figures=figures | by_parts(rows),
        device=cpu_name(),
        path=path,
    )


def by_parts(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Passes that encoding and merged probabilities cost, from what each part takes by itself."""
    figures = {}
    for d in sorted({row["d"] for row in rows}):
        part = {row["part"]: row["cpu ms"] for row in rows if row["d"] == d and "part" in row}
        views = ("head and basis in one layer", "phi of 1,000 thetas", "views, probabilities")
        total = part["encoder"] + sum(part[name] for name in views)
        figures[f"d={d}: {AIMED} views, probabilities, by parts"] = ratio(total / part["encoder"])
    return figures


if __name__ == "__main__":
    main()
