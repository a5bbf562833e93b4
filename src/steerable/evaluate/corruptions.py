"""The 15 corruptions x 5 severities of ImageNet-C, made once with seeds that hold, and kept on disk.

Definitions: Hendrycks and Dietterich, Benchmarking Neural Network Robustness to Common Corruptions and
Perturbations (arXiv 1903.12261), as coded in the package imagecorruptions-imaug. Their strengths were chosen
for 224 pixels: the same severity is harder on smaller images. They are not the published files, whose
noise is unknown and which were compressed once more.
"""

import contextlib
import hashlib
import importlib.metadata
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from steerable.data import ImageSet
from steerable.data.cache import remembered
from steerable.errors import ConfigError, DataError, MissingExtra, one_of

CORRUPTIONS = {
    "noise": ("gaussian_noise", "shot_noise", "impulse_noise"),
    "blur": ("defocus_blur", "glass_blur", "motion_blur", "zoom_blur"),
    "weather": ("snow", "frost", "fog", "brightness"),
    "digital": ("contrast", "elastic_transform", "pixelate", "jpeg_compression"),
}
"""Names by group."""

CORRUPTION_NAMES = tuple(name for group in CORRUPTIONS.values() for name in group)
SEVERITIES = (1, 2, 3, 4, 5)

_SMALLEST = 32  # pixels; below, some of the corruptions are not defined
_OWN_SEED = (
    "impulse_noise",
    "glass_blur",
)  # drawn by scikit-image's and by numba's generator, not by numpy's


def corrupt(
    images: ImageSet, name: str, severity: int, *, seed: int = 0, cache: Path | str | None = None
) -> ImageSet:
    """The images after one corruption, with their labels and paths.

    Each image's draw depends on seed, name, severity and its own pixels, so that a subset or another order
    gives the same pixels, and so does another process. The caller's generators are left as they were.

    name: of `CORRUPTION_NAMES`. severity: 1 to 5. cache: a folder in which the pixels are kept (one .npy file)
    and looked up; None keeps nothing. Files are for the versions of the packages that drew them.

    Raises:
        ConfigError: an unknown name or severity. DataError: images below 32 pixels. MissingExtra.
    """
    if name not in CORRUPTION_NAMES:
        raise ConfigError(f"corruption {name!r} is unknown; {one_of(name, CORRUPTION_NAMES)}")
    if severity not in SEVERITIES:
        raise ConfigError(f"severity is {severity!r}; expected 1, 2, 3, 4 or 5: choose one of these")
    if min(images.images.shape[2:]) < _SMALLEST:
        raise DataError(
            f"images are {images.images.shape[2]} x {images.images.shape[3]}; the corruptions expected at "
            f"least {_SMALLEST} pixels: enlarge them (--size {_SMALLEST})"
        )
    path = None
    if cache is not None:
        key = hashlib.sha256(f"{images.fingerprint} {seed} {_versions()}".encode()).hexdigest()[:24]
        path = Path(cache).expanduser() / "corruptions" / key / f"{name}-{severity}.npy"
    pixels = remembered(path, lambda: _corrupted(images, name, severity, seed))
    if pixels.shape != tuple(images.images.shape) or pixels.dtype != np.uint8:
        raise DataError(
            f"{path} holds {pixels.dtype} {pixels.shape}; expected uint8 {tuple(images.images.shape)}: "
            "delete the file"
        )
    title = f"{images.name} {name} {severity}".strip()
    return ImageSet(torch.from_numpy(pixels), images.labels, images.classes, images.paths, name=title)


def _corrupted(images: ImageSet, name: str, severity: int, seed: int) -> np.ndarray:
    function = _package().corruption_dict[name]
    from PIL import Image

    result = np.empty_like(images.images.numpy())
    before = np.random.get_state()
    try:
        with contextlib.redirect_stdout(io.StringIO()):  # some print about sizes that do not divide
            for i, (pixels, draw) in enumerate(_draws(images, name, severity, seed)):
                np.random.seed(draw)
                own = {"seed": draw} if name in _OWN_SEED else {}
                drawn = np.asarray(function(Image.fromarray(pixels), severity, **own))
                result[i] = drawn.astype(np.uint8).transpose(2, 0, 1)
    finally:
        np.random.set_state(before)
    return result


def _draws(images: ImageSet, name: str, severity: int, seed: int) -> Iterator[tuple[np.ndarray, int]]:
    """Pixels (h, w, 3) and the seed of each image's draw, in [0, 2^32)."""
    for pixels in images.images.permute(0, 2, 3, 1).contiguous().numpy():
        digest = hashlib.sha256(f"{seed} {name} {severity} {pixels.shape}".encode() + pixels.tobytes())
        yield pixels, int.from_bytes(digest.digest()[:4], "little")


def _package() -> Any:
    try:
        import imagecorruptions
    except ImportError:
        raise MissingExtra("imagecorruptions-imaug", "eval") from None
    return imagecorruptions


def _versions() -> str:
    """Of the packages whose code draws or filters."""
    _package()
    import cv2
    import PIL

    own = [importlib.metadata.version(name) for name in ("imagecorruptions-imaug", "scikit-image")]
    return " ".join((*own, np.__version__, cv2.__version__, PIL.__version__))
