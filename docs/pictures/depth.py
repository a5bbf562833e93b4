"""Draws docs/pictures/depth.png and depth-dark.png: how far frozen encoders can be steered, layer by layer.

    python docs/pictures/depth.py

From the rungs "depth" of results/ladder_NAME.json, which benchmarks/ladder.py measured: a ridge map on each layer
alone, photographs. Dotted is the rung that joins all layers behind the discriminant adapter, with windows.
"""

import json
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

FOLDER = Path(__file__).parent
RESULTS = FOLDER.parents[1] / "results"
ENCODERS = {"mobilenetv1_100": "MobileNetV1", "mobilenetv2_100": "MobileNetV2"}
THEMES = {"depth": ("#1f2933", "#ffffff", "#d0d0d0"), "depth-dark": ("#e6edf3", "#0d1117", "#30363d")}
LINES = {"joint": ("all together", "#0072b2"), "crop": ("crop", "#d55e00"), "color": ("color", "#009e73")}
JOINED = "adapter on layers: discriminant, window"


def draw(ink: str, paper: str, grid: str) -> Figure:
    """Relative error against depth, one panel for each encoder, in one theme."""
    figure = Figure(figsize=(8.4, 3.5), facecolor=paper)
    axes = figure.subplots(1, len(ENCODERS), sharey=True)
    for panel, (encoder, title) in zip(axes, ENCODERS.items(), strict=True):
        rows = json.loads((RESULTS / f"ladder_{encoder}.json").read_text())["rows"]
        draw_encoder(panel, {row["rung"]: row for row in rows if row["images"] == "photographs"})
        panel.set_title(title, color=ink, fontsize=12, loc="left")
        panel.set_xlabel("layer of the network", color=ink)
        panel.set(ylim=(0, 1.08), facecolor=paper)
        panel.grid(axis="y", color=grid, linewidth=0.6)
        panel.tick_params(colors=ink, length=0)
        for side, spine in panel.spines.items():
            spine.set_visible(side == "bottom")
            spine.set_color(grid)
    axes[0].set_ylabel("left of the motion after steering", color=ink)
    axes[0].plot([], [], color=ink, linewidth=1.2, linestyle=":", label="all layers")
    axes[0].legend(frameon=False, labelcolor=ink, fontsize=9, loc="upper left")
    figure.tight_layout()
    return figure


def draw_encoder(panel: Axes, rungs: dict[str, dict]) -> None:
    """One line for each group of parameters, by name of the rung."""
    layers = [name.removeprefix("depth: ") for name in rungs if name.startswith("depth: ")]
    for drawn, (words, color) in LINES.items():
        errors = [rungs[f"depth: {layer}"][f"{drawn}_relative_error"] for layer in layers]
        panel.plot(errors, color=color, marker="o", markersize=4, linewidth=2, label=words)
        panel.axhline(rungs[JOINED][f"{drawn}_relative_error"], color=color, linewidth=1.2, linestyle=":")
    panel.set_xticks(range(len(layers)), [layer.replace("stage", "stage ") for layer in layers], fontsize=8)


def main() -> None:
    for name, colors in THEMES.items():
        draw(*colors).savefig(FOLDER / f"{name}.png", dpi=125)


if __name__ == "__main__":
    main()
