"""Figures after each epoch, and the closed-form refit of the map after the last."""

import copy

import torch
from torch import Tensor, nn

from steerable import metrics
from steerable.data import ImageSet
from steerable.fitting import fit_embeddings
from steerable.model import SteerableEncoder
from steerable.training.config import TrainConfig
from steerable.training.objective import Learner
from steerable.transforms import Chain

GALLERY, QUERIES, SEED = 2000, 1000, 4242


@torch.no_grad()
def validate(learner: Learner, chain: Chain, train_set: ImageSet, test_set: ImageSet) -> dict[str, float]:
    """Online kNN accuracy, relative equivariance error and invariance level; test accuracy where there is a head.

    The first images of each set and thetas of a fixed seed, so that epochs and runs can be compared.
    """
    training = learner.training
    learner.eval()
    device = next(learner.parameters()).device
    gallery = _encode(learner, train_set.subset(range(min(GALLERY, len(train_set)))), device)
    e = _encode(learner, test_set, device)
    queries = min(QUERIES, len(e))
    theta = chain.sample(queries, generator=torch.Generator().manual_seed(SEED)).to(device)
    images = test_set.float_images(range(queries)).to(device)
    target = torch.cat(
        [learner.encoder(chain.apply(i, t)) for i, t in zip(images.split(256), theta.split(256), strict=True)]
    )
    source = e[:queries]
    figures = {"invariance_level": metrics.invariance_level(source, target)}
    if learner.steering is not None:
        figures["relative_error"] = metrics.relative_error(source, target, learner.steering(source, theta))
    if test_set.labeled:
        labels = test_set.labels.to(device)
        figures["knn_accuracy"] = metrics.knn_accuracy(
            gallery, train_set.labels[: len(gallery)].to(device), e, labels
        )
        if isinstance(learner.readout, nn.Linear):
            figures["test_accuracy"] = (learner.readout(e).argmax(1) == labels).double().mean().item()
    learner.train(training)
    return figures


def _encode(learner: Learner, images: ImageSet, device: torch.device) -> Tensor:
    batches = images.batches(500, device=device)
    return torch.cat(
        [learner.encoder(batch.contiguous(memory_format=torch.channels_last)) for batch in batches]
    )


def refit(
    model: SteerableEncoder, images: ImageSet, config: TrainConfig, *, pairs: int = 10_000
) -> SteerableEncoder:
    """The same encoder, its map fitted once more in closed form: gradients leave it short of the optimum."""
    few = images.subset(range(min(pairs, len(images))))
    views = min(5, max(1, pairs // len(few)))  # more views of the same images add little
    generator = torch.Generator().manual_seed(SEED + 1)
    stream = model.pairs(few.batches(500), views=views, generator=generator)
    # not strict: ReLU networks have dead coordinates, and those need no motion
    fitted = fit_embeddings(stream, map=config.steering, features=model.steering.features, strict=False)
    steering = copy.deepcopy(model.steering)
    steering.load_state_dict(fitted.state_dict())
    return SteerableEncoder(model.encoder, model.chain, steering, head=model.head, classes=model.classes)
