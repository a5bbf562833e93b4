"""``steerable export``."""

from pathlib import Path
from typing import Annotated


def export(
    model: Annotated[str, "MODEL"],
    *,
    onnx: Annotated[Path, "DIR"],
    size: int | None = None,
    fold_views: str = "chain:32",
    seed: int = 0,
) -> None:
    """Write a model as ONNX graphs, each compared with torch.

    encoder.onnx takes images (resized, cropped, RGB in [0, 1]), map.onnx embeddings and theta, head.onnx
    embeddings: the mean of steered views' logits in one layer. steerable.json says what the inputs mean.

    Args:
        model: a run directory, a bundle's folder, or a bundle on the Hub
        onnx: folder for the graphs
        size: side of the images in pixels, for encoders that have none of their own
        fold_views: the views that are folded into the head, as steerable.tta.views names them
        seed: of views that are drawn

    Examples:
        steerable export runs/demo-seed0 --onnx out --size 32
        steerable export my-bundle --onnx out --fold-views hflip
    """
    from rich.console import Console
    from rich.table import Table

    from steerable.cli.audit import place_of_bundle
    from steerable.export import export_onnx
    from steerable.model import SteerableEncoder

    bundle = SteerableEncoder.from_pretrained(place_of_bundle(model))
    graphs = export_onnx(bundle, onnx, size=size, fold_views=fold_views, seed=seed)
    table = Table("graph", "inputs", "outputs", "MB", "opset", "error", box=None, pad_edge=False)
    for graph in graphs:
        axes = (", ".join(f"{name} {tuple(shape)}".replace("'", "") for name, shape in part.items())
                for part in (graph.inputs, graph.outputs))  # fmt: skip
        figures = f"{graph.bytes / 1e6:.2f}", str(graph.opset), f"{graph.error:.0e}"
        table.add_row(str(onnx / graph.file), *axes, *figures)
    Console(highlight=False, width=160).print(table)
