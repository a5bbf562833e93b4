"""The audit: encode images and their views, measure every map on them, put the figures into one report."""

from collections.abc import Iterator, Mapping

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from steerable.auditing import plan as plans
from steerable.auditing.bench import Bench, Progress
from steerable.auditing.examples import find_examples
from steerable.auditing.measure import Figures, decoding_figures, law_figures, motion_figures, rank_figures
from steerable.auditing.plan import Plan, make_plan
from steerable.auditing.report import JOINT, AuditReport, Example, ModelInfo, Row
from steerable.data import ImageSet
from steerable.errors import ConfigError, FitError, ShapeError
from steerable.fitting import fit_embeddings
from steerable.maps import IdentityMap, SteeringMap
from steerable.model import SteerableEncoder, steering_for
from steerable.theta import Param
from steerable.transforms import Chain

MAX_UNKNOWNS = 6000  # rows of the ridge map's normal equations: k (d + 1); memory grows with the square

_UNRANKED: Figures = dict.fromkeys(("mrr", "hit_at_1", "hit_at_5"))  # of a switch, which has one view


def audit(
    model: SteerableEncoder | Mapping[str, SteerableEncoder],
    images: ImageSet | Tensor,
    *,
    views: int = 50,
    n_images: int = 500,
    n_pool: int = 100,
    strengths: int = 5,
    seed: int = 0,
    progress: Progress | None = None,
) -> AuditReport:
    """Measure how far embeddings move with each parameter and how well the map predicts it.

    Beside each model's own map stand the identity, and "ridge": a basis map with the same features fitted
    afterwards on images that are not measured, which says what any such map can do on this encoder.
    What each figure means is written in docs/protocols.md.

    Args:
        model: one model, or several by name, which are then audited on the same images and thetas.
        images: an ImageSet, or (n, 3, h, w) uint8 or floating in [0, 1]; 4 at least; half are measured.
        views: size of the pool of views of one image that ranks are counted in.
        n_images: images measured at most.
        n_pool: those of them whose views are ranked; half as many for the pools of one coordinate alone.
        strengths: levels on each side of zero for the curves.
        seed: of the choice of images and thetas: equal seeds choose equally, on every machine.
        progress: called with (encoder passes done, passes in all, what is measured); passes count all models.

    Raises:
        ConfigError: no models, models with different chains, or numbers out of range.
        DataError: fewer than four images.
        ShapeError: a tensor that holds no images, or values that are not finite.
    """
    models = dict(model) if isinstance(model, Mapping) else {"model": model}
    chain = _common_chain(models)
    pixels, source = _pixels(images)
    generator = torch.Generator().manual_seed(seed)
    plan = make_plan(
        len(pixels), views=views, n_images=n_images, n_pool=n_pool, strengths=strengths, generator=generator
    )
    bench = Bench(models, chain, pixels, plan.passes(chain.params), progress)
    with torch.no_grad():
        rows, examples, notes = _Measurement(bench, plan, generator).run()
    return AuditReport(
        source=source,
        image_size=(pixels.shape[2], pixels.shape[3]),
        seed=seed,
        views=views,
        strengths=strengths,
        counts=plan.counts,
        chain=chain.config(),
        params=chain.params,
        models=tuple(_info(bench, name) for name in models),
        rows=rows,
        examples=examples,
        notes=notes,
    )


