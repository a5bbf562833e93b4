"""``steerable embed``."""

from pathlib import Path
from typing import Annotated, Literal


def embed(
    model: Annotated[str, "MODEL"],
    *,
    images: Annotated[str, "SRC"],
    out: Annotated[Path, "DIR"],
    split: str | None = None,
    data: Annotated[Path | None, "PATH"] = None,
    limit: int | None = None,
    size: int | None = None,
    shard: int = 4096,
    engine: Literal["local", "ray"] = "local",
    actors: int | None = None,
) -> None:
    """Write the embeddings of many images as shards of a parquet table.

    Columns: id, path, label, sha256, embedding. Of equal images the first one counts. Killed at any moment, the
    same command goes on after the last whole shard; manifest.json says which are, and what was skipped.

    Args:
        model: a run directory, a bundle's folder, or a bundle on the Hub
        images: photos, an image folder, a parquet glob, or a Hub data set's name
        out: folder of the shards, new or not
        split: split of the images [train where there is one]
        data: local data: a folder that holds a copy of SRC, or is what to use in its place
        limit: a random choice of that many images
        size: side in pixels that images are cut to [the encoder's]
        shard: images per shard
        engine: local, or ray: the same job on a Ray cluster, with the same rows
        actors: with ray, copies of the model [one per GPU, or per two processors]

    Examples:
        steerable embed runs/demo-seed0 --images photos --out embeddings
        steerable embed my-bundle --images "shards/*.parquet" --out embeddings --engine ray
    """
    from steerable.cli.audit import place_of_bundle
    from steerable.data import localized
    from steerable.embedding import embed_images
    from steerable.model import SteerableEncoder
    from steerable.progress import PassProgress

    source, root = localized(images, data)
    with PassProgress() as progress:
        done = embed_images(
            SteerableEncoder.from_pretrained(place_of_bundle(model)),
            source,
            out,
            split=split,
            size=size,
            limit=limit,
            root=root,
            shard=shard,
            engine=engine,
            actors=actors,
            progress=progress,
        )
    print(
        f"{done.rows} rows in {done.shards} shards, {done.duplicates} duplicates, {len(done.skipped)} skipped; "
        f"{done.fresh} images were new: {out}"
    )
