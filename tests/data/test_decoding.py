"""The decoder: every kind of picture becomes RGB, and every kind of trouble one DataError."""

import contextlib
import struct
import zlib

import numpy as np
import pytest
import torch
from PIL import Image

from steerable.data import decode
from steerable.errors import DataError


def pixels(image: Image.Image) -> torch.Tensor:
    return torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1)


def distance(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a.float() - b.float()).abs().mean())


def png_header(width: int, height: int) -> bytes:
    """A PNG that promises more pixels than it holds."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    parts = chunk(b"IHDR", header), chunk(b"IDAT", zlib.compress(b"\0" * 64)), chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


@pytest.mark.parametrize("form", ["PNG", "BMP", "TIFF", "PPM"])
def test_lossless_files_keep_their_pixels(picture, encoded, form):
    image = picture(1)
    decoded = decode(encoded(image, form))
    assert decoded.dtype == torch.uint8
    assert decoded.shape == (3, 30, 40)
    assert torch.equal(decoded, pixels(image))


def test_path_and_bytes_agree_and_the_result_is_writable(picture, encoded, tmp_path):
    (tmp_path / "x.png").write_bytes(encoded(picture(2)))
    from_path, from_bytes = decode(tmp_path / "x.png"), decode(encoded(picture(2)))
    assert torch.equal(from_path, from_bytes)
    from_bytes.zero_()


def test_cmyk_jpeg_keeps_its_colors(picture, encoded):
    image = picture(3)
    assert distance(decode(encoded(image.convert("CMYK"), "JPEG", quality=95)), pixels(image)) < 4


def test_sixteen_bit_gray_is_scaled_not_clipped(encoded):
    ramp = np.linspace(0, 65535, 16 * 16).astype(np.uint16).reshape(16, 16)
    decoded = decode(encoded(Image.fromarray(ramp)))
    assert torch.equal(decoded[0], decoded[2])
    assert int((decoded[0].int() - torch.from_numpy(ramp // 257).int()).abs().max()) <= 1


def test_float_tiff_in_unit_range_is_scaled_and_beyond_it_refused(encoded):
    ramp = np.linspace(0, 1, 64, dtype=np.float32).reshape(8, 8)
    assert decode(encoded(Image.fromarray(ramp), "TIFF"))[0, -1, -1] == 255
    for bad in (ramp * 300, ramp - 0.5, np.where(ramp > 0.5, np.nan, ramp)):
        with pytest.raises(DataError, match="has values from"):
            decode(encoded(Image.fromarray(bad.astype(np.float32)), "TIFF"))


def test_palette_matches_its_colors(picture, encoded):
    image = picture(4).quantize(16)
    assert torch.equal(decode(encoded(image)), pixels(image))


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_transparency_is_laid_over_white(encoded, mode):
    if mode == "P":
        image = Image.new("P", (8, 8), 0)
        image.putpalette([200, 0, 0])
        data = encoded(image, transparency=0)
    else:
        data = encoded(Image.new(mode, (8, 8), (200, 0, 0, 0) if mode == "RGBA" else (10, 0)))
    assert int(decode(data).min()) == 255


def test_bilevel_and_gray_become_rgb(encoded):
    assert decode(encoded(Image.new("1", (8, 8), 1))).min() == 255
    assert decode(encoded(Image.new("L", (9, 8), 77))).unique().tolist() == [77]


def test_exif_orientation_turns_the_picture(picture, encoded):
    image, exif = picture(5), Image.Exif()
    exif[0x0112] = 6  # the camera was held on its side: turn clockwise to see it upright
    decoded = decode(encoded(image, "PNG", exif=exif))
    assert decoded.shape == (3, 40, 30)
    assert torch.equal(decoded, pixels(image).rot90(-1, (1, 2)))


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")
def test_damaged_exif_does_not_cost_the_picture(picture, encoded):
    data = encoded(picture(5), "JPEG", exif=b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\xff\xff\xff")
    assert decode(data).shape == (3, 30, 40)


@pytest.mark.parametrize("form", ["GIF", "WEBP"])
def test_of_an_animation_the_first_frame_counts(encoded, form):
    frames = [Image.new("RGB", (16, 16), color) for color in ("red", "blue")]
    decoded = decode(encoded(frames[0], form, save_all=True, append_images=frames[1:]))
    assert int(decoded[0].min()) > 240
    assert int(decoded[2].max()) < 15


def test_size_resizes_the_short_side_and_crops_the_center(encoded):
    # three equal stripes side by side: the center crop of a 3:1 picture is the middle one
    stripes = np.zeros((32, 96, 3), dtype=np.uint8)
    stripes[:, :32, 0], stripes[:, 32:64, 1], stripes[:, 64:, 2] = 255, 255, 255
    decoded = decode(encoded(Image.fromarray(stripes)), size=16)
    assert decoded.shape == (3, 16, 16)
    assert decoded.float().mean((1, 2)).tolist() == pytest.approx([0, 255, 0], abs=3)


def test_shrinking_averages(encoded):
    checkers = (np.indices((128, 128)).sum(0) % 2 * 255).astype(np.uint8)
    decoded = decode(encoded(Image.fromarray(checkers)), size=16).float()
    assert float((decoded - 127.5).abs().max()) < 3


def test_large_jpegs_decoded_at_a_smaller_scale_look_the_same(picture, encoded):
    data = encoded(picture(6, 1024, 768), "JPEG", quality=95)
    shrunk = pixels(picture(6, 1024, 768).crop((128, 0, 896, 768)).resize((48, 48), Image.Resampling.BICUBIC))
    assert distance(decode(data, size=48), shrunk) < 1.5


@pytest.mark.parametrize(
    ("data", "match"),
    [
        (b"", "no known format"),
        (b"these are words", "no known format"),
        (b'<svg xmlns="http://www.w3.org/2000/svg"/>', "no known format"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 99 99\n", "no known format"),
        (png_header(1, 1), "sides of at least 8"),
        (png_header(7, 500), "sides of at least 8"),
        (png_header(8_001, 8_000), "at most 64,000,000 pixels"),
        (png_header(10_000, 10_000), "at most 64,000,000 pixels"),
        (png_header(60_000, 60_000), "at most 64,000,000 pixels"),
        (png_header(64, 64), "cannot be decoded"),
    ],
    ids=["empty", "text", "svg", "eps", "1x1", "7x500", "64MP", "100MP", "3600MP", "no pixels"],
)
def test_bad_bytes_are_one_line(data, match):
    with pytest.raises(DataError, match=match) as caught:
        decode(data)
    assert "\n" not in str(caught.value)
    assert caught.value.__suppress_context__


@pytest.mark.parametrize("form", ["JPEG", "PNG", "GIF", "WEBP"])
def test_truncated_files(picture, encoded, form):
    data = encoded(picture(7, 64, 64), form)
    with pytest.raises(DataError, match=r"cannot be decoded|no known format"):
        decode(data[: len(data) // 2])


def test_damaged_bytes_never_escape_as_another_error(picture, encoded):
    generator = torch.Generator().manual_seed(0)
    for form in ("JPEG", "PNG", "GIF", "TIFF", "BMP", "WEBP"):
        whole = encoded(picture(8), form)
        for _ in range(25):
            damaged = bytearray(whole)
            for at in torch.randint(len(whole), (4,), generator=generator).tolist():
                damaged[at] ^= 0xFF
            with contextlib.suppress(DataError):
                assert decode(bytes(damaged), size=16).shape == (3, 16, 16)


def test_missing_file_and_folder(tmp_path):
    with pytest.raises(DataError, match="does not exist"):
        decode(tmp_path / "none.png")
    with pytest.raises(DataError, match="cannot be decoded"):
        decode(tmp_path)


@pytest.mark.parametrize("size", [7, 0, -3])
def test_size_below_eight(picture, encoded, size):
    with pytest.raises(DataError, match=f"size is {size}"):
        decode(encoded(picture()), size=size)
