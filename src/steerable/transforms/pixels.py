"""The three things done to pixels: one warp, one color product, then filters; and the plan that says which.

The small algebra (matrices from theta) stays on theta's device, most often the CPU; a plan carries its
results to the images. On the CPU the batch is worked through in blocks that stay in the cache: writing
fresh memory costs more than the arithmetic.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

_BLOCK_BYTES = 3_500_000
"""Images per block and thread, in bytes of float32; flat between 2 and 10 MB where tried."""


@dataclass(frozen=True)
class Plan:
    """What to do to a batch of images, row by row: geometry, then color, then filters."""

    matrix: Float[Tensor, "b 3 3"] | None = None
    """Moves the content: see ``warp``."""
    color: Float[Tensor, "b 7 7"] | None = None
    """Maps (color, mean color, 1): see ``recolor``."""
    filters: tuple[tuple[Callable[[Tensor, Tensor], Tensor], Tensor], ...] = ()
    """(function of images and theta, its theta (b, p)), in order."""

    def then(self, after: "Plan") -> "Plan":
        """Both plans as one; within geometry and within color the matrices multiply."""
        return Plan(
            _product(self.matrix, after.matrix),
            _product(self.color, after.color),
            self.filters + after.filters,
        )

    def rows(self, block: slice) -> "Plan":
        """The plan of some of the images."""
        return Plan(
            None if self.matrix is None else self.matrix[block],
            None if self.color is None else self.color[block],
            tuple((act, theta[block]) for act, theta in self.filters),
        )


def sent(tensor: Tensor, device: torch.device, dtype: torch.dtype | None = None) -> Tensor:
    """The tensor on the device, of that type; to a GPU through page-locked memory, without waiting for its work."""
    if tensor.device.type == "cpu" and device.type == "cuda":
        return tensor.to(dtype or tensor.dtype).pin_memory().to(device, non_blocking=True)
    return tensor.to(device, dtype or tensor.dtype)


def _product(before: Tensor | None, after: Tensor | None) -> Tensor | None:
    if before is None or after is None:
        return after if before is None else before
    return after @ before


def paint(images: Float[Tensor, "b 3 h w"], plan: Plan) -> Float[Tensor, "b 3 h w"]:
    """Carry out a plan and clip to [0, 1]: a new, contiguous tensor of the images' type."""
    step = len(images)
    if images.device.type == "cpu" and step:
        step = max(1, torch.get_num_threads() * _BLOCK_BYTES // (4 * images[0].numel()))
    if len(images) <= step:
        return _paint_block(images, plan).to(images.dtype).contiguous()
    out = torch.empty_like(images, memory_format=torch.contiguous_format)
    for start in range(0, len(images), step):
        block = slice(start, start + step)
        out[block] = _paint_block(images[block], plan.rows(block))
    return out


def _paint_block(images: Float[Tensor, "b 3 h w"], plan: Plan) -> Float[Tensor, "b 3 h w"]:
    source = images.float() if images.dtype in (torch.float16, torch.bfloat16) else images
    out = source if plan.matrix is None else warp(source, plan.matrix)
    out = out if plan.color is None else recolor(out, plan.color)
    for act, theta in plan.filters:
        out = act(out, sent(theta, out.device, out.dtype))
    # A filter may hand back its input or keep its output for the gradient: then not in place.
    fresh = not plan.filters and out is not source and not out.requires_grad
    return out.clamp_(0, 1) if fresh else out.clamp(0, 1)


def warp(images: Float[Tensor, "b 3 h w"], matrix: Float[Tensor, "b 3 3"]) -> Float[Tensor, "b 3 h w"]:
    """Move the content of each image by its matrix: bilinear, the border reflected, maybe not contiguous.

    Matrices are affine and content-forward in centered coordinates: x to the right, y down, [-1, 1] spans
    the image. Those that keep the axes apart (crops, flips) resample rows, then columns: half the cost of a
    free warp, and exact for the identity and for flips.
    """
    straight = (matrix[:, 0, 1] == 0) & (matrix[:, 1, 0] == 0)
    if bool(straight.all()):
        return _warp_straight(images, matrix)
    if not bool(straight.any()):
        return _warp_free(images, matrix)
    out = torch.empty_like(images)
    for rows, resample in ((straight, _warp_straight), (~straight, _warp_free)):
        here = sent(rows.nonzero().flatten(), images.device)
        out[here] = resample(images[here], matrix[rows])
    return out


def _warp_straight(
    images: Float[Tensor, "b 3 h w"], matrix: Float[Tensor, "b 3 3"]
) -> Float[Tensor, "b 3 h w"]:
    h, w = images.shape[-2:]
    rows = _sources(matrix[:, 1, 1], matrix[:, 1, 2], h)
    columns = _sources(matrix[:, 0, 0], matrix[:, 0, 2], w)
    # Lines that lie together in memory are far quicker to fetch than single pixels.
    return _mix_lines(_mix_lines(images, rows).mT.contiguous(), columns).mT


def _sources(scale: Float[Tensor, " b"], shift: Float[Tensor, " b"], n: int) -> Float[Tensor, "b n"]:
    """Where each of n pixels of an axis comes from, as a position in [0, n - 1], reflected at the edges."""
    center = (n - 1) / 2
    at = torch.arange(n, device=scale.device, dtype=scale.dtype) - center
    source = (at - shift[:, None] * (n / 2)) / scale[:, None] + center
    folded = torch.remainder(source + 0.5, 2 * n)
    return (torch.minimum(folded, 2 * n - folded) - 0.5).clamp(0, n - 1)


def _mix_lines(images: Float[Tensor, "b 3 n m"], source: Float[Tensor, "b n"]) -> Float[Tensor, "b 3 n m"]:
    """Line i becomes the linear mix of the two lines around source[i]."""
    b, _, n, m = images.shape
    low = source.floor()
    share = sent(source - low, images.device, images.dtype)[:, None, :, None]
    weights = torch.cat([1 - share, share], dim=-1).expand(b, 3, n, 2).reshape(-1, 2)
    index = _line_numbers(sent(low, images.device, torch.long), n)
    # A bag of two weighted rows is this mix in one pass, without the two gathered copies.
    mixed = F.embedding_bag(index, images.reshape(-1, m), per_sample_weights=weights, mode="sum")
    return mixed.view(b, 3, n, m)


def _line_numbers(low: Int[Tensor, "b n"], n: int) -> Int[Tensor, "bn 2"]:
    """Numbers of the two lines to mix, among all lines of all images and channels."""
    b = len(low)
    pair = torch.stack([low, (low + 1).clamp(max=n - 1)], dim=-1)
    first = torch.arange(3 * b, device=low.device).mul(n).view(b, 3, 1, 1)
    return (first + pair[:, None]).view(-1, 2)


def _warp_free(images: Float[Tensor, "b 3 h w"], matrix: Float[Tensor, "b 3 3"]) -> Float[Tensor, "b 3 h w"]:
    h, w = images.shape[-2:]
    linear = torch.linalg.inv(matrix[:, :2, :2])
    shift = -(linear @ matrix[:, :2, 2:])
    linear, shift = (sent(part, images.device, images.dtype) for part in (linear, shift))
    x, y = (_centers(n, images)[None, :, None] for n in (w, h))
    along_x = x * linear[:, None, :, 0]
    along_y = y * linear[:, None, :, 1] + shift.mT
    grid = along_x[:, None] + along_y[:, :, None]
    return F.grid_sample(images, grid, mode="bilinear", padding_mode="reflection", align_corners=False)


def _centers(n: int, like: Tensor) -> Float[Tensor, " n"]:
    """Centers of n pixels in coordinates in which [-1, 1] spans them."""
    return (2 * torch.arange(n, device=like.device, dtype=like.dtype) + 1 - n) / n


def recolor(images: Float[Tensor, "b 3 h w"], color: Float[Tensor, "b 7 7"]) -> Float[Tensor, "b 3 h w"]:
    """Apply a map on (color, mean color, 1) to each image; identity matrices change no bit."""
    if not images.is_contiguous() and images.mT.is_contiguous():
        return recolor(images.mT, color).mT
    uses_mean = bool(color[:, :3, 3:6].any())
    color = sent(color, images.device, images.dtype)
    offset = color[:, :3, 6:]
    if uses_mean:
        offset = torch.baddbmm(offset, color[:, :3, 3:6], images.mean(dim=(2, 3))[:, :, None])
    b, _, h, w = images.shape
    return torch.baddbmm(offset, color[:, :3, :3], images.reshape(b, 3, h * w)).view(b, 3, h, w)
