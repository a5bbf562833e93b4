"""Detection on frozen features: a small head learns to find Caltech-101 objects pasted on textures at known boxes.

    python benchmarks/detection.py runs/tables/small_cifar10_supervised/*/bundle --data ../shared/data
    python benchmarks/detection.py control-seed1=A/bundle steerable-seed1=B/bundle --data ../shared/data --classes 5

A scene is a texture with one to three objects, each cut out by a soft ellipse that fills its box, and with patches of
other textures, cut out alike, which are no objects; training scenes are made of the sets' training images, test
scenes of their test images. All encoders meet the same scenes. The features of the last two stages are brought to one
grid, standardized, and kept as they are; the head (two convolutions, then class scores and distances to the four sides
at each place) is anchor-free: focal loss, and generalized IoU where an object's center is near. AP50: of boxes with
their classes (mean over classes), and of boxes alone; the same where all objects are one class. Writes
results/detection.json after each bundle, and skips those that are in it.
"""

import argparse
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from record import RESULTS, figure, record
from torch import Tensor, nn
from torchvision.ops import batched_nms, generalized_box_iou_loss, sigmoid_focal_loss

from steerable.data import ImageSet, load_images
from steerable.data.images import as_float
from steerable.model import SteerableEncoder

SIZE, GRID = 128, 16  # pixels of a scene; places on each side
SIDES = (32, 72)  # pixels of an object's box
OBJECTS, DISTRACTORS = 3, 2  # at most
CENTRAL = 0.3  # of a box, from its center to each side: places there are to find it
WIDTH, STEPS, BATCH, RATE = 64, 300, 32, 2e-3
KEPT, OVERLAP = 50, 0.5  # boxes of a scene, and the IoU beyond which the better one suppresses the other


class Scenes(NamedTuple):
    """images (n, 3, 128, 128) uint8; per scene boxes (k, 4), x and y of two corners in pixels, and classes (k,)."""

    images: Tensor
    boxes: list[Tensor]
    classes: list[Tensor]


def make_scenes(objects: ImageSet, textures: ImageSet, n: int, seed: int) -> Scenes:
    """Scenes from the images of two sets; equal for equal seeds."""
    g = torch.Generator().manual_seed(seed)
    images = torch.empty(n, 3, SIZE, SIZE, dtype=torch.uint8)
    boxes, classes = [], []
    for scene in images:
        canvas = textures.float_images([draw(len(textures), g)])[0]
        found: list[tuple[list[int], int]] = []
        counts = (1 + draw(OBJECTS, g), draw(DISTRACTORS + 1, g))
        taken: list[list[int]] = []
        for kind in [True] * counts[0] + [False] * counts[1]:
            source = objects if kind else textures
            index = draw(len(source), g)
            box = free_box(taken, g)
            if box is None:
                continue
            taken.append(box)
            paste(canvas, source.float_images([index])[0], box)
            if kind:
                found.append((box, int(source.labels[index])))
        scene.copy_((255 * canvas).round())
        boxes.append(torch.tensor([box for box, _ in found], dtype=torch.float32).view(-1, 4))
        classes.append(torch.tensor([label for _, label in found], dtype=torch.int64))
    return Scenes(images, boxes, classes)


def draw(n: int, g: torch.Generator) -> int:
    return int(torch.randint(n, (1,), generator=g))


def free_box(taken: Sequence[Sequence[int]], g: torch.Generator, tries: int = 20) -> list[int] | None:
    """A box inside the frame that overlaps none, if one is found."""
    for _ in range(tries):
        w, h = (SIDES[0] + draw(SIDES[1] - SIDES[0] + 1, g) for _ in range(2))
        x, y = draw(SIZE - w + 1, g), draw(SIZE - h + 1, g)
        if all(x >= b[2] or x + w <= b[0] or y >= b[3] or y + h <= b[1] for b in taken):
            return [x, y, x + w, y + h]
    return None


def paste(canvas: Tensor, image: Tensor, box: Sequence[int]) -> None:
    """Blend an image into its box, by an ellipse with a soft rim."""
    x0, y0, x1, y1 = box
    patch = F.interpolate(image[None], (y1 - y0, x1 - x0), mode="bilinear", antialias=True)[0]
    v = torch.linspace(-1, 1, y1 - y0)[:, None]
    u = torch.linspace(-1, 1, x1 - x0)
    alpha = ((1 - (u.square() + v.square()).sqrt()) / 0.1).clamp(0, 1)
    canvas[:, y0:y1, x0:x1] = alpha * patch + (1 - alpha) * canvas[:, y0:y1, x0:x1]


@torch.no_grad()
def dense_features(model: SteerableEncoder, images: Tensor) -> Tensor:
    """(n, c, 16, 16) in half precision: the last two stages of the network, at the size that the scenes have."""
    encoder, parts = model.encoder.eval(), []
    for batch in images.split(64):
        x = (as_float(batch).to(model.device) - encoder.mean) / encoder.std
        stages = encoder.network.forward_intermediates(
            x, indices=2, output_fmt="NCHW", intermediates_only=True
        )
        maps = [
            F.interpolate(stage.float(), (GRID, GRID), mode="bilinear", align_corners=False, antialias=True)
            for stage in stages
        ]
        parts.append(torch.cat(maps, 1).half())
    return torch.cat(parts)


