"""SteerableEncoder: an encoder, the chain that moves its images, and the map that moves its embeddings."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import ModelHubMixin
from jaxtyping import Float
from torch import Tensor, nn

from steerable.bundle import Parts, locate, read_bundle, rebuilding, write_bundle
from steerable.encoders import Encoder, digest_of
from steerable.errors import LawError, ShapeError, ThetaError
from steerable.maps import Features, SteeringMap
from steerable.maps import build as build_map
from steerable.theta import Laws, Param, check_theta, named_theta, wrap
from steerable.transforms import Chain, Transform
from steerable.transforms import build as build_chain


class SteerableEncoder(nn.Module, ModelHubMixin, library_name="steerable", tags=["steerable"]):
    """Images to embeddings, and embeddings to what the transformed images would have given.

    Args:
        encoder: an `Encoder`, or any module from normalized images (b, 3, h, w) to (b, d), which is wrapped
            with ImageNet's mean and standard deviation and without resizing.
        chain: a `Chain`, one transform, a preset's name, or a chain's config.
        steering: the map; None is the identity, for embedding only or for `fit`. See `steering_for`.
        head: a linear classifier on embeddings that is saved along.
        classes: names of the head's outputs.
        record: how the model was made (seconds, passes, figures ...), JSON-able; saved along, and no part of
            the fingerprint.

    Raises:
        ShapeError: the widths of encoder, map and head differ, or classes do not match the head.
        ThetaError: the map has another number of coordinates than the chain.
        LawError: the map declares, for some coordinate, a law that the chain lacks there.
    """

    def __init__(
        self,
        encoder: Encoder | nn.Module,
        chain: Chain | Transform | str | Mapping[str, Any],
        steering: SteeringMap | None = None,
        *,
        head: nn.Linear | None = None,
        classes: Sequence[str] = (),
        record: Mapping[str, Any] | None = None,
    ):
        super().__init__()
        self.encoder = encoder if isinstance(encoder, Encoder) else Encoder(encoder)
        self.chain = _as_chain(chain)
        self.steering = steering_for(self.chain, self.dim, "identity") if steering is None else steering
        self.head = head
        self.classes = tuple(classes)
        self.record = dict(record or {})
        _check_parts(self)

    @property
    def dim(self) -> int:
        """Width d of the embedding."""
        return self.encoder.dim

    @property
    def params(self) -> tuple[Param, ...]:
        """The coordinates of theta, in the order of its columns."""
        return self.chain.params

    @property
    def device(self) -> torch.device:
        """Where the encoder computes."""
        return self.encoder.mean.device

    def forward(self, images: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b d"]:
        """Embeddings with gradients, in the mode that the module is in, unchecked: for training."""
        return self.encoder(images)

    def encode(self, images: Tensor, *, batch_size: int = 256) -> Float[Tensor, "b d"]:
        """Embeddings (b, d), float32, not normalized, on the model's device; no gradients, evaluation mode.

        images: (b, 3, h, w), floating RGB in [0, 1], on any device; ``batch_size`` of them travel at a time.

        Raises:
            ShapeError: another shape or type, values outside [0, 1], or values that are not finite.
        """
        return self.encoder.encode(images, batch_size=batch_size)

    def theta(self, **values: float) -> Float[Tensor, " p"]:
        """Theta (p,) with the named coordinates set, in their units, and the others zero.

        Raises:
            ThetaError: an unknown name (the nearest is suggested), or a value that is not finite.
        """
        return named_theta(self.params, values)

    def steer(self, e: Tensor, theta: Tensor) -> Float[Tensor, "*batch d"]:
        """M(theta) e + b(theta), the predicted embeddings of the transformed images.

        e: (b, d). theta: (b, p), or (p,) for all. In general, leading axes broadcast.
        Both may lie on any device; the result lies on the map's.

        Raises:
            ShapeError, ThetaError: shapes, types, or values that are not finite.
        """
        return self.steering(*self._place(e, theta))

    def orbit(self, e: Tensor, thetas: Tensor) -> Float[Tensor, "b v d"]:
        """All steered versions (b, v, d) of embeddings (b, d) at thetas (v, p).

        Raises:
            ShapeError, ThetaError: shapes, types, or values that are not finite.
        """
        return self.steering.orbit(*self._place(e, thetas))

    def pairs(
        self, images: Iterable[Tensor], *, views: int = 1, generator: torch.Generator
    ) -> Iterator[tuple[Tensor, Tensor, Tensor, Tensor]]:
        """Batches (source (n, d), theta (n, p), target (n, d), image ids (n,)): what `fit_embeddings` reads.

        images: batches (b, 3, h, w) as `encode` takes them; each image is encoded once plain and ``views`` times
        transformed by thetas of its own, one batch of pairs each.
        """
        seen = 0
        for batch in images:
            source = self.encode(batch)
            ids = torch.arange(seen, seen + len(batch))
            seen += len(batch)
            for _ in range(views):
                theta = self.chain.sample(len(batch), generator=generator)
                yield source, theta, self.encode(self.chain.apply(batch, theta)), ids

    def outside(self, theta: Tensor) -> tuple[str, ...]:
        """Names of the coordinates in which some row of theta (..., p) leaves the chain's range.

        Out there the map extrapolates. Coordinates with a period are wrapped first.

        Raises:
            ThetaError: shape or values of theta.
        """
        rows = wrap(check_theta(theta, self.params), self.params).reshape(-1, len(self.params))
        slack = [1e-6 * param.scale for param in self.params]
        return tuple(
            param.name
            for param, column, s in zip(self.params, rows.T, slack, strict=True)
            if bool(((column < param.low - s) | (column > param.high + s)).any())
        )

    def fingerprint(self) -> str:
        """sha256 of everything that decides embeddings and steering: equal fingerprints answer equally."""
        parts = {
            "encoder": self.encoder.fingerprint(),
            "chain": self.chain.config(),
            "steering": self.steering.config(),
            "classes": self.classes,
        }
        modules = [("steering", self.steering), *([("head", self.head)] if self.head is not None else [])]
        weights = (
            (f"{name}.{key}", value)
            for name, module in modules
            for key, value in sorted(module.state_dict().items())
        )
        return digest_of(parts, weights)

    def save_pretrained(  # the Hub mixin's own would delete config.json before it writes
        self,
        save_directory: str | Path,
        *,
        store_encoder: bool = True,
        repo_id: str | None = None,
        push_to_hub: bool = False,
        **hub: Any,
    ) -> str | None:
        """Write a bundle: config.json, model.safetensors, steering.safetensors, README.md.

        save_directory: a folder that is empty, new, or a bundle (which is overwritten).
        store_encoder: False keeps only the encoder's name and fingerprint; loading builds it by that name.
        repo_id, push_to_hub, hub: as in ``huggingface_hub.ModelHubMixin``; returns the address if pushed.

        Raises:
            BundleError: the folder holds something else, or the encoder cannot be stored as asked.
        """
        folder = Path(save_directory)
        parts = Parts(self.encoder, self.chain, self.steering, self.head, self.classes, self.record)
        write_bundle(folder, parts, store_encoder=store_encoder)
        return self.push_to_hub(repo_id or folder.resolve().name, **hub) if push_to_hub else None

    @classmethod
    def from_pretrained(
        cls,
        source: str | Path,
        *,
        encoder: nn.Module | None = None,
        device: str | torch.device | None = None,
        **hub: Any,
    ) -> "SteerableEncoder":  # not Self, which beartype cannot check
        """Read a bundle, in evaluation mode; files are checked before use, and nothing in them is run.

        source: a folder, or the id of a Hub repository.
        encoder: needed where the bundle was made with a module of your own: such a module; the stored weights
            are loaded into it, in place.
        hub: revision, token, cache_dir, local_files_only, as in ``huggingface_hub.snapshot_download``.

        Raises:
            BundleError: missing, damaged, foreign, of a newer format, or not fitting ``encoder``.
        """
        folder = locate(source, **hub)
        parts = read_bundle(folder, encoder=encoder)
        with rebuilding(folder, "model"):
            model = cls(
                parts.encoder,
                parts.chain,
                parts.steering,
                head=parts.head,
                classes=parts.classes,
                record=parts.record,
            )
        return model.to(device).eval()

    def _place(self, e: Tensor, theta: Tensor) -> tuple[Tensor, Tensor]:
        theta = check_theta(theta, self.params).to(self.device)
        return (e.to(self.device) if isinstance(e, Tensor) else e), theta


def steering_for(
    chain: Chain | Transform | str | Mapping[str, Any],
    dim: int,
    map: str = "basis",
    features: str = "linear",
    **kwargs: Any,
) -> SteeringMap:
    """A fresh map that fits a chain: coordinates, scales, periods and laws are the chain's.

    Each coordinate is divided by the largest absolute value of its range, so that features are of order one.
    Switches (flips) enter without their period: they are only ever 0 or 1.

    Args:
        chain: as in `SteerableEncoder`.
        dim: width of the embedding.
        map: a key of `steerable.maps.MAPS`.
        features: an expansion, such as "linear+squares".
        kwargs: the family's own arguments, such as ``rank=32``.

    Raises:
        ConfigError: unknown map, features or argument.
    """
    chain = _as_chain(chain)
    settings = {"features": features_for(chain, features).config(), "laws": chain.param_laws, **kwargs}
    return build_map({"name": map, "dim": dim, "n_params": len(chain.params), **settings})


def features_for(chain: Chain, expansion: str) -> Features:
    """phi for a chain: scales, periods and the places of its crop are the chain's, as `steering_for` says."""
    scales = [param.scale for param in chain.params]
    periods = [None if param.is_switch else param.period for param in chain.params]
    return Features(expansion, len(chain.params), scales, periods, chain.window)


