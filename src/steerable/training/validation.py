"""Figures after each epoch, and the closed-form refit of the map after the last."""

import logging

import torch
from jaxtyping import Float
from torch import Tensor

from steerable import metrics
from steerable.data import ImageSet
from steerable.errors import FitError
from steerable.fitting import fit_embeddings
from steerable.maps import build as build_map
from steerable.model import SteerableEncoder
from steerable.training.config import TrainConfig
from steerable.training.objective import Learner
from steerable.transforms import Chain

log = logging.getLogger("steerable")

GALLERY, QUERIES, SEED = 2000, 1000, 4242


@torch.no_grad()
def validate(
    learner: Learner, chain: Chain, train_set: ImageSet, test_set: ImageSet, teacher: Tensor | None = None
) -> dict[str, float]:
    """Online kNN accuracy, relative equivariance error and invariance level; test accuracy where there is a head.

    teacher: (n, d) embeddings of the test images by the weights that distill starts from; gives teacher_distance,
    sum |e - teacher|^2 / sum |teacher - mean|^2.

    The first images of each set and thetas of a fixed seed, so that epochs and runs can be compared.
    """
    training = learner.training
    learner.eval()
    device = next(learner.parameters()).device
    e = encode_all(learner, test_set)
    queries = min(QUERIES, len(e))
    theta = chain.sample(queries, generator=_seeded(0)).to(device)
    images = test_set.float_images(range(queries)).to(device)
    views = (chain.apply(i, t) for i, t in zip(images.split(256), theta.split(256), strict=True))
    target = torch.cat([learner.encoder.encode(view) for view in views])
    source = e[:queries]
    figures = {"invariance_level": metrics.invariance_level(source, target)}
    if learner.steering is not None and learner.steers_embedding:
        figures["relative_error"] = metrics.relative_error(source, target, learner.steering(source, theta))
    if teacher is not None:
        figures["teacher_distance"] = metrics.invariance_level(teacher, e)
    if test_set.labeled and train_set.labeled:
        gallery = encode_all(learner, train_set.subset(range(min(GALLERY, len(train_set)))))
        labels = test_set.labels.to(device)
        figures["knn_accuracy"] = metrics.knn_accuracy(
            gallery, train_set.labels[: len(gallery)].to(device), e, labels
        )
        if (head := learner.head()) is not None:
            figures["test_accuracy"] = (head(e).argmax(1) == labels).double().mean().item()
    learner.train(training)
    return figures


def encode_all(learner: Learner, images: ImageSet) -> Float[Tensor, "n d"]:
    """Embeddings of all images as they are, without gradients, on the learner's device."""
    device = next(learner.parameters()).device
    return torch.cat([learner.encoder.encode(batch) for batch in images.batches(500, device=device)])


def refit(
    model: SteerableEncoder, images: ImageSet, config: TrainConfig, *, pairs: int = 10_000
) -> SteerableEncoder:
    """The same encoder, its map fitted once more in closed form: gradients leave it short of the optimum.

    Of a wide embedding the closed form reads a projection only, and may fall short itself; so the better map stays, by
    the error on new views of training images. A fit that is refused leaves the trained map, and says so.
    """
    few = images.subset(range(min(pairs, len(images))))
    views = min(5, max(1, pairs // len(few)))  # more views of the same images add little
    stream = model.pairs(few.batches(500, device=model.device), views=views, generator=_seeded(1))
    family, features = model.steering.name, model.steering.features
    try:
        # not strict: ReLU networks have dead coordinates, and those need no motion
        fitted = fit_embeddings(stream, map=family, features=features, projection="auto", strict=False)
    except FitError as error:
        log.warning("the map stays as it was trained: %s", error)
        return model
    sizes = {key: value for key, value in fitted.config().items() if key in ("inner", "rank")}
    steering = build_map(model.steering.config() | sizes)
    steering.load_state_dict(fitted.state_dict())
    steering.to(model.device)
    asked = few.subset(range(min(QUERIES, len(few))))
    new = model.pairs(asked.batches(500, device=model.device), generator=_seeded(2))
    source, theta, target = (torch.cat(part).to(model.device) for part in list(zip(*new, strict=True))[:3])
    with torch.no_grad():
        trained, refitted = (
            metrics.relative_error(source, target, each(source, theta)) for each in (model.steering, steering)
        )
    log.info("relative error on training images: %.3f trained, %.3f fitted once more", trained, refitted)
    if trained <= refitted:
        return model
    return SteerableEncoder(model.encoder, model.chain, steering, head=model.head, classes=model.classes)


def _seeded(purpose: int) -> torch.Generator:
    return torch.Generator().manual_seed(SEED + purpose)
