"""``steerable demo``."""

import dataclasses
import json as jsonlib
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

if TYPE_CHECKING:
    from rich.table import Table

    from steerable.demo import DemoResult


def demo(
    *,
    out: Annotated[Path, "DIR"] = Path("runs/demo"),
    seed: int = 0,
    epochs: int | None = None,
    json: bool = False,
) -> None:
    """Train an encoder and its control on photographs, and compare them.

    Both are audited, and a table and a page show what was gained. The photographs ship inside scikit-image
    and scikit-learn: nothing is downloaded. It takes a few minutes on two cores and leaves report.html,
    which is worth looking at, in the output folder, beside the two run directories.

    Args:
        out: folder for the report and the runs; what has been trained there already is not trained again
        seed: of the weights, the order of the images and the thetas
        epochs: epochs of both models [those of recipes/demo.yaml]
        json: print the table as JSON

    Examples:
        steerable demo
        steerable demo --out runs/demo1 --seed 1
    """
    from rich.console import Console

    from steerable.demo import run_demo
    from steerable.progress import PassProgress, TrainProgress

    config = _recipe("demo", ["--seed", str(seed), *(["--epochs", str(epochs)] if epochs else [])])
    bars: list[Any] = []

    def listener(name: str) -> Any:
        if bars:
            bars.pop().__exit__(None, None, None)
        bars.append(PassProgress() if name == "audit" else TrainProgress(config.epochs, label=f"{name:<9}"))
        return bars[-1].__enter__()

    try:
        result = run_demo(config, out=out, progress=listener)
    finally:
        for bar in bars:
            bar.__exit__(None, None, None)
    if json:
        print(jsonlib.dumps([dataclasses.asdict(row) for row in result.rows], allow_nan=False))
        return
    console = Console(highlight=False)
    console.print(_table(result))
    for name in (row.model for row in result.rows):
        console.print(f"[bold]{name}[/]: " + " ".join(result.report.sentences(name)))
    console.print(f"{result.seconds:.0f} s in all. The report: {result.page}", soft_wrap=True)


def _table(result: "DemoResult") -> "Table":
    from rich.table import Table

    from steerable.demo import cells

    header, *lines = cells(result.rows)
    table = Table(
        title=f"photographs; ranks among {result.report.views} views of one image", title_justify="left"
    )
    for place, heading in enumerate(header):
        table.add_column(heading, justify="right" if place else "left", no_wrap=not place)
    for line in lines:
        table.add_row(*line)
    return table


def _recipe(name: str, overrides: list[str]) -> Any:
    """A recipe of the project, read as `steerable train` reads it."""
    from steerable.cli.parser import Parser
    from steerable.cli.train import train

    inside = Path(__file__).parents[1] / "recipes"  # an installed wheel
    folder = inside if inside.is_dir() else Path(__file__).parents[3] / "recipes"  # a checkout
    _, named, _ = Parser(train).read(["--config", str(folder / f"{name}.yaml"), *overrides])
    return named["config"]
