"""Fit a steering map to an encoder and steer one embedding with it: no training, no further forward pass.

    python examples/steer_an_embedding.py [--encoder timm/resnet18 --pretrained] [--images FOLDER]

Any timm name works as the encoder. By default it is a small one with random weights, so that nothing is
downloaded.
"""

import argparse

import torch

from steerable import SteerableEncoder, fit_embeddings, load_encoder, load_images, metrics
from steerable.transforms import Chain


def main(
    encoder: str = "timm/resnet10t",
    pretrained: bool = False,
    images: str = "photos",
    n: int = 1200,
    size: int = 32,
) -> float:
    """Fit on n training images, steer a test image; returns the relative error on test images."""
    generator = torch.Generator().manual_seed(0)
    torch.manual_seed(0)  # of the encoder's weights, where they are random
    network = load_encoder(encoder, pretrained=pretrained, image_size=size, width=None if pretrained else 8)
    chain = Chain.preset("photometric")
    plain = SteerableEncoder(network, chain)

    # Pairs: each training image as it is, and under a random theta.
    train = load_images(images, split="train", size=size, limit=n).float_images(range(n))
    theta = chain.sample(n, generator=generator)
    source, target = plain.encode(train), plain.encode(chain.apply(train, theta))
    steering = fit_embeddings(source, theta, target, strict=False)
    model = SteerableEncoder(network, chain, steering)

    # How well it holds on other images: 0 is perfect, 1 no better than not steering.
    test = load_images(images, split="test", size=size, limit=200).float_images(range(200))
    theta = chain.sample(len(test), generator=generator)
    e, moved = model.encode(test), model.encode(chain.apply(test, theta))
    error = metrics.relative_error(e, moved, model.steer(e, theta))

    one = model.theta(brightness=0.5, hue=0.05)
    bright = model.steer(e[:1], one)
    orbit = model.orbit(e[:1], chain.sample(1000, generator=generator))
    print(
        f"one embedding {tuple(e[:1].shape)}, steered {tuple(bright.shape)}, its orbit {tuple(orbit.shape)}"
    )
    print(f"relative error on {len(test)} test images: {error:.2f} (1 is not steering at all)")
    return error


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Fit a steering map to an encoder and steer with it.")
    parser.add_argument("--encoder", default="timm/resnet10t")
    parser.add_argument("--pretrained", action="store_true")
    parser.add_argument("--images", default="photos")
    parser.add_argument("--n", type=int, default=1200, help="training images")
    parser.add_argument("--size", type=int, default=32, help="side in pixels")
    main(**vars(parser.parse_args()))
