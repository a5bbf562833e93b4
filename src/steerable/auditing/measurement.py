"""One audit under way: thetas are drawn, views encoded and measured, coordinate by coordinate."""

from collections.abc import Iterator

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from steerable.auditing import plan as plans
from steerable.auditing.bench import Bench, Raw, Tap
from steerable.auditing.examples import find_examples
from steerable.auditing.measure import (
    Figures,
    decoding_figures,
    law_figures,
    motion_figures,
    neighbor_accuracy,
    rank_figures,
)
from steerable.auditing.plan import Plan
from steerable.auditing.report import JOINT, Example, LayerRow, Row
from steerable.encoders.layers import FINAL
from steerable.errors import FitError
from steerable.fitting import fit_embeddings
from steerable.maps import IdentityMap, SteeringMap
from steerable.model import steering_for
from steerable.theta import Param

_UNRANKED: Figures = dict.fromkeys(("mrr", "hit_at_1", "hit_at_5"))  # of a switch, which has one view


class Measurement:
    """What `run` leaves: rows, depth (rows of layers), examples, notes, and the accuracy of neighbors by model.

    labels: (n,) of all images, or None.
    """

    def __init__(
        self, bench: Bench, plan: Plan, generator: torch.Generator, labels: Int64[Tensor, " n"] | None
    ):
        self.bench, self.plan, self.generator = bench, plan, generator
        self.chain, self.labels = bench.chain, labels
        self.rows: list[Row] = []
        self.depth: list[LayerRow] = []
        self.examples: list[Example] = []
        self.notes: list[str] = []
        self.accuracy: dict[str, float | None] = {}
        self.maps: list[tuple[Tap, dict[str, SteeringMap]]] = []
        self.decoding: dict[str, list[float | None]] = {}
        self.plain: Raw = {}

    def run(self) -> None:
        """Encode and measure everything, in the order of the report."""
        others = self.bench.encode("plain images", self.plan.ridge)
        self.plain = self.bench.encode("plain images", self.plan.measured)
        taps = self.bench.taps()
        for tap in taps:
            unscaled = tap.neck is None and tap.layers.keys() != {FINAL}
            if tap.layer or (unscaled and self._mapless(tap)):
                tap.standardize(others)
        if self.labels is not None:
            parts = self.labels[self.plan.ridge], self.labels[self.plan.measured]
            for tap in taps[: len(self.bench.models)]:
                self.accuracy[tap.model] = neighbor_accuracy(tap(others), parts[0], tap(self.plain), parts[1])
        self._fit(taps, others)
        self._joint()
        for place, param in enumerate(self.chain.params):
            self._alone(place, param)
            self._by_strength(place, param)

    def _fit(self, taps: list[Tap], others: Raw) -> None:
        """The maps of each tap, by what stands in ``Row.steering``; of a layer the ridge map alone."""
        rows, per = self.plan.ridge, self.plan.ridge_views
        theta = self.chain.sample(len(rows) * per, generator=self.generator)
        target = self.bench.encode("pairs for the ridge map", rows.repeat_interleave(per), theta)
        groups = torch.arange(len(rows)).repeat_interleave(per)
        for tap in taps:
            own = {} if tap.layer else {"map": self.bench.models[tap.model].steering}
            with self.bench.timed(tap.model):
                ridge = self._ridge(tap, tap(others).cpu()[groups], theta, tap(target).cpu(), groups)
            maps = own | ({} if ridge is None else {"ridge": ridge.to(self.plain[tap.model].device)})
            if not tap.layer:
                maps["identity"] = IdentityMap(self.bench.models[tap.model].dim, len(self.chain.params))
            if not tap.layer and self._mapless(tap) and ridge is not None:
                self.notes.append(
                    f"{tap.model} came without a map; the ridge map, fitted to {len(rows)} images that are not "
                    "measured, stands in for it."
                )
            self.maps.append((tap, maps))

    def _ridge(
        self,
        tap: Tap,
        source: Float[Tensor, "m d"],
        theta: Float[Tensor, "m p"],
        target: Float[Tensor, "m d"],
        groups: Int64[Tensor, " m"],
    ) -> SteeringMap | None:
        """A basis map on the features of the model's own, or on first-order ones where that is the identity."""
        fresh = self.bench.models[tap.model].steering
        if self._mapless(tap):
            fresh = steering_for(self.chain, fresh.dim)
        settings = {"features": fresh.features, "groups": groups, "projection": "auto", "strict": False}
        try:
            return fit_embeddings(source, theta, target, **settings).requires_grad_(False)
        except FitError as error:
            self.notes.append(f"{' '.join(filter(None, (tap.model, tap.layer)))}: no ridge map: {error}")
            return None

    def _joint(self) -> None:
        """All coordinates at once, as the chain draws them."""
        what, plan, rows = "all parameters together", self.plan, self.plan.measured
        n, p = len(rows), len(self.chain.params)
        theta = self.chain.sample(n * plans.JOINT_VIEWS, generator=self.generator).view(n, -1, p)
        target = self.bench.encode_views(what, rows, theta)
        pool_theta = self.chain.sample(plan.pool * plan.views, generator=self.generator).view(
            plan.pool, -1, p
        )
        pool = self.bench.encode_views(what, rows[: plan.pool], pool_theta)
        half = n // 2 * plans.JOINT_VIEWS
        for tap, maps in self.maps:
            e, wanted, ranked = tap(self.plain), tap(target), tap(pool)
            pairs = e[:, None].expand_as(wanted).flatten(0, 1), wanted.flatten(0, 1)
            for steering, map_ in maps.items():
                steered = map_(e[:, None], theta.to(e.device)).flatten(0, 1)
                found = map_(e[: plan.pool, None], pool_theta.to(e.device))
                figures = motion_figures(*pairs, steered) | rank_figures(found, ranked)
                self._keep(tap, steering, JOINT, None, figures)
            if tap.layer:
                continue
            self.decoding[tap.model] = decoding_figures(*pairs, theta.flatten(0, 1), half)
            lead = maps.get("ridge") if self._mapless(tap) else maps["map"]
            if lead is not None:
                self.examples += find_examples(tap.model, lead, e, wanted[:, 0], theta[:, 0], rows)

    def _alone(self, place: int, param: Param) -> None:
        """One coordinate over its range, the others at zero."""
        plan, p, rows = self.plan, len(self.chain.params), self.plan.measured
        theta = plans.only(plans.drawn_alone(param, len(rows), self.generator), place, p)
        second = plans.only(plans.drawn_alone(param, len(rows), self.generator), place, p)
        target = self.bench.encode(param.name, rows, theta)
        pool = None
        grid = plans.only(plans.spaced(param, plan.views), place, p)
        if not param.is_switch:
            pool = self.bench.encode_views(param.name, rows[: plan.alone], grid.expand(plan.alone, -1, -1))
        for tap, steering, map_ in self._each():
            e = tap(self.plain)
            a, b = theta.to(e.device), second.to(e.device)
            figures = motion_figures(e, tap(target), map_(e, a)) | _UNRANKED
            if not tap.layer:
                figures |= law_figures(map_, e, a, b, self.chain.params)
                figures["decoding_r2"] = self.decoding[tap.model][place]
            if pool is not None:
                figures |= rank_figures(map_.orbit(e[: plan.alone], grid.to(e.device)), tap(pool))
            self._keep(tap, steering, param.name, None, figures)

    def _by_strength(self, place: int, param: Param) -> None:
        """One coordinate at each level of its range, the others at zero; not of layers."""
        plan, rows = self.plan, self.plan.measured[: self.plan.pool]
        values = plans.levels(param, plan.strengths)
        grid = plans.only(torch.tensor(values), place, len(self.chain.params))
        targets = self.bench.encode_views(param.name, rows, grid.expand(len(rows), -1, -1))
        for tap, steering, map_ in self._each():
            if tap.layer:
                continue
            e, target = tap(self.plain)[: plan.pool], tap(targets)
            steered = map_.orbit(e, grid.to(e.device))
            for i, value in enumerate(values):
                self._keep(tap, steering, param.name, value, motion_figures(e, target[:, i], steered[:, i]))

    def _each(self) -> Iterator[tuple[Tap, str, SteeringMap]]:
        return ((tap, steering, map_) for tap, maps in self.maps for steering, map_ in maps.items())

    def _mapless(self, tap: Tap) -> bool:
        return isinstance(self.bench.models[tap.model].steering, IdentityMap)

    def _keep(self, tap: Tap, steering: str, param: str, value: float | None, figures: Figures) -> None:
        if tap.layer:
            self.depth.append(LayerRow(tap.model, tap.layer, len(tap.columns), param, figures))
        else:
            self.rows.append(Row(tap.model, steering, param, value, figures))
