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
from steerable.maps import SteeringMap
from steerable.maps.features import trusted
from steerable.model import SteerableEncoder, steering_for
from steerable.training.checkpoint import save_checkpoint
from steerable.training.config import TrainConfig
from steerable.training.distributed import gather, gather_plain, launch, synchronize
from steerable.training.feeding import InMemory, Streamed, deal
from steerable.training.objective import Learner, Objective
from steerable.training.optimizer import Average, build_optimizer, schedule
from steerable.training.setup import build_learner, shards_of
from steerable.training.validation import encode_all
from steerable.transforms import Chain, build
from steerable.transforms.pixels import sent

log = logging.getLogger("steerable")


def generator_for(seed: int, *purpose: int) -> torch.Generator:
    """A CPU generator of the seed and the purpose only, so that a resumed run draws what it would have drawn."""
    state = np.random.SeedSequence([seed, *purpose]).generate_state(1, np.uint64)[0]
    return torch.Generator().manual_seed(int(state >> np.uint64(1)))


ORDER, THETA, WEIGHTS, BASE, DROPOUT = range(5)  # purposes of the random streams
LOOK_EVERY = 20  # steps


class Run:
    """The state of one training run, and its steps."""

    def __init__(self, config: TrainConfig, train_set: ImageSet, test_set: ImageSet, directory: Path | None):
        self.began = time.perf_counter()
        self.config, self.train_set, self.test_set, self.directory = config, train_set, test_set, directory
        self.chain: Chain = build(config.chain)
        self.base_chain = None if config.base_chain is None else build(config.base_chain)
        self.fabric = launch(config)
        torch.manual_seed(generator_for(config.seed, WEIGHTS).initial_seed())
        learner = build_learner(config, self.chain, len(train_set.classes))
        learner.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
        if self.fabric.world_size > 1:
            learner.to(self.fabric.device)
            synchronize(learner)
        if config.compile:  # the network alone: names of weights stay, and the rest is little
            learner.encoder.network.compile()
        optimizer = build_optimizer(learner, config.optimizer, fused=config.precision != "16-mixed")
        self.learner, self.optimizer = self.fabric.setup(learner, optimizer)
        self.module: Learner = learner
        self.ema = Average(learner, config.ema) if config.ema else None
        self.feed, self.teacher = self._feed()
        self.steps_per_epoch = self.feed.steps_per_epoch
        self.total_steps = self.steps_per_epoch * config.epochs
        self.scheduler = LambdaLR(self.optimizer, schedule(self.total_steps, config.optimizer.warmup))
        base_params = self.base_chain.params if self.base_chain is not None else ()
        self.objective = Objective(config, params=self.chain.params, base_params=base_params)
        self.step = 0
        # to look at a loss is to wait for the device; the CPU has nothing to run ahead of
        self.look_every = LOOK_EVERY if self.fabric.device.type == "cuda" else 1
        self.history: list[dict[str, Any]] = []

    def _feed(self) -> tuple[InMemory | Streamed, Tensor | None]:
        """What the steps take; and the teacher's embeddings of the test images in distill.

        The teacher is the network as the run starts. It sees each image untransformed, so that one pass serves all
        epochs; it is in no checkpoint: a resumed run starts from the same weights and asks it again.
        """
        config, device, size = self.config, self.fabric.device, self.fabric.world_size
        if config.data.stream:
            from steerable.data.streaming import Stream

            data, share = config.data, config.batch_size // size
            ways: dict[str, int] = {"shuffle": data.shuffle, "workers": data.workers}
            stream = Stream(shards_of(config), batch=share, rank=self.fabric.global_rank, size=size, **ways)
            return Streamed(stream, device), None
        goals, teacher = self.train_set.labels.to(device), None
        if config.base == "distill":
            log.info("the teacher encodes %d images", len(self.train_set) + len(self.test_set))
            goals, teacher = encode_all(self.module, self.train_set), encode_all(self.module, self.test_set)
        return InMemory(self.train_set, goals, device, config.batch_size), teacher

    @property
    def epoch(self) -> int:
        return self.step // self.steps_per_epoch

    @property
    def averaged(self) -> Learner:
        """The weights to evaluate and to save."""
        return self.ema.module if self.ema is not None else self.module  # pyright: ignore[reportReturnType]

    def batches(self) -> Iterator[Any]:
        """The rest of the present epoch's batches, for `train_step`; they depend on seed and epoch only."""
        generator = generator_for(self.config.seed, ORDER, self.epoch)
        return self.feed.batches(generator, self.step % self.steps_per_epoch)

    def train_step(self, batch: Any) -> dict[str, Tensor]:
        """One optimizer step on a batch of all processes; returns the terms of the loss, the same on each of them.

        Nothing here waits for a GPU (float16 apart, whose scaler looks at the gradients): the CPU runs ahead of it.
        """
        n = self.config.accumulate
        # dropout's draws differ between processes, and are those of an unbroken run after a resumption
        torch.manual_seed(
            generator_for(self.config.seed, DROPOUT, self.step, self.fabric.global_rank).initial_seed()
        )
        parts = [self.backward(*self.inputs(batch, part), last=part == n - 1) for part in range(n)]
        self.update()
        return {name: torch.stack([part[name] for part in parts]).mean(0) for name in parts[0]}

    def inputs(self, batch: Any, part: int = 0) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        """What this process takes of a part of the batch, on its device.

        Images, then their transforms (2b, 3, h, w); goals; thetas, its own b first (n, p); thetas of base_chain (b, q).
        Thetas are drawn for the whole batch from one seed, so that the number of processes changes none.
        """
        config, device = self.config, self.fabric.device
        size, rank = self.fabric.world_size, self.fabric.global_rank
        rows = deal(config.batch_size, config.accumulate, part, size, rank)
        images, goals = self.feed.fetch(batch, rows)
        base_theta, thetas = None, self._draw(self.chain, THETA)
        if self.base_chain is not None:
            drawn = self._draw(self.base_chain, BASE)[rows]
            images, base_theta = self.base_chain.apply(images, drawn), sent(drawn, device)
        # the small algebra of theta stays on the CPU, which is free while the device works on the step before
        both = torch.cat([images, self.chain.apply(images, thetas[rows])])
        whole = deal(config.batch_size, config.accumulate, part, 1, 0)
        others = thetas[whole].roll(whole.start - rows.start, 0)
        return both.contiguous(memory_format=torch.channels_last), goals, sent(others, device), base_theta

    def backward(
        self, both: Tensor, goals: Tensor, theta: Tensor, base_theta: Tensor | None, *, last: bool = True
    ) -> dict[str, Tensor]:
        """Add the gradients of prepared inputs; returns the terms of the loss. ``last``: of the step's parts."""
        with self.fabric.no_backward_sync(self.learner, enabled=not last):
            with trusted():
                views = self.learner(both, theta, base_theta)
            if self.fabric.world_size > 1:
                views, goals = gather(views, len(goals)), gather_plain(goals)
            terms = self.objective(views, goals)
            self.fabric.backward(terms["loss"] / self.config.accumulate)
        return {name: term.detach() for name, term in terms.items()}

    def update(self) -> None:
        """Move the weights by the gradients that have come together."""
        if self.config.optimizer.clip_norm:
            self.fabric.clip_gradients(
                self.learner,
                self.optimizer,
                max_norm=self.config.optimizer.clip_norm,
                error_if_nonfinite=False,
            )
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.scheduler.step()
        if self.ema is not None:
            self.ema.update_parameters(self.module, first=self.step == 0)
        self.step += 1

    def _draw(self, chain: Chain, purpose: int) -> Tensor:
        """The step's thetas (batch_size, p) of a chain."""
        return chain.sample(
            self.config.batch_size, generator=generator_for(self.config.seed, purpose, self.step)
        )

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
            "seconds": time.perf_counter() - self.began,
        }

    def restore(self, state: dict[str, Any]) -> None:
        self.module.load_state_dict(state["learner"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.scheduler.load_state_dict(state["scheduler"])
        if self.ema is not None:
            self.ema.load_state_dict(state["ema"])
        self.step, self.history = state["step"], state["history"]
        self.began -= state["seconds"]

    def save(self) -> None:
        if self.directory is not None:  # of the first process alone
            save_checkpoint(self.directory / "checkpoints", self.state())

    def model(self) -> SteerableEncoder:
        """The present (averaged) weights as a SteerableEncoder on the CPU."""
        learner, config = copy.deepcopy(self.averaged).cpu().eval(), self.config
        steering = learner.steering
        if not config.steers_embedding or not isinstance(steering, SteeringMap):
            # a fresh map is the identity; `refit` makes it a ridge map where there is to be one
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
