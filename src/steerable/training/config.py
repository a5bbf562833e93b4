"""The settings of a training run; a recipe is one of these as YAML."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from steerable.errors import ConfigError, one_of

EQUIVARIANCE = ("squared", "relative", "contrastive", "instance", "vicreg")
PREDICTION = ("chain", "base")


@dataclass
class DataConfig:
    """Where images come from."""

    source: str = "photos"
    """photos, an image folder, a parquet glob, or a Hub data set's name"""
    size: int | None = None
    """side in pixels that images are cut to; none keeps their own"""
    train_limit: int | None = None
    """use that many training images, drawn by the seed 0; none uses all"""
    test_limit: int | None = None
    """use that many test images"""
    stream: bool = False
    """read training images from parquet shards as they are needed: they then need not fit into memory"""
    workers: int = 2
    """processes that decode a stream, for each training process; 0 decodes between the steps"""
    shuffle: int = 2048
    """images among which each of them draws the next one"""
    root: str | None = None
    """local data: a folder that holds a copy of the source, or is what to use in its place"""


@dataclass
class EncoderConfig:
    """The network to train; see ``steerable.encoders.load_encoder``."""

    name: str = "timm/resnet10t"
    """timm/NAME, timm/hf-hub:NAME or timm/local-dir:PATH"""
    pretrained: bool = False
    """start from the weights that the name stands for"""
    weights: str | None = None
    """a checkpoint file to start from"""
    stem: Literal["cifar"] | None = None
    """cifar: a 3x3 stride-1 stem without pooling, for images of about 32 pixels (ResNets)"""
    width: int | None = None
    """channels of a ResNet's first stage; later stages double it"""
    image_size: int | None = None
    """side in pixels that the encoder resizes to; none takes what the weights say"""
    model_args: dict[str, Any] = field(default_factory=dict)
    """passed on to timm.create_model"""


@dataclass
class OptimizerConfig:
    """Optimizer and schedule: linear warm-up, then cosine to zero."""

    name: Literal["adamw", "sgd"] = "adamw"
    """the method"""
    lr: float = 2e-3
    """peak learning rate"""
    weight_decay: float = 0.05
    """not applied to biases, norms and the steering map"""
    momentum: float = 0.9
    """of sgd"""
    warmup: float = 0.1
    """share of all steps"""
    steering_lr: float = 1.0
    """learning rate of the steering map, as a multiple of lr"""
    clip_norm: float | None = 5.0
    """bound on the norm of the gradient; none for no bound"""


