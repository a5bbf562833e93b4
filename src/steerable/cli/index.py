"""``steerable index``."""

from pathlib import Path
from typing import Annotated


def index(
    model: Annotated[str, "MODEL"],
    *,
    images: Annotated[str, "SRC"],
    out: Annotated[str, "DB"],
    split: str | None = None,
    data: Annotated[Path | None, "PATH"] = None,
    limit: int | None = None,
    size: int | None = None,
    ann_from: int = 100_000,
) -> None:
    """Put images into a gallery that `steerable search` looks through.

    Embeddings are kept as the encoder gives them, unsteered: the query is what gets steered. Images that the
    gallery has, by the hash of their files, are not encoded again; killed at any moment, the next run goes on.

    Args:
        model: a run directory, a bundle's folder, or a bundle on the Hub
        images: photos, an image folder, a parquet glob, or a Hub data set's name
        out: folder of the gallery, new or not
        split: split of the images [train where there is one]
        data: local data: a folder that holds a copy of SRC, or is what to use in its place
        limit: a random choice of that many images
        size: side in pixels that images are cut to [the encoder's]
        ann_from: rows from which the search is approximate, and its recall printed

    Examples:
        steerable index runs/demo-seed0 --images photos --out photos.db
        steerable index my-bundle --images my_images --out gallery.db
    """
    from steerable.cli.audit import place_of_bundle
    from steerable.data import localized
    from steerable.embedding import index_images
    from steerable.model import SteerableEncoder
    from steerable.progress import PassProgress

    place = place_of_bundle(model)
    source, root = localized(images, data)
    folder = Path(place).expanduser()
    with PassProgress() as progress:
        done = index_images(
            SteerableEncoder.from_pretrained(place),
            source,
            out,
            split=split,
            size=size,
            limit=limit,
            root=root,
            place=str(folder.resolve()) if folder.is_dir() else place,
            ann_from=ann_from,
            progress=progress,
        )
    print(
        f"{done.added} added, {done.known} there already, {len(done.skipped)} skipped; {done.total} in {out}"
    )
    if done.recall is not None:
        print(f"search is approximate: it finds {done.recall:.1%} of the 10 nearest that exact search finds")
