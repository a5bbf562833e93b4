"""``steerable fit``."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

if TYPE_CHECKING:
    from steerable.encoders import Encoder


def fit(
    *,
    encoder: Annotated[str, "E"],
    images: Annotated[str, "SRC"],
    out: Annotated[Path, "DIR"],
    weights: Annotated[str | None, "FILE"] = None,
    chain: str = "simclr",
    map: str = "basis",
    features: str = "linear",
    views: int = 4,
    data: Annotated[Path | None, "PATH"] = None,
    split: str | None = None,
    limit: int | None = None,
    size: int | None = None,
    seed: int = 0,
) -> None:
    """Fit a steering map to an encoder that you have; its weights stay as they are.

    Each image is encoded plain and a few times transformed, and a map is fitted to the pairs. The bundle in the
    output folder holds encoder, chain and map; `steerable audit` says how far it can be steered.

    Args:
        encoder: timm/NAME, timm/local-dir:PATH, timm/hf-hub:NAME, or a bundle's folder
        images: photos, an image folder, a parquet glob, or a Hub data set's name; labels are not needed
        out: folder for the bundle
        weights: a checkpoint file to load into the timm model
        chain: simclr, simclr-full, geometric or photometric
        map: identity, shift, basis, low_rank, rotation or exponential
        features: functions of theta that the map is linear in, joined by +, such as linear+squares
        views: transformed versions of each image
        data: local data: a folder that holds a copy of SRC, or is what to use in its place
        split: split of the images [train where there is one]
        limit: images read at most
        size: side in pixels that images are cut to [the encoder's]
        seed: of the thetas

    Examples:
        steerable fit --encoder timm/resnet50 --images my_images --out my-bundle
        steerable fit --encoder timm/local-dir:weights/mobilenetv2 --images photos --chain photometric --out colors
    """
    from steerable.data import load_images, localized
    from steerable.posthoc import fit as run
    from steerable.progress import PassProgress

    network = _encoder(encoder, weights)
    source, root = localized(images, data)
    side = size if size is not None else network.image_size
    image_set = load_images(source, root=root, split=split, size=side, limit=limit)
    with PassProgress() as progress:
        model = run(
            network, image_set, chain, map=map, features=features, views=views, seed=seed, progress=progress
        )
    model.save_pretrained(out)
    print(out)


def _encoder(name: str, weights: str | None) -> "Encoder":
    from steerable.encoders import PREFIX, load_encoder
    from steerable.model import SteerableEncoder

    if name.startswith(PREFIX) or not Path(name).expanduser().is_dir():
        return load_encoder(name, weights=weights)
    return SteerableEncoder.from_pretrained(Path(name).expanduser()).encoder
