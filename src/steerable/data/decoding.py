"""One picture, from bytes or a path, to uint8 RGB: the only decoder, also for uploads from strangers."""

import contextlib
import io
import math
import os
from functools import cache

import numpy as np
import torch
from jaxtyping import UInt8
from PIL import Image, ImageOps
from torch import Tensor

from steerable.errors import DataError

# A list, since Pillow would otherwise hand PostScript to an interpreter, and reads scores of rare formats.
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "JPEG2000", "AVIF")
EXTENSIONS = (
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".mpo", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff"),
    *(".ppm", ".pgm", ".pnm", ".jp2", ".j2k", ".avif"),
)
MAX_PIXELS = 64_000_000
MIN_SIDE = 8

Raw = bytes | str | os.PathLike[str]


def decode(data: Raw, *, size: int | None = None) -> UInt8[Tensor, "3 h w"]:
    """Decode one image to uint8 RGB, (3, h, w) in 0..255.

    ``data`` holds the file's bytes, or is its path. With ``size`` the short side is resized (bicubic,
    antialiased) and the center cropped to (3, size, size); without it the image keeps its pixels.

    The picture is turned as its EXIF orientation says, transparency is laid over white, CMYK and palettes
    become RGB, 16-bit gray is scaled to 8 bits, and of an animation the first frame counts.

    Raises:
        DataError: no file, not an image in one of ``FORMATS``, damaged or truncated, more than 64 million
            pixels, a side below 8 pixels, or a ``size`` below 8.
    """
    return torch.from_numpy(decode_array(data, size=size)).permute(2, 0, 1).contiguous()


def decode_array(data: Raw, *, size: int | None = None) -> UInt8[np.ndarray, "h w 3"]:
    """As ``decode``, with the channels last."""
    check_size(size)
    what = f"{len(data)} bytes" if isinstance(data, bytes) else os.fspath(data)
    try:
        with Image.open(io.BytesIO(data) if isinstance(data, bytes) else data, formats=_readable()) as image:
            _check_dimensions(*image.size)
            if size is not None:  # lets the JPEG decoder skip detail that the resize throws away
                image.draft(None, (2 * size, 2 * size))
            rgb = _to_rgb(_upright(image))
    except DataError as error:
        raise DataError(f"image {what} {error}") from None
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise DataError(f"image {what} {_too_large()}") from None
    except FileNotFoundError:
        raise DataError(f"image {what} does not exist; expected a file: check the path") from None
    except Image.UnidentifiedImageError:
        raise DataError(
            f"image {what} has no known format; expected one of {', '.join(FORMATS)}: convert it first"
        ) from None
    except Exception as error:  # damaged files make Pillow's decoders raise almost anything
        raise DataError(
            f"image {what} cannot be decoded ({_one_line(error)}); expected an undamaged file: replace it"
        ) from None
    return np.array(rgb if size is None else _square(rgb, size))  # a copy, which may be written to


def count_pixels(data: bytes) -> int:
    """Width times height, as the file's head says; nothing is decoded. 0 for what `decode` would refuse."""
    try:
        with Image.open(io.BytesIO(data), formats=_readable()) as image:
            return image.width * image.height
    except Exception:  # as in decode_array
        return 0


def check_size(size: int | None) -> None:
    """Raises DataError for a side below 8 pixels."""
    if size is not None and size < MIN_SIDE:
        raise DataError(f"size is {size}; expected a side of at least {MIN_SIDE} pixels: raise size")


@cache
def _readable() -> tuple[str, ...]:
    """Those of ``FORMATS`` that this build of Pillow knows."""
    Image.init()
    return tuple(name for name in FORMATS if name in Image.OPEN)


def _check_dimensions(width: int, height: int) -> None:
    if width * height > MAX_PIXELS:
        raise DataError(f"has {width}x{height} pixels and {_too_large()}")
    if min(width, height) < MIN_SIDE:
        raise DataError(
            f"has {width}x{height} pixels; expected sides of at least {MIN_SIDE}: use a larger one"
        )


def _too_large() -> str:
    return f"is too large; expected at most {MAX_PIXELS:,} pixels: make it smaller first"


def _upright(image: Image.Image) -> Image.Image:
    image.load()
    with contextlib.suppress(Exception):  # a damaged EXIF block beside sound pixels, which count for more
        ImageOps.exif_transpose(image, in_place=True)
    return image


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith(("I", "F")):
        return Image.fromarray(_deep_gray(np.asarray(image))).convert("RGB")
    if image.has_transparency_data:
        layer = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer).convert("RGB")
    return image if image.mode == "RGB" else image.convert("RGB")


def _deep_gray(values: np.ndarray) -> UInt8[np.ndarray, "h w"]:
    """16-bit integers, or floats in [0, 1], to 8 bits; Pillow itself would clip them."""
    low, high = float(values.min()), float(values.max())
    ceiling = 1.0 if values.dtype.kind == "f" else 65535.0
    if not (math.isfinite(low) and math.isfinite(high) and low >= 0 and high <= ceiling):
        raise DataError(
            f"has values from {low:g} to {high:g}; expected 0 to {ceiling:g} in such a file: "
            "convert it to 8 bits"
        )
    return np.rint(values.astype(np.float64) * (255.0 / ceiling)).astype(np.uint8)


def _square(image: Image.Image, size: int) -> Image.Image:
    if image.size == (size, size):
        return image
    return ImageOps.fit(image, (size, size), Image.Resampling.BICUBIC)


def _one_line(error: BaseException) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:200]
