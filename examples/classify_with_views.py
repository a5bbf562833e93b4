"""Classify by steered views: accuracy of no views, of merged steered views, and of truly augmented images.

    python examples/classify_with_views.py [--encoder timm/resnet18 --pretrained] [--images FOLDER] [--size 224]

By default the encoder is a small one with random weights and the images are bundled photographs, so that nothing
is downloaded; such a small one shows how, not how much.
"""

import argparse

import torch

from steerable import SteerableEncoder, fit, load_encoder, load_images, tta
from steerable.evaluate import linear_head


def main(
    encoder: str = "timm/resnet10t",
    pretrained: bool = False,
    images: str = "photos",
    n: int = 1500,
    size: int = 32,
    views: int = 100,
) -> dict[str, float]:
    """Fit map and head on n training images; returns the accuracy on test images by method."""
    torch.manual_seed(0)  # of the encoder's weights, where they are random
    network = load_encoder(encoder, pretrained=pretrained, image_size=size, width=None if pretrained else 8)
    train = load_images(images, split="train", size=size, limit=n)
    test = load_images(images, split="test", size=size, limit=400)

    model: SteerableEncoder = fit(network, train, "photometric", features="linear+squares")
    head, _ = linear_head(
        model.encode(train.float_images(range(len(train)))), train.labels, grid=(1e-3, 1e-1)
    )

    x = test.float_images(range(len(test)))
    e, labels = model.encode(x), test.labels  # the only encoder pass that steering needs
    # the untouched image and draws within half of the chain's ranges; validation images tell which of them help
    thetas = tta.views(f"chain:{views}", model.chain, strength=0.5)
    half = len(test) // 2
    chosen, weights = tta.choose_views(model.steering, head, e[:half], labels[:half], thetas)

    x, e, labels = x[half:], e[half:], labels[half:]
    few = thetas[:10]  # true augmentation costs an encoder pass for each view
    with torch.no_grad():
        moved = [head(model.encode(model.chain.apply(x, t.expand(len(x), -1)))).softmax(-1) for t in few]
        outputs = {
            "no views": head(e),
            f"{views} views, steered": tta.merged(model.steering, head, e, thetas),
            f"{views} views, folded": tta.fold(model.steering, head, thetas)(e),
            "chosen views, steered": tta.merged(model.steering, head, e, chosen, weights=weights),
            f"{len(few)} views, steered": tta.merged(model.steering, head, e, few),
            f"{len(few)} views, encoded": tta.merge(torch.stack(moved, 1)),
        }
    accuracy = {name: (out.argmax(1) == labels).float().mean().item() for name, out in outputs.items()}
    for name, value in accuracy.items():
        print(f"{name:<22} {value:.1%}")
    return accuracy


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Classify by steered views.")
    parser.add_argument("--encoder", default="timm/resnet10t")
    parser.add_argument("--pretrained", action="store_true")
    parser.add_argument("--images", default="photos")
    parser.add_argument("--n", type=int, default=1500, help="training images")
    parser.add_argument("--size", type=int, default=32, help="side in pixels")
    parser.add_argument("--views", type=int, default=100, help="steered views of each image")
    main(**vars(parser.parse_args()))
