"""The detection benchmark: scenes whose boxes hold, a head that can find them, and its AP50."""

import json
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image

from bundles import build, tiny
from steerable.data import ImageSet

pytest.importorskip("torchmetrics")
pytest.importorskip("pycocotools")
ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "benchmarks"))
detection = pytest.importorskip("detection")
sys.path.pop(0)


def plain(colors: list[tuple[int, int, int]], size: int = 128) -> ImageSet:
    pixels = torch.tensor(colors, dtype=torch.uint8)[:, :, None, None].expand(-1, -1, size, size).contiguous()
    names = tuple(map(str, range(len(colors))))
    return ImageSet(pixels, torch.arange(len(colors)), names, names)


def scenes(n: int = 6, seed: int = 0):
    return detection.make_scenes(plain([(255, 0, 0), (0, 255, 0)]), plain([(0, 0, 40), (0, 0, 90)]), n, seed)


def test_objects_are_where_the_boxes_say():
    made = scenes(20)
    for image, boxes, classes in zip(made.images, made.boxes, made.classes, strict=True):
        assert 1 <= len(boxes) <= detection.OBJECTS
        ink = image[:2].amax(0) > 60  # textures are blue
        for box, label in zip(boxes.long(), classes, strict=True):
            x0, y0, x1, y1 = box.tolist()
            assert 0 <= x0 < x1 <= 128
            part = image[:, y0:y1, x0:x1]
            assert part[int(label), (y1 - y0) // 2, (x1 - x0) // 2] > 250
            rows, columns = ink[y0:y1, x0:x1].any(1).nonzero(), ink[y0:y1, x0:x1].any(0).nonzero()
            for found, side in ((rows, y1 - y0), (columns, x1 - x0)):
                assert found.min() <= 4
                assert found.max() >= side - 5
            ink[y0:y1, x0:x1] = False
        assert not ink.any(), "and nowhere else"
    again, other = scenes(20), scenes(20, seed=1)
    assert torch.equal(again.images, made.images)
    assert not torch.equal(other.images, made.images)


def test_ap50_is_one_for_the_truth_and_falls_with_errors():
    made = scenes()
    truth = [
        {"boxes": boxes, "scores": torch.ones(len(boxes)), "labels": labels}
        for boxes, labels in zip(made.boxes, made.classes, strict=True)
    ]
    assert detection.ap50(truth, made) == pytest.approx(1)
    wrong = [{**item, "labels": 1 - item["labels"]} for item in truth]
    assert detection.ap50(wrong, made) < 0.7
    boxes_alone = [{**item, "labels": 0 * item["labels"]} for item in truth]
    assert detection.ap50(boxes_alone, made, classless=True) == pytest.approx(1)
    moved = [{**item, "boxes": item["boxes"] + 30} for item in truth]
    assert detection.ap50(moved, made) == 0


def test_the_head_learns_scenes_whose_colors_tell():
    made, held = scenes(80), scenes(20, seed=5)
    x = {
        name: torch.nn.functional.adaptive_avg_pool2d(part.images.float() / 255, detection.GRID)
        for name, part in (("train", made), ("test", held))
    }
    head = detection.train_head(x["train"], made, 2, seed=0, steps=80)
    untrained = detection.train_head(x["train"], made, 2, seed=0, steps=1)
    found = [detection.ap50(list(detection.detect(model, x["test"])), held) for model in (head, untrained)]
    assert found[0] > 0.6
    assert found[1] < 0.2


@pytest.mark.slow
def test_from_bundles_to_a_result_that_goes_on(tmp_path: Path, capsys):
    for name, count in (("caltech101", 3), ("textures", 2)):
        for split in ("train", "test"):
            for label in range(count):
                folder = tmp_path / "data" / name / split / str(label)
                folder.mkdir(parents=True)
                Image.new("RGB", (128, 128), (80 * label, 255 - 80 * label, len(name))).save(folder / "0.png")
    for arm in ("control-seed1", "steerable-seed1"):
        build(tiny(), head=False).save_pretrained(tmp_path / arm / "bundle")
    words = [
        str(tmp_path / "control-seed1" / "bundle"), f"own={tmp_path}/steerable-seed1/bundle", "--data",
        str(tmp_path / "data"), "--classes", "2", "--train", "12", "--test", "6", "--steps", "3", "--results",
        str(tmp_path),
    ]  # fmt: skip
    detection.main(words)
    assert capsys.readouterr().out.count("ap50_boxes") == 2
    result = json.loads((tmp_path / "detection.json").read_text())
    assert [row["bundle"] for row in result["rows"]] == ["control-seed1", "own"]
    assert {"AP50, control", "AP50 of boxes alone, own"} <= result["figures"].keys()
    detection.main(words)
    assert capsys.readouterr().out == ""
    detection.main([*words, "--steps", "2"])
    assert capsys.readouterr().out.count("ap50_boxes") == 2, "other settings are another result"