class Head(nn.Module):
    """Class logits (b, k, g, g), and distances to left, top, right and bottom (b, 4, g, g) in sides of the image."""

    def __init__(self, mean: Tensor, std: Tensor, classes: int):
        super().__init__()
        self.register_buffer("mean", mean[:, None, None])
        self.register_buffer("std", std[:, None, None])
        self.body = nn.Sequential(
            nn.Conv2d(len(mean), WIDTH, 1), nn.GroupNorm(8, WIDTH), nn.ReLU(),
            nn.Conv2d(WIDTH, WIDTH, 3, padding=1), nn.GroupNorm(8, WIDTH), nn.ReLU(),
        )  # fmt: skip
        self.out = nn.Conv2d(WIDTH, classes + 4, 3, padding=1)
        nn.init.constant_(self.out.bias[:classes], -4.0)  # objects are rare

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        out = self.out(self.body((x - self.mean) / self.std))
        return out[:, :-4], F.softplus(out[:, -4:]) / 4


def centers(device: torch.device) -> Tensor:
    """(g, g, 2): x and y of each place, in sides of the image."""
    line = (torch.arange(GRID, device=device) + 0.5) / GRID
    return torch.stack([line.expand(GRID, GRID), line[:, None].expand(GRID, GRID)], -1)


def targets(scenes: Scenes, classes: int) -> tuple[Tensor, Tensor]:
    """Scores (n, k, g, g), one where an object of the class has its central part, and its box (n, 4, g, g) there."""
    n, place = len(scenes.images), centers(torch.device("cpu"))
    scores, boxes = torch.zeros(n, classes, GRID, GRID), torch.zeros(n, 4, GRID, GRID)
    for i, (found, labels) in enumerate(zip(scenes.boxes, scenes.classes, strict=True)):
        for box, label in zip(found / SIZE, labels.tolist(), strict=True):
            middle, half = (box[:2] + box[2:]) / 2, CENTRAL * (box[2:] - box[:2])
            inside = ((place - middle).abs() <= half).all(-1)
            scores[i, label, inside] = 1
            boxes[i, :, inside] = box[:, None]
    return scores, boxes


def corners(distances: Tensor) -> Tensor:
    """Boxes (b, 4, g, g) from distances to the sides."""
    place = centers(distances.device).permute(2, 0, 1)
    return torch.cat([place - distances[:, :2], place + distances[:, 2:]], 1)


def train_head(x: Tensor, scenes: Scenes, classes: int, seed: int, steps: int) -> Head:
    """Adam with cosine decay on features x (n, c, g, g)."""
    torch.manual_seed(seed)
    flat = x.float()
    head = Head(flat.mean((0, 2, 3)), flat.std((0, 2, 3)).clamp_min(1e-6), classes).to(x.device)
    scores, boxes = (part.to(x.device) for part in targets(scenes, classes))
    optimizer = torch.optim.Adam(head.parameters(), RATE)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    generator = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        rows = torch.randint(len(x), (min(BATCH, len(x)),), generator=generator).to(x.device)
        logits, distances = head(x[rows].float())
        wanted = scores[rows]
        there = wanted.amax(1) > 0
        count = there.sum().clamp_min(1)
        loss = sigmoid_focal_loss(logits, wanted, reduction="sum") / count
        ours, true = (part.movedim(1, -1)[there] for part in (corners(distances), boxes[rows]))
        loss = loss + generalized_box_iou_loss(ours, true, reduction="sum") / count
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return head.eval()


@torch.no_grad()
def detect(head: Head, x: Tensor, *, classless: bool = False) -> Iterator[dict[str, Tensor]]:
    """Per scene the boxes in pixels, scores and labels that are left after suppression."""
    for part in x.split(64):
        logits, distances = head(part.float())
        for scores, boxes in zip(logits.sigmoid().flatten(2), corners(distances).flatten(2), strict=True):
            if classless:
                scores = scores.amax(0, keepdim=True)
            top, index = scores.flatten().topk(min(4 * KEPT, scores.numel()))
            labels, place = index // scores.shape[1], index % scores.shape[1]
            found = (SIZE * boxes.T[place]).clamp(0, SIZE)
            kept = batched_nms(found, top, labels, OVERLAP)[:KEPT]
            yield {"boxes": found[kept].cpu(), "scores": top[kept].cpu(), "labels": labels[kept].cpu()}


def ap50(found: Sequence[Mapping[str, Tensor]], scenes: Scenes, *, classless: bool = False) -> float:
    """Average precision at IoU 0.5 as COCO counts it, mean over classes."""
    from torchmetrics.detection import MeanAveragePrecision

    metric = MeanAveragePrecision(iou_thresholds=[0.5], backend="pycocotools")
    wanted = [
        {"boxes": boxes, "labels": torch.zeros_like(labels) if classless else labels}
        for boxes, labels in zip(scenes.boxes, scenes.classes, strict=True)
    ]
    metric.update([dict(item) for item in found], wanted)
    return float(metric.compute()["map_50"])


