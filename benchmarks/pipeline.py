"""Our input pipeline and training step against lightly's SimCLR with its own transforms and a plain torchvision loop.

    python benchmarks/pipeline.py --images 1024 --rounds 3

All read the same JPEG content, decode it in every epoch and give two augmented views of each image, at the strength of
SimCLR's recipe: crop, flip, color jitter, grayscale, and lightly's blur (half of the views, up to 2 pixels). Two
decoding workers each, which live on between epochs. Whole epochs are timed, so that nothing is decoded before the clock
starts or after it stops; the order of the arms changes by round; medians. "step" trains the same backbone with the same
loss on what each pipeline gives. An image counts once. "steerable, in memory" is what this library does where images
fit: they are decoded once, before the clock starts, and kept as bytes. It stands beside the first arm, not for it.
With --resnet50 also what the equivariance and uniformity terms cost there. Writes results/pipeline.json.
"""

import argparse
import io
import logging
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median
from typing import Any

import torch
from datasets import ClassLabel, Dataset, Features, Image
from lightly.data import LightlyDataset
from lightly.loss import NTXentLoss
from lightly.models.modules import SimCLRProjectionHead
from lightly.transforms import SimCLRTransform
from PIL import Image as Pillow
from record import figure, record
from torch import Tensor, nn
from torch.utils.data import DataLoader
from torchvision.io import decode_image
from torchvision.transforms import v2

from steerable.data import ImageSet, load_images
from steerable.data.shards import open_shards
from steerable.data.streaming import Stream
from steerable.encoders import load_encoder
from steerable.training import EncoderConfig, TrainConfig
from steerable.training.feeding import InMemory, Streamed
from steerable.training.run import Run
from steerable.transforms import Blur, Chain

ARMS = ("steerable", "lightly", "torchvision v2", "steerable, in memory")
WORKERS = 2
EPOCHS = 3  # that are timed at a time
BLUR = 2  # pixels, lightly's largest deviation


def write(images: ImageSet, folder: Path) -> None:
    """The same JPEG bytes as files and as two parquet shards."""
    cells: list[bytes] = []
    for i, image in enumerate(images.images):
        stream = io.BytesIO()
        Pillow.fromarray(image.permute(1, 2, 0).numpy()).save(stream, format="JPEG", quality=90)
        path = folder / "files" / "a" / f"{i:05d}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(stream.getvalue())
        cells.append(stream.getvalue())
    features = Features(image=Image(), label=ClassLabel(names=["a"]))
    for part in range(2):
        rows = [{"bytes": cell, "path": None} for cell in cells[part::2]]
        table = Dataset.from_dict({"image": rows, "label": [0] * len(rows)}, features=features)
        table.to_parquet(folder / "shards" / f"train-{part}.parquet")


class Ours:
    """Transforms of the whole batch at once, of images that workers decode in each epoch, or that are in memory."""

    def __init__(self, folder: Path, side: int, batch: int, *, in_memory: bool = False):
        members = Chain.preset("simclr-full").members
        self.chain = Chain([Blur(sigma=BLUR / side) if isinstance(m, Blur) else m for m in members])
        self.generator = torch.Generator().manual_seed(0)
        self.rows = slice(0, batch)
        if in_memory:
            images = load_images(str(folder / "files"), size=side)
            self.feed = InMemory(images, images.labels, torch.device("cpu"), batch)
        else:
            shards = open_shards(str(folder / "shards"), "train", size=side)
            stream = Stream(shards, batch=batch, shuffle=2 * batch, workers=WORKERS)
            self.feed = Streamed(stream, torch.device("cpu"))

    def batches(self) -> Iterator[tuple[Tensor, Tensor]]:
        for batch in self.feed.batches(self.generator, 0):
            images, _ = self.feed.fetch(batch, self.rows)
            yield self.view(images), self.view(images)

    def view(self, images: Tensor) -> Tensor:
        return self.chain.apply(images, self.chain.sample(len(images), generator=self.generator))


class Theirs:
    """A DataLoader over files whose workers transform image by image."""

    def __init__(self, data: Any, batch: int):
        self.loader = DataLoader(
            data, batch, shuffle=True, drop_last=True, num_workers=WORKERS, persistent_workers=True
        )

    def batches(self) -> Iterator[tuple[Tensor, Tensor]]:
        for item in self.loader:
            yield item[0][0], item[0][1]


def lightly(folder: Path, side: int, batch: int) -> Theirs:
    transform = SimCLRTransform(input_size=side)
    return Theirs(LightlyDataset(input_dir=str(folder / "files"), transform=transform), batch)


class Files(torch.utils.data.Dataset):
    """torchvision's decoder and v2 transforms, image by image."""

    def __init__(self, folder: Path, side: int):
        self.paths = sorted(map(str, folder.glob("files/*/*.jpg")))
        jitter = v2.ColorJitter(0.8, 0.8, 0.8, 0.2)
        self.transform = v2.Compose(
            [
                v2.RandomResizedCrop(side, scale=(0.08, 1.0), antialias=True),
                v2.RandomHorizontalFlip(),
                v2.RandomApply([jitter], 0.8),
                v2.RandomGrayscale(0.2),
                v2.RandomApply([v2.GaussianBlur(3, (0.1, 2.0))], 0.5),
                v2.ToDtype(torch.float32, scale=True),
            ]
        )

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, i: int) -> tuple[list[Tensor], int]:
        image = decode_image(self.paths[i])
        return [self.transform(image), self.transform(image)], 0


