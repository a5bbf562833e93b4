"""Train a control and a steerable encoder on photographs that come with the packages, then audit both.

    python examples/train_on_photos.py [--epochs 8] [--size 32] [--width 16] [--out report.html]

The control has the same backbone, data, views and steps, without the terms that make embeddings steerable.
"""

import argparse

from rich.console import Console

from steerable import AuditReport, TrainConfig, audit, load_images, train
from steerable.training import DataConfig, EncoderConfig


def config(steering: str, epochs: int, size: int, width: int, images: int) -> TrainConfig:
    """One run's settings; the same as YAML is a recipe for ``steerable train --config``."""
    return TrainConfig(
        data=DataConfig(source="photos", size=size, train_limit=images),
        encoder=EncoderConfig("timm/resnet10t", stem="cifar", width=width),
        chain="photometric",
        steering=steering,  # pyright: ignore[reportArgumentType]
        equivariance={"relative": 0.3},
        epochs=epochs,
        batch_size=64,
    )


def main(
    epochs: int = 8,
    size: int = 32,
    width: int = 16,
    images: int = 2000,
    views: int = 50,
    out: str | None = None,
) -> AuditReport:
    """Train twice, audit on the same test images and thetas, print the table."""
    models = {
        name: train(config(steering, epochs, size, width, images)).model
        for name, steering in (("control", "none"), ("steerable", "basis"))
    }
    report = audit(
        models, load_images("photos", split="test", size=size), n_images=200, n_pool=50, views=views
    )
    Console().print(report.table())
    if out is not None:
        report.save_html(out)
    return report


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Train a control and a steerable encoder, and audit both.")
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--size", type=int, default=32, help="side in pixels")
    parser.add_argument("--width", type=int, default=16, help="channels of the first stage")
    parser.add_argument("--images", type=int, default=2000, help="training images")
    parser.add_argument("--views", type=int, default=50, help="views of one image that ranks are among")
    parser.add_argument("--out", help="an HTML page to write")
    main(**vars(parser.parse_args()))
