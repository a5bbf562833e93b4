"""A run: its modules, its steps, and all that a resumed one needs."""

import copy
import logging
import math
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.optim.lr_scheduler import LambdaLR

from steerable.data import ImageSet
from steerable.encoders import classifier_of
from steerable.errors import MissingExtra
from steerable.maps.features import trusted
from steerable.model import SteerableEncoder, steering_for
from steerable.training.checkpoint import save_checkpoint
from steerable.training.config import TrainConfig
from steerable.training.objective import Learner, Objective
from steerable.training.optimizer import Average, build_optimizer, schedule
from steerable.training.setup import build_learner, fits, precision_for
from steerable.training.validation import encode_all
from steerable.transforms import Chain, build
from steerable.transforms.pixels import sent

log = logging.getLogger("steerable")


def generator_for(seed: int, *purpose: int) -> torch.Generator:
    """A CPU generator of the seed and the purpose only, so that a resumed run draws what it would have drawn."""
    state = np.random.SeedSequence([seed, *purpose]).generate_state(1, np.uint64)[0]
    return torch.Generator().manual_seed(int(state >> np.uint64(1)))


ORDER, THETA, WEIGHTS, BASE = range(4)  # purposes of the random streams
LOOK_EVERY = 20  # steps


class Run:
    """The state of one training run, and its steps."""

    def __init__(self, config: TrainConfig, train_set: ImageSet, test_set: ImageSet, directory: Path | None):
        self.began = time.perf_counter()
        self.config, self.train_set, self.test_set, self.directory = config, train_set, test_set, directory
        self.chain: Chain = build(config.chain)
        self.base_chain = None if config.base_chain is None else build(config.base_chain)
        self.fabric = _fabric(config)
        torch.manual_seed(generator_for(config.seed, WEIGHTS).initial_seed())
        learner = build_learner(config, self.chain, len(train_set.classes))
        learner.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
        if (
            config.compile
        ):  # of the network alone: its names in the weights stay, the rest is little and changes shape
            learner.encoder.network.compile()
        optimizer = build_optimizer(learner, config.optimizer, fused=config.precision != "16-mixed")
        self.learner, self.optimizer = self.fabric.setup(learner, optimizer)
        self.module: Learner = learner
        self.ema = Average(learner, config.ema) if config.ema else None
        self.steps_per_epoch = len(train_set) // config.batch_size
        self.total_steps = self.steps_per_epoch * config.epochs
        self.scheduler = LambdaLR(self.optimizer, schedule(self.total_steps, config.optimizer.warmup))
        base_params = self.base_chain.params if self.base_chain is not None else ()
        self.objective = Objective(
            config, distributed=self.fabric.world_size > 1, params=self.chain.params, base_params=base_params
        )
        self.step = 0
        # to look at a loss is to wait for the device; the CPU has nothing to run ahead of
        self.look_every = LOOK_EVERY if self.fabric.device.type == "cuda" else 1
        self.history: list[dict[str, Any]] = []
        # the whole set lives on the device as bytes where it fits, so that a step waits for no transfer
        resident = fits(train_set.images, self.fabric.device)
        self.images = train_set.images.to(self.fabric.device) if resident else train_set.images
        self.goals, self.teacher = self._goals()

    def _goals(self) -> tuple[Tensor, Tensor | None]:
        """What the base loss aims at, by training image; and the teacher's embeddings of the test images in distill.

        The teacher is the network as the run starts. It sees each image untransformed, so that one pass serves all
        epochs; it is in no checkpoint: a resumed run starts from the same weights and asks it again.
        """
        if self.config.base != "distill":
            return self.train_set.labels.to(self.fabric.device), None
        log.info("the teacher encodes %d images", len(self.train_set) + len(self.test_set))
        return encode_all(self.module, self.train_set), encode_all(self.module, self.test_set)

    @property
    def epoch(self) -> int:
        return self.step // self.steps_per_epoch

    @property
    def averaged(self) -> Learner:
        """The weights to evaluate and to save."""
        return self.ema.module if self.ema is not None else self.module  # pyright: ignore[reportReturnType]

    def batches(self) -> Iterator[Tensor]:
        """Indices of the rest of the present epoch's batches; the order depends on seed and epoch only."""
        order = torch.randperm(
            len(self.train_set), generator=generator_for(self.config.seed, ORDER, self.epoch)
        )
        size = self.config.batch_size
        for i in range(self.step % self.steps_per_epoch, self.steps_per_epoch):
            yield order[i * size : (i + 1) * size]

    def train_step(self, index: Tensor) -> dict[str, Tensor]:
        """One optimizer step on the images at ``index`` (b,), on the CPU; returns the terms of the loss.

        Nothing here waits for a GPU (float16 apart, whose scaler looks at the gradients): the CPU runs ahead of it.
        """
        return self.learn(*self.inputs(index))

    def inputs(self, index: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        """What a step takes, on the device: images, then their transforms (2b, 3, h, w); goals; thetas (b, p), (b, q)."""
        device = self.fabric.device
        here = sent(index, device)
        # chosen before they travel where the whole set does not fit
        images = sent(self.images[here if self.images.device == device else index], device).float() / 255
        # the small algebra of theta stays on the CPU, which is free while the device works on the step before
        base_theta = self._draw(self.base_chain, BASE, len(index))
        theta = self._draw(self.chain, THETA, len(index))
        if self.base_chain is not None:
            images = self.base_chain.apply(images, base_theta)
        both = torch.cat([images, self.chain.apply(images, theta)])
        base_theta = None if base_theta is None else sent(base_theta, device)
        return both.contiguous(memory_format=torch.channels_last), self.goals[here], sent(theta, device), base_theta

    def learn(self, both: Tensor, goals: Tensor, theta: Tensor, base_theta: Tensor | None) -> dict[str, Tensor]:
        """One optimizer step on prepared inputs."""
        with trusted():
            views = self.learner(both, theta, base_theta)
        terms = self.objective(views, goals)
        self.optimizer.zero_grad(set_to_none=True)
        self.fabric.backward(terms["loss"])
        if self.config.optimizer.clip_norm:
            self.fabric.clip_gradients(
                self.learner,
                self.optimizer,
                max_norm=self.config.optimizer.clip_norm,
                error_if_nonfinite=False,
            )
        self.optimizer.step()
        self.scheduler.step()
        if self.ema is not None:
            self.ema.update_parameters(self.module, first=self.step == 0)
        self.step += 1
        return {name: term.detach() for name, term in terms.items()}

    def _draw(self, chain: Chain | None, purpose: int, n: int) -> Tensor | None:
        """The step's thetas (n, p) of a chain."""
        if chain is None:
            return None
        return chain.sample(n, generator=generator_for(self.config.seed, purpose, self.step))

    def state(self) -> dict[str, Any]:
        """Everything that a resumed run needs, as tensors and plain containers."""
        return {
            "step": self.step,
            "config": self.config.to_dict(),
            "learner": self.module.state_dict(),
            "ema": None if self.ema is None else self.ema.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scheduler": self.scheduler.state_dict(),
            "history": self.history,
            "torch_rng": torch.get_rng_state(),
            "seconds": time.perf_counter() - self.began,
        }

    def restore(self, state: dict[str, Any]) -> None:
        self.module.load_state_dict(state["learner"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.scheduler.load_state_dict(state["scheduler"])
        if self.ema is not None:
            self.ema.load_state_dict(state["ema"])
        self.step, self.history = state["step"], state["history"]
        torch.set_rng_state(state["torch_rng"])
        self.began -= state["seconds"]

    def save(self) -> None:
        if self.directory is not None:
            save_checkpoint(self.directory / "checkpoints", self.state())

    def model(self) -> SteerableEncoder:
        """The present (averaged) weights as a SteerableEncoder on the CPU."""
        learner, config = copy.deepcopy(self.averaged).cpu().eval(), self.config
        steering = learner.steering
        if not config.steers_embedding:  # a fresh map is the identity; `refit` makes it a ridge map where there is to be one
            family = "identity" if config.steering == "none" else "basis"
            steering = steering_for(self.chain, learner.encoder.dim, family, config.features)
        head, classes = learner.head(), self.train_set.classes
        if head is None:  # who stays near the teacher can be read by the teacher's classifier
            head, classes = classifier_of(learner.encoder) if config.base == "distill" else None, ()
        return SteerableEncoder(learner.encoder, self.chain, steering, head=head, classes=classes)

    def record(self) -> dict[str, Any]:
        """What the run has cost, and the figures of its last epoch (before the map is fitted once more).

        seconds: everything, of all parts of a resumed run; passes: images encoded in steps and by the teacher.
        """
        n, batch = len(self.train_set), self.config.batch_size
        taught = n + len(self.test_set) if self.teacher is not None else 0
        figures = {k: v for k, v in self.history[-1].items() if isinstance(v, float) and math.isfinite(v)}
        return {
            "made_by": "train",
            "base": self.config.base,
            "images": n,
            "epochs": self.config.epochs,
            "steps": self.step,
            "passes": 2 * batch * self.step + taught,
            "seconds": round(time.perf_counter() - self.began, 1),
            "last_epoch": figures,
        }


def _fabric(config: TrainConfig) -> Any:
    try:
        from lightning.fabric import Fabric
    except ImportError as error:
        raise MissingExtra("lightning", "train") from error
    fabric = Fabric(accelerator="auto", devices=1, precision=precision_for(config.precision))  # pyright: ignore[reportArgumentType]
    fabric.launch()
    return fabric
