"""``steerable fit``."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from steerable.errors import ConfigError

if TYPE_CHECKING:
    from steerable.encoders import Encoder


def fit(
    *,
    encoder: Annotated[str, "E"],
    images: Annotated[str, "SRC"],
    out: Annotated[Path, "DIR"],
    weights: Annotated[str | None, "FILE"] = None,
    layers: Annotated[str | None, "all|NAMES"] = None,
    statistics: str = "mean+std+grid",
    chain: str = "simclr",
    map: str = "basis",
    features: str = "linear",
    views: int = 4,
    adapter: str | None = None,
    refine: str | None = None,
    projection: Annotated[int | Literal["auto"] | None, "auto|N|none"] = "auto",
    rank: int | None = None,
    ridge: float | None = None,
    memory: float = 2.0,
    cache: Annotated[Path | None, "DIR"] = None,
    reference: bool = False,
    data: Annotated[Path | None, "PATH"] = None,
    split: str | None = None,
    limit: int | None = None,
    size: int | None = None,
    seed: int = 0,
) -> None:
    """Fit a steering map to an encoder that you have; its weights stay as they are.

    Each image is encoded plain and a few times transformed, and a map is fitted to the pairs. A plan says first
    what that takes. The bundle in the output folder holds encoder, chain and map; `steerable audit` says how far
    it can be steered. Interrupted, the same command goes on where it was.

    Args:
        encoder: timm/NAME, timm/local-dir:PATH, timm/hf-hub:NAME, or a bundle's folder
        images: photos, an image folder, a parquet glob, or a Hub data set's name; labels are not needed
        out: folder for the bundle
        weights: a checkpoint file to load into the timm model
        layers: join layers into the embedding: all, or names such as stage0,stage2,final
        statistics: of each stage that is joined: mean, std and grid (means of its quarters), joined by +
        chain: simclr, simclr-full, geometric or photometric
        map: identity, shift, basis, low_rank, rotation or exponential
        features: functions of theta that the map is linear in, joined by +, such as linear+window; auto chooses
        views: transformed versions of each image
        adapter: a layer behind the encoder: discriminant, linear or hidden
        refine: gradient steps on the map after the fit: cosine or contrastive
        projection: leading directions of the embedding that the map reads
        rank: of a low_rank or exponential map
        ridge: strength of the penalty [chosen on held-out images]
        memory: GiB that the fit may take beside the images
        cache: folder that keeps embeddings between runs [$STEERABLE_CACHE or ~/.cache/steerable]
        reference: store the encoder's name and fingerprint, not its weights
        data: local data: a folder that holds a copy of SRC, or is what to use in its place
        split: split of the images [train where there is one]
        limit: images read at most
        size: side in pixels that images are cut to [the encoder's]
        seed: of thetas and training

    Examples:
        steerable fit --encoder timm/resnet50 --images my_images --out my-bundle
        steerable fit --encoder timm/resnet50 --images my_images --layers all --adapter discriminant --out adapted
        steerable fit --encoder timm/local-dir:weights/mobilenetv2 --images photos --chain photometric --out colors
    """
    from steerable.data import load_images, localized
    from steerable.posthoc import fit as run
    from steerable.progress import PassProgress

    network = _encoder(encoder, weights, layers, statistics)
    source, root = localized(images, data)
    side = size if size is not None else network.image_size
    image_set = load_images(source, root=root, split=split, size=side, limit=limit)
    with PassProgress() as progress:
        model = run(
            network,
            image_set,
            chain,
            map=map,
            features=features,
            views=views,
            ridge=ridge,
            rank=rank,
            projection=projection,
            refine=refine,
            adapter=adapter,
            memory=memory,
            cache=cache,
            seed=seed,
            progress=progress,
        )
    model.save_pretrained(out, store_encoder=not reference)
    print(out)


def _encoder(name: str, weights: str | None, layers: str | None, statistics: str) -> "Encoder":
    from steerable.encoders import PREFIX, load_encoder
    from steerable.model import SteerableEncoder

    if name.startswith(PREFIX) or not Path(name).expanduser().is_dir():
        return load_encoder(name, weights=weights, layers=layers, statistics=statistics)
    if layers is not None or weights is not None:
        given = f"--layers is {layers}" if layers is not None else f"--weights is {weights}"
        raise ConfigError(
            f"{given} and the encoder is a bundle, which has its own; expected {PREFIX}NAME with it"
        )
    return SteerableEncoder.from_pretrained(Path(name).expanduser()).encoder
