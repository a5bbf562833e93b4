"""Draws docs/pictures/idea.png and idea-dark.png: the square of image, transform, encoder and map.

    python docs/pictures/idea.py

A diagram. The photograph ships with scikit-image and is transformed by the library's own chain; the strips
are the means of its colors on a coarse grid, standing in for an embedding.
"""

from pathlib import Path

import torch
import torch.nn.functional as F
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, Rectangle
from skimage.data import chelsea
from torch import Tensor

from steerable.transforms import Crop, HFlip, Hue
from steerable.transforms.chain import Chain

FOLDER = Path(__file__).parent
THEMES = {"idea": ("#1f2933", "#ffffff", "#1b6ca8"), "idea-dark": ("#e6edf3", "#0d1117", "#6cb6ff")}
SIDE, LEFT, RIGHT, TOP, BOTTOM = 2.3, 0.2, 6.7, 3.6, 0.3


def pictures() -> Float[Tensor, "2 3 300 300"]:
    """The image, and the image after a zoom, a flip and a turn of hue."""
    image = torch.from_numpy(chelsea()[:, 60:360].copy()).permute(2, 0, 1)[None] / 255
    chain = Chain([Crop(), HFlip(), Hue(turns=0.5)])
    theta = torch.tensor([[0.6, 0.0, 0.05, 0.1, 1.0, 0.12]])
    return torch.cat([image, chain.apply(image, theta)])


def draw(ink: str, paper: str, accent: str) -> Figure:
    """The whole diagram in one theme."""
    figure = Figure(figsize=(9.6, 5.6), facecolor=paper)
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set(xlim=(-0.2, 11.0), ylim=(-0.35, 6.2), aspect="equal")
    axes.axis("off")
    images = pictures()
    strips = F.adaptive_avg_pool2d(images, (4, 3)).flatten(1)
    labels = (("image x", "embedding e"), ("t(x, θ)", "embedding e\u2032 ≈ M(θ) e + b(θ)"))
    for image, strip, y, (what, code) in zip(images, strips, (TOP, BOTTOM), labels, strict=True):
        axes.imshow(image.permute(1, 2, 0).numpy(), extent=(LEFT, LEFT + SIDE, y, y + SIDE), zorder=2)
        axes.text(LEFT, y - 0.08, what, color=ink, fontsize=13, va="top")
        embedding(axes, strip, y + SIDE / 2 - 0.3)
        axes.text(RIGHT, y + SIDE / 2 - 0.42, code, color=ink, fontsize=13, va="top")
        arrow(axes, (LEFT + SIDE + 0.2, y + SIDE / 2), (RIGHT - 0.2, y + SIDE / 2), ink)
        middle = (LEFT + SIDE + RIGHT) / 2
        axes.text(middle, y + SIDE / 2 + 0.14, "encode", color=ink, fontsize=14, ha="center")
        axes.text(
            middle, y + SIDE / 2 - 0.14, "one pass per view", color=ink, fontsize=10, ha="center", va="top"
        )
    x = LEFT + SIDE / 2
    arrow(axes, (x, TOP - 0.42), (x, BOTTOM + SIDE + 0.1), ink)
    axes.text(x + 0.16, 3.02, "transform by θ\nzoom, flip, hue", color=ink, fontsize=12, va="center")
    x = RIGHT + 1.4
    arrow(axes, (x, TOP + 0.25), (x, BOTTOM + SIDE / 2 + 0.42), accent, width=2.6)
    axes.text(x + 0.18, 3.02, "steer by θ\nno encoder pass", color=accent, fontsize=14, va="center")
    return figure


def embedding(axes: Axes, values: Float[Tensor, " d"], y: float) -> None:
    """A strip of d cells, darker where the value is larger."""
    width = 2.8 / len(values)
    shades = (values - values.min()) / (values.max() - values.min())
    for i, shade in enumerate(shades.tolist()):
        color = (0.88 - 0.77 * shade, 0.93 - 0.51 * shade, 0.97 - 0.31 * shade)
        axes.add_patch(Rectangle((RIGHT + i * width, y), width * 0.9, 0.6, color=color, lw=0, zorder=2))


def arrow(
    axes: Axes, start: tuple[float, float], end: tuple[float, float], color: str, width: float = 1.6
) -> None:
    axes.add_patch(FancyArrowPatch(start, end, arrowstyle="-|>", mutation_scale=18, lw=width, color=color))


def main() -> None:
    for name, colors in THEMES.items():
        draw(*colors).savefig(FOLDER / f"{name}.png", dpi=125)


if __name__ == "__main__":
    main()
