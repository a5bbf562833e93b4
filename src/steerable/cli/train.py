"""``steerable train``."""

from pathlib import Path
from typing import Annotated

from steerable.training.config import TrainConfig

GROUPS = {
    "run": "epochs batch_size accumulate seed precision compile ema validate_every checkpoint_every timeout",
    "views and losses": "chain base base_temperature projector equivariance uniformity temperature negatives",
    "map": "steering features refit",
}


def train(
    config: Annotated[TrainConfig, GROUPS],
    *,
    recipe: str | None = None,
    out: Annotated[Path | None, "DIR"] = None,
    resume: bool = False,
) -> None:
    """Train a steerable encoder, or the control that it is compared with.

    A recipe is a YAML file whose keys are the settings below; each can be overridden here, and without a
    recipe the values in [brackets] hold. The run directory gets the settings as run, metrics.jsonl,
    checkpoints, a picture of the losses, and the bundle that `steerable audit` and
    SteerableEncoder.from_pretrained take.

    Args:
        config: the recipe
        out: run directory [runs/RECIPE-seedN]
        resume: go on from the last checkpoint in the run directory

    Examples:
        steerable train --config recipes/demo.yaml --seed 1
        steerable train --config recipes/demo.yaml --steering none     # the control
        steerable train --config recipes/cifar10_supervised.yaml --data ../shared/data --optimizer.lr 1e-3
        steerable train --data my_images --data.size 64 --equivariance.contrastive 0.1 --epochs 5
    """
    from steerable.progress import TrainProgress
    from steerable.training import train as run

    directory = out or Path("runs") / f"{Path(recipe).stem if recipe else 'train'}-seed{config.seed}"
    with TrainProgress(config.epochs) as progress:
        run(config, out=directory, resume=resume, listener=progress)
    print(directory)