def renumbered(objects: Mapping[str, ImageSet], count: int) -> dict[str, ImageSet]:
    """The images of the most frequent training classes, renumbered; all images as one class where count is 0."""
    classes = torch.bincount(objects["train"].labels).topk(count).indices.sort().values
    number = torch.full((len(objects["train"].classes),), -1 if count else 0)
    number[classes] = torch.arange(count)
    names = tuple(objects["train"].classes[i] for i in classes.tolist()) or ("object",)
    out = {}
    for split, images in objects.items():
        part = images.subset(number[images.labels] >= 0)
        out[split] = ImageSet(part.images, number[part.labels], names, part.paths, name=part.name)
    return out


def scenes_of(args: argparse.Namespace) -> dict[str, Scenes]:
    """Training and test scenes."""
    read = {
        name: {
            split: load_images(name, root=args.data, split=split, size=SIZE) for split in ("train", "test")
        }
        for name in ("caltech101", "textures")
    }
    objects = renumbered(read["caltech101"], args.classes)
    counts = {"train": args.train, "test": args.test}
    return {
        split: make_scenes(objects[split], read["textures"][split], count, seed)
        for seed, (split, count) in enumerate(counts.items())
    }


def label_of(word: str) -> tuple[str, Path]:
    """LABEL=PATH, or a path whose run's folder is the label."""
    label, equals, path = word.rpartition("=")
    bundle = Path(path)
    return (label if equals else (bundle.parent if bundle.name == "bundle" else bundle).name), bundle


def measure(bundle: Path, scenes: Mapping[str, Scenes], args: argparse.Namespace) -> dict[str, float]:
    """AP50s of a bundle, means over the seeds of the head."""
    model = SteerableEncoder.from_pretrained(bundle, device=args.device).eval()
    x = {split: dense_features(model, part.images) for split, part in scenes.items()}
    found: dict[str, list[float]] = {"ap50": [], "ap50_boxes": []}
    for seed in range(args.heads):
        head = train_head(x["train"], scenes["train"], max(1, args.classes), seed, args.steps)
        for name, classless in (("ap50", False), ("ap50_boxes", True)):
            detected = list(detect(head, x["test"], classless=classless))
            found[name].append(ap50(detected, scenes["test"], classless=classless))
    return {name: figure(values)["mean"] for name, values in found.items()}


def summary(rows: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """Mean and spread over the seeds of each arm, which is a label without -seedN."""
    arms: dict[str, list[Mapping[str, Any]]] = {}
    for row in rows:
        arms.setdefault(row["bundle"].rpartition("-seed")[0] or row["bundle"], []).append(row)
    titles = {"ap50": "AP50", "ap50_boxes": "AP50 of boxes alone"}
    return {
        f"{title}, {arm}": figure([100 * row[name] for row in found], "%")
        for name, title in titles.items()
        for arm, found in arms.items()
    }


def main(words: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("bundles", nargs="+", help="LABEL=PATH, or a path whose run's folder is the label")
    parser.add_argument("--data", required=True, help="folder with local copies of caltech101 and textures")
    parser.add_argument(
        "--classes", type=int, default=0, help="the most frequent ones; 0: all objects are one class"
    )
    parser.add_argument("--train", type=int, default=1000, help="training scenes")
    parser.add_argument("--test", type=int, default=400, help="test scenes")
    parser.add_argument("--steps", type=int, default=STEPS, help="of the head's training")
    parser.add_argument("--heads", type=int, default=1, help="seeds of the head, averaged")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--name", default="detection", help="of the result")
    parser.add_argument("--results", type=Path, default=RESULTS)
    args = parser.parse_args(words)
    path = args.results / f"{args.name}.json"
    settings = {name: getattr(args, name) for name in ("classes", "train", "test", "steps", "heads")}
    rows = json.loads(path.read_text())["rows"] if path.exists() else []
    rows = [row for row in rows if settings.items() <= row.items()]
    scenes = scenes_of(args)
    for label, bundle in map(label_of, args.bundles):
        if any(row["bundle"] == label for row in rows):
            continue
        rows.append({"bundle": label, **measure(bundle, scenes, args), **settings})
        print({key: rows[-1][key] for key in ("bundle", "ap50", "ap50_boxes")}, flush=True)
        record(
            args.name,
            claim="detection of Caltech-101 objects pasted on textures by a small head on frozen features of the last "
            f"two stages: AP50, {args.classes or 1} class(es), {args.train} training scenes",
            command=f"python benchmarks/detection.py RUNS/*/bundle --data DATA --classes {args.classes}",
            seeds=sorted(
                {int(number) for row in rows if (number := row["bundle"].rpartition("-seed")[2]).isdecimal()}
            ),
            rows=rows,
            figures=summary(rows),
            path=path,
        )


if __name__ == "__main__":
    main()