class _Measurement:
    """One audit under way: thetas are drawn, views encoded and measured, coordinate by coordinate."""

    def __init__(self, bench: Bench, plan: Plan, generator: torch.Generator):
        self.bench, self.plan, self.generator = bench, plan, generator
        self.chain = bench.chain
        self.rows: list[Row] = []
        self.examples: list[Example] = []
        self.notes: list[str] = []
        self.plain = bench.encode("plain images", plan.measured)
        self.maps = self._all_maps()
        self.decoding: dict[str, list[float | None]] = {}

    def run(self) -> tuple[tuple[Row, ...], tuple[Example, ...], tuple[str, ...]]:
        self._joint()
        for place, param in enumerate(self.chain.params):
            self._alone(place, param)
            self._by_strength(place, param)
        return tuple(self.rows), tuple(self.examples), tuple(self.notes)

    def _all_maps(self) -> dict[str, dict[str, SteeringMap]]:
        """The maps of each model, by what stands in ``Row.steering``."""
        what, rows, per = "pairs for the ridge map", self.plan.ridge, self.plan.ridge_views
        theta = self.chain.sample(len(rows) * per, generator=self.generator)
        source = self.bench.encode(what, rows)
        target = self.bench.encode(what, rows.repeat_interleave(per), theta)
        groups = torch.arange(len(rows)).repeat_interleave(per)
        maps: dict[str, dict[str, SteeringMap]] = {}
        for name, model in self.bench.models.items():
            with self.bench.timed(name):
                ridge = self._ridge(name, source[name], theta, target[name], groups)
            maps[name] = {"map": model.steering, **({} if ridge is None else {"ridge": ridge})}
            maps[name]["identity"] = IdentityMap(model.dim, len(self.chain.params))
        return maps

    def _ridge(
        self,
        name: str,
        source: Float[Tensor, "n d"],
        theta: Float[Tensor, "m p"],
        target: Float[Tensor, "m d"],
        groups: Int64[Tensor, " m"],
    ) -> SteeringMap | None:
        """A basis map on the model's own features, or on first-order ones where its map is the identity."""
        model = self.bench.models[name]
        own = not isinstance(model.steering, IdentityMap)
        features = (model.steering if own else steering_for(self.chain, model.dim)).features
        unknowns = features.n_features * (model.dim + 1)
        if unknowns > MAX_UNKNOWNS:
            self.notes.append(
                f"{name}: no ridge map, as its {unknowns} unknowns per output are more than {MAX_UNKNOWNS} "
                f"(width {model.dim}, {features.n_features} features)"
            )
            return None
        pairs = source.cpu()[groups], theta, target.cpu()
        try:
            ridge = fit_embeddings(*pairs, map="basis", features=features, groups=groups, strict=False)
        except FitError as error:
            self.notes.append(f"{name}: no ridge map: {error}")
            return None
        return ridge.to(source.device).requires_grad_(False)

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
        for name, steering, map_ in self._each():
            e, wanted = self.plain[name], target[name]
            pairs = e[:, None].expand_as(wanted).flatten(0, 1), wanted.flatten(0, 1)
            if steering == "map":
                self.decoding[name] = decoding_figures(*pairs, theta.flatten(0, 1), half)
            steered = map_(e[:, None], theta.to(e.device)).flatten(0, 1)
            ranked = map_(e[: plan.pool, None], pool_theta.to(e.device))
            figures = motion_figures(*pairs, steered) | rank_figures(ranked, pool[name])
            self.rows.append(Row(name, steering, JOINT, None, figures))
            if steering == "map":
                found = find_examples(name, map_, e, wanted[:, 0], theta[:, 0], rows)
                self.examples.extend(found)

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
        for name, steering, map_ in self._each():
            e = self.plain[name]
            a, b = theta.to(e.device), second.to(e.device)
            figures = motion_figures(e, target[name], map_(e, a))
            figures |= law_figures(map_, e, a, b, self.chain.params)
            figures["decoding_r2"] = self.decoding[name][place]
            figures |= _UNRANKED
            if pool is not None:
                figures |= rank_figures(map_.orbit(e[: plan.alone], grid.to(e.device)), pool[name])
            self.rows.append(Row(name, steering, param.name, None, figures))

    def _by_strength(self, place: int, param: Param) -> None:
        """One coordinate at each level of its range, the others at zero."""
        plan, rows = self.plan, self.plan.measured[: self.plan.pool]
        values = plans.levels(param, plan.strengths)
        grid = plans.only(torch.tensor(values), place, len(self.chain.params))
        targets = self.bench.encode_views(param.name, rows, grid.expand(len(rows), -1, -1))
        for name, steering, map_ in self._each():
            e = self.plain[name][: plan.pool]
            steered = map_.orbit(e, grid.to(e.device))
            for i, value in enumerate(values):
                figures = motion_figures(e, targets[name][:, i], steered[:, i])
                self.rows.append(Row(name, steering, param.name, value, figures))

    def _each(self) -> Iterator[tuple[str, str, SteeringMap]]:
        return ((name, steering, map_) for name, maps in self.maps.items() for steering, map_ in maps.items())


def _info(bench: Bench, name: str) -> ModelInfo:
    model = bench.models[name]
    return ModelInfo(
        name, model.encoder.name, model.dim, model.steering.name, bench.passes, round(bench.seconds[name], 2)
    )


def _common_chain(models: Mapping[str, SteerableEncoder]) -> Chain:
    if not models:
        raise ConfigError("there are no models to audit; expected at least one: pass a SteerableEncoder")
    (first, chain), *others = ((name, model.chain) for name, model in models.items())
    for name, other in others:
        if other.config() != chain.config():
            raise ConfigError(
                f"models {first!r} and {name!r} have different chains ({chain}, {other}); expected equal "
                "ones, so that they meet the same thetas: audit them one by one"
            )
    return chain


def _pixels(images: ImageSet | Tensor) -> tuple[Tensor, str]:
    """(n, 3, h, w) uint8 or floating, and a name for reports."""
    if isinstance(images, ImageSet):
        return images.images, images.name or "images"
    if not isinstance(images, Tensor) or images.ndim != 4 or images.shape[1] != 3:
        got = tuple(images.shape) if isinstance(images, Tensor) else type(images).__name__
        raise ShapeError(
            f"images are {got}; expected an ImageSet or a tensor (n, 3, h, w): use data.load_images"
        )
    if images.dtype != torch.uint8 and not bool(torch.isfinite(images).all()):
        raise ShapeError(
            "images hold values that are not finite; expected RGB in [0, 1]: drop or repair those images"
        )
    return images, "images"