@dataclass
class TrainConfig:
    """One training run. Two views of each image are encoded, the image itself and its transform, in the control too."""

    data: DataConfig = field(default_factory=DataConfig)
    encoder: EncoderConfig = field(default_factory=EncoderConfig)
    chain: str | list[dict[str, Any]] = "simclr"
    """preset's name, or a list of transforms with their ranges"""
    base_chain: str | list[dict[str, Any]] | None = None
    """transforms of both views alike, before the chain; none takes images as they are"""
    base: Literal["supervised", "simclr", "vicreg", "barlow", "distill", "none"] = "supervised"
    """the loss that equivariance is added to; distill stays near the embeddings of the weights it starts from"""
    base_temperature: float = 0.2
    """of simclr"""
    projector: int = 256
    """width of the self-supervised losses' projector"""
    steering: Literal["none", "shift", "basis", "low_rank", "rotation", "exponential", "hypernetwork"] = (
        "basis"
    )
    """the map's family; none is the invariant control; hypernetwork (a matrix linear in theta, without the identity) is
    for comparison with SIE, and a ridge map takes its place after training"""
    steering_at: Literal["backbone", "projector"] = "backbone"
    """what the map acts on in training; after a projector a ridge map is fitted to the backbone's embedding"""
    steered_share: float = 1.0
    """share of the embedding's columns, the last ones, that the equivariance terms see; below 1 the base loss sees the
    others"""
    features: str = "linear"
    """functions of theta that the map is linear in, joined by +"""
    equivariance: dict[str, float] = field(default_factory=lambda: {"relative": 0.3})
    """weights of the forms squared, relative, contrastive, instance and vicreg; unused where steering is none"""
    prediction: dict[str, float] = field(default_factory=dict)
    """weights of the prediction of theta: chain (from the pair of embeddings), base (base_chain's, from one of them)"""
    uniformity: float | None = None
    """weight of the uniformity term; unset is 0.05 with steering, 0 without and 0 in distill"""
    temperature: float = 0.1
    """of the forms contrastive and instance"""
    negatives: int = 31
    """other thetas that the contrastive form tells the true one from"""
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    epochs: int = 12
    """passes over the training images"""
    batch_size: int = 256
    """images per step, of all processes together; each is encoded twice"""
    accumulate: int = 1
    """parts that a batch is worked through in, where it does not fit the memory; losses then see a part at a time"""
    ema: float | None = None
    """decay of a moving average of the weights, which is then what is evaluated and saved"""
    refit: bool = True
    """fit the map once more in closed form after training (basis, shift and low_rank)"""
    precision: Literal["auto", "32-true", "bf16-mixed", "16-mixed"] = "auto"
    """auto is bf16-mixed where the hardware has it, else 32-true"""
    compile: bool = False
    """compile the encoder's network: slower to start, faster by the step on a GPU"""
    validate_every: int = 1
    """epochs between validations; the last epoch always has one"""
    timeout: float = 1800.0
    """seconds that a process waits for the others before it gives up"""
    checkpoint_every: int = 200
    """steps between checkpoints; one is also written after each epoch that is validated"""
    seed: int = 0
    """of weights, order and thetas"""

    @property
    def uniformity_weight(self) -> float:
        if self.uniformity is not None:
            return self.uniformity
        # distance from a teacher that spreads its embeddings keeps them spread
        return 0.0 if self.steering == "none" or self.base == "distill" else 0.05

    @property
    def steers_embedding(self) -> bool:
        """True where the trained map acts on the embedding itself, and is what the bundle keeps."""
        return (
            self.steering_at == "backbone"
            and self.steered_share == 1
            and self.steering not in ("none", "hypernetwork")
        )

    @property
    def equivariance_weights(self) -> dict[str, float]:
        """The forms in use, those with weight zero left out; empty in the control."""
        return {} if self.steering == "none" else {k: v for k, v in self.equivariance.items() if v}

    def to_dict(self) -> dict[str, Any]:
        """As JSON and YAML types."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "TrainConfig":
        """The way back from `to_dict`; what is left out keeps its default. Types are not checked, as recipes' are.

        Raises:
            ConfigError: an unknown key (the nearest one is suggested).
        """
        parts = {"data": DataConfig, "encoder": EncoderConfig, "optimizer": OptimizerConfig}
        nested = {key: _made(part, values[key], f"{key}.") for key, part in parts.items() if key in values}
        return _made(cls, {**values, **nested})

    def check(self) -> None:
        """Raise where settings contradict each other or are out of range.

        Raises:
            ConfigError
        """
        from steerable.transforms import build  # here: the settings alone load without torch

        build(self.chain)
        for what, given, known in (
            ("equivariance form", self.equivariance, EQUIVARIANCE), ("prediction", self.prediction, PREDICTION),
        ):  # fmt: skip
            for key in given:
                if key not in known:
                    raise ConfigError(f"{what} is {key!r}; expected {', '.join(known)}: correct the recipe")
        if self.base_chain is not None:
            build(self.base_chain)
        elif self.prediction.get("base"):
            raise ConfigError(
                "prediction of base has a weight and there is no base_chain; expected transforms of both views: "
                "name some, e.g. [{name: rotate, degrees: [0, 270], step: 90}]"
            )
        if not 0 < self.steered_share <= 1:
            raise ConfigError(
                f"steered_share is {self.steered_share}; expected more than 0 and at most 1: correct the recipe"
            )
        for name, value, least in (
            ("epochs", self.epochs, 1), ("batch_size", self.batch_size, 2), ("negatives", self.negatives, 1),
            ("checkpoint_every", self.checkpoint_every, 1), ("validate_every", self.validate_every, 1),
            ("accumulate", self.accumulate, 1), ("timeout", self.timeout, 1), ("optimizer.lr", self.optimizer.lr, 0),
            ("temperature", self.temperature, 1e-4), ("projector", self.projector, 2),
        ):  # fmt: skip
            if not value >= least:
                raise ConfigError(
                    f"{name} is {value}; expected at least {least}: correct the recipe or the override"
                )
        if self.steering != "none" and not self.equivariance_weights:
            raise ConfigError(
                f"steering is {self.steering!r} without an equivariance loss; expected a weight for one of "
                f"{', '.join(EQUIVARIANCE)}: e.g. --equivariance.relative 0.3, or --steering none for the control"
            )
        if self.base == "none" and self.steering == "none" and not self.prediction:
            raise ConfigError("base and steering are both none; expected something to train: set one of them")
        if self.base == "distill":
            self._check_distill()
        if self.data.stream and (self.base == "distill" or self.data.train_limit is not None):
            raise ConfigError(
                "data.stream is set with base distill or a train_limit; expected neither: a teacher's embeddings and a "
                "choice of images need them in memory: leave stream out"
            )

    def _check_distill(self) -> None:
        encoder = self.encoder
        if not (encoder.pretrained or encoder.weights):
            raise ConfigError(
                f"base is 'distill' and {encoder.name} starts from random weights; expected a teacher worth keeping "
                "near: add --encoder.pretrained true, or --encoder.weights FILE"
            )
        if self.steering == "none" and not self.uniformity_weight:
            raise ConfigError(
                "base is 'distill' without steering; expected something to train, and the distance from the teacher "
                "starts at zero and stays there: set steering, or --uniformity 0.05 for that control"
            )


def _made(kind: type, values: Mapping[str, Any], prefix: str = "") -> Any:
    known = [item.name for item in dataclasses.fields(kind)]
    for key in values:
        if key not in known:
            raise ConfigError(f"setting {prefix}{key} is unknown; {one_of(key, known)}")
    return kind(**values)