def speed(work: Callable[[], int]) -> float:
    began = time.perf_counter()
    return work() / (time.perf_counter() - began)


class Steps:
    """The same backbone, head and loss on what a pipeline gives."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        backbone = load_encoder("timm/resnet10t", pretrained=False, stem="cifar", width=16)
        self.model = nn.Sequential(backbone, SimCLRProjectionHead(backbone.dim, backbone.dim, 128))
        self.model.to(memory_format=torch.channels_last)
        self.loss = NTXentLoss()
        self.optimizer = torch.optim.AdamW(self.model.parameters(), 1e-3)

    def __call__(self, a: Tensor, b: Tensor) -> None:
        both = torch.cat([a, b]).contiguous(memory_format=torch.channels_last)
        loss = self.loss(*self.model(both).chunk(2))
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self.optimizer.step()


def compare(side: int, images: int, batch: int, rounds: int) -> list[dict[str, Any]]:
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        write(load_images("photos", size=side, limit=images), folder)
        pipelines = {
            "steerable": Ours(folder, side, batch),
            "lightly": lightly(folder, side, batch),
            "torchvision v2": Theirs(Files(folder, side), batch),
            "steerable, in memory": Ours(folder, side, batch, in_memory=True),
        }
        steps = {arm: Steps() for arm in ARMS}

        def read(arm: str) -> int:
            return sum(len(a) for _ in range(EPOCHS) for a, _ in pipelines[arm].batches())

        def train(arm: str) -> int:
            return sum(len(a) for a, b in pipelines[arm].batches() if not steps[arm](a, b))

        found: dict[tuple[str, str], list[float]] = {}
        for arm in ARMS:
            read(arm)  # starts the workers
        for turn in range(rounds):
            for arm in ARMS[turn % 4 :] + ARMS[: turn % 4]:
                found.setdefault((arm, "input"), []).append(speed(lambda arm=arm: read(arm)))
                found.setdefault((arm, "step"), []).append(speed(lambda arm=arm: train(arm)))
        return [
            {"side": side, "arm": arm, "what": what, "images_per_second": median(values), "rounds": rounds}
            for (arm, what), values in found.items()
        ]


def terms_at_resnet50(rounds: int, side: int = 64, batch: int = 16) -> list[dict[str, Any]]:
    """A step with the low-rank map and its terms beside the control's, turn by turn."""
    images = torch.randint(0, 256, (2 * batch, 3, side, side), dtype=torch.uint8)
    data = ImageSet(
        images, torch.arange(2 * batch) % 10, tuple("abcdefghij"), tuple(map(str, range(2 * batch)))
    )
    arms: dict[str, dict[str, Any]] = {
        "control": {"steering": "none"},
        "relative, uniformity": {"steering": "low_rank"},
        "relative, contrastive, uniformity": {
            "steering": "low_rank",
            "equivariance": {"relative": 0.15, "contrastive": 0.1},
        },
    }
    runs = {}
    for arm, settings in arms.items():
        encoder = EncoderConfig("timm/resnet50", image_size=side)
        config = TrainConfig(encoder=encoder, batch_size=batch, epochs=1000, **settings)
        runs[arm] = Run(config, data, data.subset(range(8)), None)
        runs[arm].learner.train()
    spent: dict[str, list[float]] = {arm: [] for arm in runs}
    for turn in range(rounds + 1):
        for arm in list(runs)[:: -1 if turn % 2 else 1]:
            index = torch.randperm(2 * batch)[:batch]
            began = time.perf_counter()
            runs[arm].train_step(index)
            spent[arm] += [time.perf_counter() - began] if turn else []
    about = {"side": side, "what": "step", "rounds": rounds}
    return [
        {**about, "arm": f"resnet50, {arm}", "images_per_second": batch / median(values)}
        for arm, values in spent.items()
    ]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--images", type=int, default=1024)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--sides", type=int, nargs="+", default=[32, 64])
    parser.add_argument("--resnet50", action="store_true")
    args = parser.parse_args()
    logging.getLogger("lightly").setLevel(logging.ERROR)
    rows = [row for side in args.sides for row in compare(side, args.images, args.batch, args.rounds)]
    by = {(row["side"], row["arm"], row["what"]): row["images_per_second"] for row in rows}
    figures = {
        f"{what}{ours[9:]} over {arm}, {side} pixels": figure([by[side, ours, what] / by[side, arm, what]])
        for side in args.sides
        for what in ("input", "step")
        for ours, arm in ((ARMS[0], ARMS[1]), (ARMS[0], ARMS[2]), (ARMS[3], ARMS[1]))
    }
    if args.resnet50:
        more = terms_at_resnet50(2 * args.rounds)
        rows += more
        figures |= {
            f"share of a ResNet-50 step for {row['arm'][10:]}, CPU": figure(
                [1 - row["images_per_second"] / more[0]["images_per_second"]]
            )
            for row in more[1:]
        }
    path = record(
        "pipeline",
        claim="decode to transformed batch at least twice as fast as lightly on 2 cores, at 32 and at 64 pixels",
        command="python benchmarks/pipeline.py" + " --resnet50" * args.resnet50,
        rows=rows,
        figures=figures,
    )
    print(path.read_text())


if __name__ == "__main__":
    main()
