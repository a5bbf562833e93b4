"""Training of an adapter together with a map, on embeddings in memory."""

import logging
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor, nn

from steerable.fitting import fit_embeddings
from steerable.losses import relative, uniformity
from steerable.maps import SteeringMap

HELD = 5  # one image in five is held out
STEPS, BATCH, RATE = 600, 192, 3e-4
EVERY, PATIENCE = 50, 3  # steps between looks at the held-out images, and looks without improvement
WEIGHTS = {"contrast": 1.0, "relative": 1.0, "neighborhood": 1.0, "uniformity": 0.05}
SHARPNESS = 10.0  # of cosines in neighborhoods and, at first, in the contrast
_LOG = logging.getLogger(__name__)


class Table(NamedTuple):
    """Pairs in memory: plain (n, q), theta (n, v, p), moved (n, v, q), original (n, f).

    original is what the encoder's last layer says of the plain images: neighborhoods are kept after it.
    """

    plain: Tensor
    theta: Tensor
    moved: Tensor
    original: Tensor

    def rows(self, index: Int64[Tensor, " b"]) -> "Table":
        return Table(*(part[index] for part in self))

    def held(self) -> tuple["Table", "Table"]:
        """Those to fit to and those held out, by images."""
        mask = torch.arange(len(self.plain)) % HELD == HELD - 1
        return self.rows((~mask).nonzero().flatten()), self.rows(mask.nonzero().flatten())

    def pairs(self) -> dict[str, Tensor]:
        """Arguments of `fit_embeddings`: one row per view, images as groups."""
        n, v = self.theta.shape[:2]
        return {
            "source": self.plain.repeat_interleave(v, dim=0),
            "theta": self.theta.flatten(0, 1),
            "target": self.moved.flatten(0, 1),
            "groups": torch.arange(n).repeat_interleave(v),
        }


def train_adapter(
    adapter: nn.Module, fitted: Table, held: Table, settings: dict[str, Any], *, seed: int
) -> None:
    """Adam on adapter and a map; the adapter is left as at the step of least held-out loss, perhaps the first.

    settings: of `fit_embeddings`, which the map starts from. seed: of the batches.
    """
    with torch.no_grad():
        here = _through(adapter, fitted)
    steering = fit_embeddings(**here.pairs(), **settings)
    steering.requires_grad_(True)
    sharpness = nn.Parameter(fitted.plain.new_tensor(SHARPNESS).log())
    groups = [{"params": list(module.parameters()), "lr": RATE} for module in (adapter, steering)]
    optimizer = torch.optim.Adam([*groups, {"params": [sharpness], "lr": 1e-2}])
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, [RATE, RATE, 1e-2], total_steps=STEPS)
    generator = torch.Generator().manual_seed(seed)
    best, kept, since = _judged(adapter, steering, held, sharpness), _copy(adapter), 0
    first = best
    for step in range(1, STEPS + 1):
        rows = torch.randperm(len(fitted.plain), generator=generator)[:BATCH]
        optimizer.zero_grad()
        _loss(adapter, steering, fitted.rows(rows), sharpness).backward()
        optimizer.step()
        schedule.step()
        if step % EVERY == 0:
            now = _judged(adapter, steering, held, sharpness)
            best, kept, since = (now, _copy(adapter), 0) if now < best else (best, kept, since + 1)
            if since >= PATIENCE:
                break
    _LOG.info("adapter: %d steps, held-out loss %.4f to %.4f", step, first, best)
    adapter.load_state_dict(kept)


def _through(adapter: nn.Module, table: Table) -> Table:
    """The table seen through the adapter."""
    return Table(adapter(table.plain), table.theta, adapter(table.moved), table.original)


def _loss(
    adapter: nn.Module, steering: SteeringMap, batch: Table, sharpness: Float[Tensor, ""]
) -> Float[Tensor, ""]:
    here = _through(adapter, batch)
    steered = steering(here.plain[:, None], here.theta)
    source = here.plain[:, None].expand_as(steered).flatten(0, 1)
    terms = {
        "contrast": _contrast(steered, here.moved, sharpness.exp()),
        "relative": relative(source, here.moved.flatten(0, 1), steered.flatten(0, 1)),
        "neighborhood": _neighborhood(here.plain, here.original),
        "uniformity": uniformity(here.plain),
    }
    total = sharpness.new_zeros(())
    for name, value in terms.items():
        total = total + WEIGHTS[name] * value
    return total


def _contrast(
    steered: Float[Tensor, "b v d"], views: Float[Tensor, "b v d"], sharpness: Float[Tensor, ""]
) -> Float[Tensor, ""]:
    """Cross-entropy of finding the true view among the real views of the same image, by cosine."""
    cosine = torch.einsum("bvd,bwd->bvw", F.normalize(steered, dim=-1), F.normalize(views, dim=-1))
    own = torch.arange(views.shape[1], device=views.device).expand(len(views), -1)
    return F.cross_entropy((sharpness * cosine).flatten(0, 1), own.flatten())


def _neighborhood(e: Float[Tensor, "b d"], original: Float[Tensor, "b f"]) -> Float[Tensor, ""]:
    """Divergence of the batch's neighbor distribution from the original's: who is near whom, by cosine."""
    others = ~torch.eye(len(e), dtype=torch.bool, device=e.device)

    def log_odds(values: Tensor) -> Tensor:
        unit = F.normalize(values - values.mean(0), dim=-1)
        return (SHARPNESS * (unit @ unit.T))[others].view(len(values), -1).log_softmax(-1)

    return F.kl_div(log_odds(e), log_odds(original), log_target=True, reduction="batchmean")


@torch.no_grad()
def _judged(adapter: nn.Module, steering: SteeringMap, held: Table, sharpness: Tensor) -> float:
    rows = torch.arange(len(held.plain)).split(BATCH)
    whole = [part for part in rows if len(part) > 1]
    return sum(
        float(_loss(adapter, steering, held.rows(part), sharpness)) * len(part) for part in whole
    ) / sum(map(len, whole))


def _copy(module: nn.Module) -> dict[str, Tensor]:
    return {key: value.clone() for key, value in module.state_dict().items()}
