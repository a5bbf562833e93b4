"""Where the time of a training step goes, against batch, width of the network, number of transforms, and options.

    python benchmarks/cost_curves.py [--device cuda] [--steps 6]

ResNet-10 for 32-pixel images in memory, SimCLR's loss, the basis map with the relative and the contrastive form. One of
the four is varied, the others stay at 64 images, width 16, the 6 transforms of simclr, and the precision that a run
takes by itself, not compiled. Channels-last is always on. An image counts once, though two views of it are encoded.
Medians over steps, after two that warm up; shares are of the step, both directions:

    transform  fetching the images and making the views        map        the map and its orbits
    encoder    the encoder                                     loss       the losses and the projector
    optimizer  AdamW over all weights

On a GPU each stage is waited for, which a run does not do: images_per_second is of steps without that. Writes
results/cost_curves.json.
"""

import argparse
import time
from statistics import median
from typing import Any

import torch
from record import figure, record

from steerable.data import ImageSet
from steerable.training import EncoderConfig, TrainConfig
from steerable.training.run import Run
from steerable.transforms import Chain

STAGES = ("transform", "encoder", "map", "loss", "optimizer")
BASE: dict[str, Any] = {"batch": 64, "width": 16, "transforms": 6, "options": "auto"}
OPTIONS: dict[str, dict[str, Any]] = {
    "auto": {},
    "float32": {"precision": "32-true"},
    "bfloat16": {"precision": "bf16-mixed"},
    "float32, compiled": {"precision": "32-true", "compile": True},
    "bfloat16, compiled": {"precision": "bf16-mixed", "compile": True},
}
Values = tuple[int, ...] | tuple[str, ...]
SAME: dict[str, Values] = {"transforms": (1, 2, 4, 6, 8), "options": tuple(OPTIONS)[1:]}
CURVES: dict[str, Values] = {"batch": (16, 64, 256), "width": (8, 16, 32, 64)} | SAME
ON_GPU: dict[str, Values] = {"batch": (64, 256, 1024, 4096), "width": (16, 64, 128)} | SAME


class Clock:
    """Seconds by stage: a mark ends the stretch since the last one, and says what it was."""

    def __init__(self, run: Run):
        self.seconds: dict[str, float] = dict.fromkeys(STAGES, 0.0)
        self.device = run.fabric.device
        steering, encoder = run.module.steering, run.module.encoder
        assert steering is not None
        # in the order of a step: what lies between two marks of the encoder and the map is the loss and its heads
        self.handles = [
            encoder.register_forward_hook(lambda *_: self.mark("encoder")),
            steering.register_forward_pre_hook(lambda *_: self.mark("loss")),
            steering.register_forward_hook(lambda *_: self.mark("map")),
            steering.register_full_backward_pre_hook(lambda *_: self.mark("loss")),
            steering.register_full_backward_hook(lambda *_: self.mark("map")),
            encoder.register_full_backward_pre_hook(lambda *_: self.mark("loss")),
        ]
        self.mark()

    def mark(self, stage: str | None = None) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize()
        now = time.perf_counter()
        if stage is not None:
            self.seconds[stage] += now - self.last
        self.last = now

    def remove(self) -> None:
        for handle in self.handles:
            handle.remove()


def prepare(batch: int, width: int, transforms: int, options: str) -> Run:
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (2 * batch, 3, 32, 32), dtype=torch.uint8, generator=generator)
    names = tuple(map(str, range(2 * batch)))
    data = ImageSet(images, torch.zeros(2 * batch, dtype=torch.int64), ("a",), names)
    members = Chain.preset("simclr-full").config()["members"][:transforms]
    config = TrainConfig(
        encoder=EncoderConfig("timm/resnet10t", stem="cifar", width=width),
        chain=members,
        base="simclr",
        equivariance={"relative": 0.15, "contrastive": 0.1},
        batch_size=batch,
        epochs=1_000_000,
        **OPTIONS[options],
    )
    run = Run(config, data, data.subset(range(8)), None)
    run.learner.train()
    return run


def step(run: Run, index: torch.Tensor) -> dict[str, float]:
    """Seconds by stage of one step."""
    clock = Clock(run)
    inputs = run.inputs(index)
    clock.mark("transform")
    run.backward(*inputs)
    clock.mark("encoder")  # its backward pass is the last to end
    run.update()
    clock.mark("optimizer")
    clock.remove()
    return clock.seconds


def measure(varied: str, values: Values, steps: int) -> list[dict[str, Any]]:
    """A curve's rows: images per second, and the share of each stage; the values take turns."""
    runs = {value: prepare(**{**BASE, varied: value}) for value in values}
    whole: dict[Any, list[float]] = {value: [] for value in values}
    parts: dict[Any, list[dict[str, float]]] = {value: [] for value in values}
    for turn in range(-2, steps):  # two warm up
        for value, run in runs.items():
            index = torch.arange(run.config.batch_size)
            began = time.perf_counter()
            run.train_step(index)
            if run.fabric.device.type == "cuda":
                torch.cuda.synchronize()
            spent = time.perf_counter() - began
            seconds = step(run, index)
            if turn >= 0:
                whole[value].append(spent)
                parts[value].append(seconds)
    rows = []
    for value in values:
        seconds = {stage: median(part[stage] for part in parts[value]) for stage in STAGES}
        shares = {stage: spent / sum(seconds.values()) for stage, spent in seconds.items()}
        speed = runs[value].config.batch_size / median(whole[value])
        rows.append({"varied": varied, **BASE, varied: value, "images_per_second": speed, **shares})
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--steps", type=int, default=6)
    args = parser.parse_args()
    cuda = torch.cuda.is_available()
    if (args.device == "cuda") != cuda:
        parser.error(f"--device is {args.device}, and training takes {'the GPU' if cuda else 'the CPU'} here")
    curves = ON_GPU if cuda else CURVES
    rows = [row for varied, values in curves.items() for row in measure(varied, values, args.steps)]

    def share(stage: str, varied: str, value: Any) -> dict[str, Any]:
        return figure([next(row[stage] for row in rows if row["varied"] == varied and row[varied] == value)])

    figures = {f"share of a step: {stage}": share(stage, "width", BASE["width"]) for stage in STAGES}
    for varied, stage in (("transforms", "transform"), ("width", "map")):
        for value in (curves[varied][0], curves[varied][-1]):
            figures[f"share of a step: {stage}, {varied} {value}"] = share(stage, varied, value)
    speed = {row["options"]: row["images_per_second"] for row in rows if row["varied"] == "options"}
    for name in curves["options"][1:]:
        figures[f"images per second, {name} over float32"] = figure([speed[name] / speed["float32"]])
    path = record(
        "cost_curves" if args.device == "cpu" else "cost_curves_gpu",
        claim="images per second against batch, width and number of transforms, and what each stage takes of a step",
        command="python benchmarks/cost_curves.py" + " --device cuda" * cuda,
        rows=rows,
        figures=figures,
    )
    print(path.read_text())


if __name__ == "__main__":
    main()
