"""Softmax classifiers trained by minibatch, on embeddings that may be moved anew at each step."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from sklearn.model_selection import train_test_split
from torch import Tensor, nn

from steerable.errors import ShapeError
from steerable.maps import SteeringMap

Draw = Callable[[Tensor, torch.Generator], Tensor]
"""(rows (b,), generator) -> embeddings (b, d) of these rows, as this step is to see them."""

STEPS, BATCH, RATE = 2000, 256, 1e-2
ABSENT = -1e4  # the bias of a class that does not occur


def minibatch_head(
    train: Tensor, labels: Tensor, draw: Draw, *, grid: Sequence[float], seed: int = 0
) -> tuple[nn.Linear, float]:
    """`linear_head` by minibatch: train (n, d) and labels (n,) as there, each step on what ``draw`` makes of its rows.

    L2 strengths C of the grid are trained side by side on the same steps and the best on 10 % held out
    (as they are) is trained again on all rows. Adam, cosine decay.

    Raises:
        ShapeError: lengths that differ, or fewer than two classes.
    """
    fit, val = split_off(labels, len(train), seed)
    classes, y = torch.unique(labels.cpu(), return_inverse=True)
    mean, scale = train.mean(0), train.std(0)
    scale = torch.where(scale > 0, scale, 1.0)

    def solved(rows: Tensor, strengths: Sequence[float]) -> tuple[Tensor, Tensor]:
        return _descend(lambda i, g: (draw(i, g) - mean) / scale, y.to(train.device), rows, strengths, seed)

    weights, biases = solved(torch.from_numpy(fit), grid)
    logits = torch.einsum("nd,scd->snc", (train[val] - mean) / scale, weights) + biases[:, None]
    right = (logits.argmax(2) == y[val].to(logits.device)).sum(1)
    c = grid[int(right.argmax())]
    weight, bias = solved(torch.arange(len(train)), [c])
    return as_head(weight[0], bias[0], mean.cpu(), scale.cpu(), classes), c


def steered(train: Float[Tensor, "n d"], steering: SteeringMap, thetas: Float[Tensor, "v p"]) -> Draw:
    """Half of the rows as they are, half moved by one theta, drawn for the step: one matrix serves all of them."""

    def draw(rows: Tensor, generator: torch.Generator) -> Tensor:
        theta = thetas[torch.randint(len(thetas), (1,), generator=generator)[0]]
        e = train[rows]
        half = len(e) // 2
        with torch.no_grad():
            return torch.cat([e[:half], steering(e[half:], theta.to(e.device))])

    return draw


def augmented(train: Float[Tensor, "n d"], views: Float[Tensor, "n v d"]) -> Draw:
    """Half of the rows as they are, half as one of their views, each row its own draw."""

    def draw(rows: Tensor, generator: torch.Generator) -> Tensor:
        chosen = torch.randint(views.shape[1], rows.shape, generator=generator)
        half = len(rows) // 2
        return torch.cat([train[rows[:half]], views[rows[half:], chosen[half:]]])

    return draw


def split_off(labels: Tensor, n: int, seed: int) -> tuple[Any, Any]:
    """Rows to fit and 10 % to validate on, by class where there are enough of each.

    Raises:
        ShapeError: other than n labels, or fewer than two classes.
    """
    y = labels.cpu().numpy()
    if y.shape != (n,):
        raise ShapeError(f"{n} embeddings have labels {y.shape}; expected one each: pair them up")
    classes, counts = np.unique(y, return_counts=True)
    if len(classes) < 2:
        raise ShapeError(f"train has {len(classes)} class; a probe expected at least 2: give labeled images")
    # a class with a single image cannot be in both parts
    stratify = y if counts.min() > 1 and n // 10 >= len(classes) else None
    fit, val = train_test_split(np.arange(n), test_size=0.1, random_state=seed, stratify=stratify)
    return fit, val


def as_head(weight: Tensor, bias: Tensor, mean: Any, scale: Any, classes: Int[Tensor, " c"]) -> nn.Linear:
    """A layer on raw embeddings from weights (c, d) and bias (c,) on standardized ones, rows numbered as classes."""
    mean, scale = (torch.as_tensor(part, dtype=torch.float64) for part in (mean, scale))
    rows = weight.detach().cpu().double() / scale
    head = nn.Linear(weight.shape[1], int(classes.max()) + 1)
    with torch.no_grad():
        head.weight.zero_()
        head.bias.fill_(ABSENT)
        head.weight[classes] = rows.float()
        head.bias[classes] = (bias.detach().cpu().double() - rows @ mean).float()
    return head.requires_grad_(False)


def _descend(
    draw: Draw, y: Tensor, rows: Tensor, strengths: Sequence[float], seed: int
) -> tuple[Float[Tensor, "s c d"], Float[Tensor, "s c"]]:
    """One classifier per strength, all on the same steps; the objective is scikit-learn's over n C."""
    generator = torch.Generator().manual_seed(seed)
    penalty = torch.tensor([1 / (2 * c * len(rows)) for c in strengths], device=y.device)
    d, n_classes = draw(rows[:1], generator).shape[1], int(y.max()) + 1
    weight = torch.zeros(len(strengths), n_classes, d, device=y.device, requires_grad=True)
    bias = torch.zeros(len(strengths), n_classes, device=y.device, requires_grad=True)
    optimizer = torch.optim.Adam([weight, bias], lr=RATE)
    for step in range(STEPS):
        optimizer.param_groups[0]["lr"] = RATE * (1 + math.cos(math.pi * step / STEPS)) / 2
        batch = rows[torch.randint(len(rows), (min(BATCH, len(rows)),), generator=generator)]
        logits = torch.einsum("bd,scd->bsc", draw(batch, generator), weight) + bias
        target = y[batch.to(y.device)].unsqueeze(1).expand(-1, len(strengths))
        loss = F.cross_entropy(logits.flatten(0, 1), target.flatten(), reduction="sum") / len(batch)
        optimizer.zero_grad()
        (loss + (penalty * weight.square().sum((1, 2))).sum()).backward()
        optimizer.step()
    return weight.detach(), bias.detach()
