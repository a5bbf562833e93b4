"""Which images a steered embedding lands beside, against where the transformed image itself lands."""

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor

from steerable.auditing.report import Example, View
from steerable.maps import SteeringMap

EXAMPLES = 6
NEIGHBORS = 5


def find_examples(
    model: str,
    map_: SteeringMap,
    plain: Float[Tensor, "n d"],
    target: Float[Tensor, "n d"],
    theta: Float[Tensor, "n p"],
    rows: Int64[Tensor, " n"],
) -> list[Example]:
    """Examples from the first images: neighbors by cosine among plain and transformed views of the others.

    plain, target: embeddings of the images as they are, and under ``theta``. rows: their places in the set.
    """
    n = len(plain)
    count = min(EXAMPLES, n)
    gallery = F.normalize(torch.cat([plain, target]), dim=-1)
    views = [View(int(row)) for row in rows] + [
        View(int(row), tuple(values)) for row, values in zip(rows, theta.tolist(), strict=True)
    ]
    steered = F.normalize(map_(plain[:count], theta[:count].to(plain.device)), dim=-1)
    found = []
    for i in range(count):
        own = torch.tensor([i, n + i], device=plain.device)
        nearest = []
        for query in (steered[i], gallery[n + i]):
            similarity = (gallery @ query).index_fill(0, own, -torch.inf)
            order = similarity.topk(min(NEIGHBORS, 2 * n - 2)).indices.tolist()
            nearest.append(tuple(views[j] for j in order))
        found.append(Example(model, views[n + i], *nearest))
    return found