def _as_chain(chain: Chain | Transform | str | Mapping[str, Any]) -> Chain:
    if isinstance(chain, Chain):
        return chain
    return Chain([chain]) if isinstance(chain, Transform) else build_chain(chain)


def _check_parts(model: SteerableEncoder) -> None:
    dim, chain, steering, head = model.dim, model.chain, model.steering, model.head
    if steering.dim != dim:
        raise ShapeError(
            f"the map is for embeddings of width {steering.dim} and the encoder gives {dim}; expected equal "
            f"widths: build the map with steering_for(chain, dim={dim})"
        )
    if steering.n_params != len(chain.params):
        names = ", ".join(param.name for param in chain.params)
        raise ThetaError(
            f"the map has {steering.n_params} coordinates and the chain {len(chain.params)} ({names}); "
            "expected as many: build the map with steering_for(chain, dim)"
        )
    for param, own, has in zip(chain.params, steering.param_laws, chain.param_laws, strict=True):
        extra = own & ~has
        if extra:
            names = ", ".join(law.name for law in Laws if law in extra and law.name)
            raise LawError(
                f"the map declares {names} for {param.name}, which the chain lacks there; expected the "
                "chain's laws at most: build the map with steering_for(chain, dim), or with "
                "laws=chain.param_laws"
            )
    if head is not None and head.in_features != dim:
        raise ShapeError(
            f"the head takes embeddings of width {head.in_features} and the encoder gives {dim}; expected "
            f"equal widths: use nn.Linear({dim}, classes)"
        )
    if model.classes and (head is None or head.out_features != len(model.classes)):
        got = "there is no head" if head is None else f"the head has {head.out_features} outputs"
        raise ShapeError(
            f"{len(model.classes)} classes are named and {got}; expected one name per output: correct "
            "classes="
        )
