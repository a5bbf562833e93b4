"""Thresholds and combinations of scores, calibrated on in-distribution data alone."""

import math
from collections.abc import Mapping

import torch
from jaxtyping import Float
from torch import Tensor

from steerable.errors import ConfigError, FitError, one_of

RULES = ("fisher", "mean_z", "max")


def threshold(scores: Float[Tensor, " n"], *, keep: float = 0.95) -> float:
    """The score that the share ``keep`` of in-distribution scores stays at or below; above it is flagged.

    Raises:
        ConfigError: keep outside (0, 1].
    """
    if not 0 < keep <= 1:
        raise ConfigError(f"keep is {keep}; expected a share above 0 and up to 1, such as 0.95: correct it")
    return torch.quantile(scores.double(), keep, interpolation="higher").item()


class Combination:
    """Several scores made one, by their distributions on in-distribution validation images; no foreign data.

    "mean_z": mean of (score - mean) / deviation. "fisher": with p the share of validation scores at or above
    the score, - 2 sum log p (Fisher's method; the scores are not independent, so the value is no
    chi-square, only an order). "max": the largest of - log p.
    Beyond the last validation score p is continued by the deviation, so that far scores stay ordered.
    """

    def __init__(self, rule: str = "mean_z"):
        if rule not in RULES:
            raise ConfigError(f"rule is {rule!r}; {one_of(rule, RULES)}")
        self.rule = rule

    def fit(self, scores: Mapping[str, Float[Tensor, " n"]]) -> "Combination":
        """scores: name -> (n,), of in-distribution images that no detector was fitted on.

        Raises:
            FitError: no score, or one that does not vary.
        """
        still = [name for name, values in scores.items() if not values.double().std() > 0]
        if not scores or still:
            what = f"{', '.join(still)} does not vary" if still else "there are no scores"
            raise FitError(f"{what}; expected scores that tell images apart: leave these out")
        self.reference = {name: values.double().sort().values for name, values in scores.items()}
        return self

    def combine(self, scores: Mapping[str, Float[Tensor, " b"]]) -> Float[Tensor, " b"]:
        """Scores (b,) from the same names as in `fit`.

        Raises:
            ConfigError: other names.
        """
        if scores.keys() != self.reference.keys():
            raise ConfigError(
                f"scores are {', '.join(scores)}; expected {', '.join(self.reference)}: give the same ones"
            )
        parts = torch.stack([self._surprise(name, values.double()) for name, values in scores.items()])
        return (parts.amax(0) if self.rule == "max" else parts.mean(0)).float()

    def _surprise(self, name: str, values: Float[Tensor, " b"]) -> Float[Tensor, " b"]:
        reference = self.reference[name].to(values.device)
        deviation = reference.std()
        if self.rule == "mean_z":
            return (values - reference.mean()) / deviation
        above = len(reference) - torch.searchsorted(reference, values)
        tail = (-(values - reference[-1]).clamp(min=0) / deviation).exp()
        return math.log(len(reference) + 1) - torch.log(above + tail)
