"""The embedded data set: patches of the color photographs that ship inside scikit-image and scikit-learn.

Ten photographs are ten classes. Each is laid out as a grid of square blocks; one block in five belongs to the
test split, spread by a knight's move, the others to the training split. A patch lies inside one block, so no
pixel of a photograph is seen by both splits.
"""

from functools import cache
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Int64, UInt8
from PIL import Image

from steerable.data.decoding import check_size, decode_array
from steerable.data.images import ImageSet
from steerable.errors import DataError

# Also in scikit-image, and left out: the right view of the motorcycle (the left one again) and drawings.
PHOTOGRAPHS = {
    "astronaut": ("skimage", "data/astronaut.png"),
    "cat": ("skimage", "data/chelsea.png"),
    "coffee": ("skimage", "data/coffee.png"),
    "galaxies": ("skimage", "data/hubble_deep_field.jpg"),
    "tissue": ("skimage", "data/ihc.png"),
    "motorcycle": ("skimage", "data/motorcycle_left.png"),
    "retina": ("skimage", "data/retina.jpg"),
    "rocket": ("skimage", "data/rocket.jpg"),
    "temple": ("sklearn", "datasets/images/china.jpg"),
    "flower": ("sklearn", "datasets/images/flower.jpg"),
}
COUNTS = {"train": 2000, "test": 500}
ROWS = 4  # blocks along the photograph's short side
SMALLEST = 0.45  # side of the smallest patch, as a share of the block
FLATTEST = 8  # standard deviation, in gray levels, below which a patch is empty sky or black border

Box = tuple[int, int, int, int]


def photos(split: str = "train", *, size: int = 32, n: int | None = None, seed: int = 0) -> ImageSet:
    """Patches of photographs, in equal shares and in random order; needs no network.

    Args:
        split: "train" or "test"; they share no pixel of any photograph.
        size: side of the patches in pixels.
        n: number of patches; 2,000 for train and 500 for test where not given.
        seed: of positions and scales. Equal seeds give equal bytes.

    Returns:
        ``n`` images, (n, 3, size, size), whose class is the photograph; ``paths`` holds
        "photograph#left,top,side".

    Raises:
        DataError: an unknown split, a size below 8, n below 1, or a wheel without its photographs.
    """
    check_size(size)
    count = _count(split, n)
    rng = np.random.default_rng([seed, list(COUNTS).index(split)])  # PCG64: equal on every machine
    labels = rng.permutation(np.arange(count) % len(PHOTOGRAPHS))
    patches = np.empty((count, size, size, 3), dtype=np.uint8)
    paths = [""] * count
    for label, name in enumerate(PHOTOGRAPHS):
        photograph = Image.fromarray(_photograph(name))
        blocks = block_grid(photograph.width, photograph.height)[split]
        for row in np.flatnonzero(labels == label):
            box = _draw(photograph, blocks, rng)
            patches[row] = np.asarray(photograph.crop(box).resize((size, size), Image.Resampling.BICUBIC))
            paths[row] = f"{name}#{box[0]},{box[1]},{box[2] - box[0]}"
    images = torch.from_numpy(patches).permute(0, 3, 1, 2).contiguous()
    y = torch.from_numpy(labels).long()
    return ImageSet(images, y, tuple(PHOTOGRAPHS), tuple(paths), name=f"photos:{split}")


def block_grid(width: int, height: int) -> dict[str, list[Box]]:
    """Blocks (left, top, right, bottom) of a photograph of that size, by split; no two overlap."""
    side = min(width, height) // ROWS
    grid: dict[str, list[Box]] = {"train": [], "test": []}
    for r in range(height // side):
        for c in range(width // side):
            split = "test" if (r * 2 + c) % 5 == 2 else "train"
            grid[split].append((c * side, r * side, (c + 1) * side, (r + 1) * side))
    return grid


def _draw(photograph: Image.Image, blocks: list[Box], rng: np.random.Generator) -> Box:
    """A square of random side and place inside a random block, with something in it."""
    while True:
        left, top, right, _ = blocks[int(rng.integers(len(blocks)))]
        block = right - left
        side = int(rng.integers(int(SMALLEST * block), block, endpoint=True))
        x, y = (int(v) for v in rng.integers(0, block - side, size=2, endpoint=True))
        box = (left + x, top + y, left + x + side, top + y + side)
        if _varied(np.asarray(photograph.crop(box).convert("L"), dtype=np.int64)):
            return box


def _varied(gray: Int64[np.ndarray, "h w"]) -> bool:
    # in integers, whose sums are equal on every machine
    return bool(gray.size * (gray * gray).sum() - gray.sum() ** 2 >= (FLATTEST * gray.size) ** 2)


def _count(split: str, n: int | None) -> int:
    if split not in COUNTS:
        raise DataError(
            f"photos has no split {split!r}; expected train or test: write photos:train or photos:test"
        )
    if n is not None and n < 1:
        raise DataError(f"n is {n}; expected at least 1 patch: raise n")
    return COUNTS[split] if n is None else n


@cache
def _photograph(name: str) -> UInt8[np.ndarray, "h w 3"]:
    package, path = PHOTOGRAPHS[name]
    spec = find_spec(package)  # finds the wheel's files without the seconds that importing it takes
    for root in (spec.submodule_search_locations or ()) if spec else ():
        if (Path(root) / path).is_file():
            return decode_array(Path(root) / path)
    raise DataError(
        f"{path} is not inside the installed {package}; expected the photograph that its wheel ships: "
        f"run pip install --force-reinstall {'scikit-image' if package == 'skimage' else 'scikit-learn'}"
    )
