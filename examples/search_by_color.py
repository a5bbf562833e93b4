"""Search a gallery for what an image would look like in other colors, without recoloring it.

    python examples/search_by_color.py [--encoder timm/resnet18 --pretrained] [--images FOLDER] [--saturation 0.6]

Recolored images are hidden in a gallery; the question to it is the plain image, steered. By default the encoder is
a small one with random weights and the images are bundled photographs, so that nothing is downloaded.
"""

import argparse

import torch

from steerable import Index, fit, load_encoder, load_images


def main(
    encoder: str = "timm/resnet10t",
    pretrained: bool = False,
    images: str = "photos",
    n: int = 1500,
    size: int = 32,
    saturation: float = 0.6,
) -> dict[str, float]:
    """Fit a map on n training images; returns the share of hidden images that come first, by kind of query."""
    torch.manual_seed(0)  # of the encoder's weights, where they are random
    network = load_encoder(encoder, pretrained=pretrained, image_size=size, width=None if pretrained else 8)
    model = fit(network, load_images(images, split="train", size=size, limit=n), "photometric")

    test = load_images(images, split="test", size=size, limit=300)
    x = test.float_images(range(len(test)))
    e, theta = model.encode(x), model.theta(saturation=saturation)
    recolored = model.encode(model.chain.apply(x, theta.expand(len(x), -1)))

    # For every image the gallery has a recolored version and one that went the opposite way.
    opposite = model.encode(model.chain.apply(x, -theta.expand(len(x), -1)))
    index = Index.open(model=model)
    for name, embeddings in {"recolored": recolored, "opposite": opposite}.items():
        ids = [f"{i} {name}" for i in range(len(x))]
        index.add(embeddings, id=ids, path=test.paths, color=[name] * len(x))

    found = {}
    for kind, queries in {"unsteered": e, "steered": model.steer(e, theta)}.items():
        first = [index.search(query, k=1)[0]["id"] for query in queries]
        found[kind] = sum(name == f"{i} recolored" for i, name in enumerate(first)) / len(first)
        print(f"{kind:<10} the recolored image comes first for {found[kind]:.0%} of {len(first)} queries")
    return found


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Search a gallery by a steered image.")
    parser.add_argument("--encoder", default="timm/resnet10t")
    parser.add_argument("--pretrained", action="store_true")
    parser.add_argument("--images", default="photos")
    parser.add_argument("--n", type=int, default=1500, help="training images")
    parser.add_argument("--size", type=int, default=32, help="side in pixels")
    parser.add_argument("--saturation", type=float, default=0.6, help="in stops")
    main(**vars(parser.parse_args()))
