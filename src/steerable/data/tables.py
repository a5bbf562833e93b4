"""From a source's name to a table of undecoded rows: files on this machine first, the Hub afterwards.

Hugging Face ``datasets`` does the reading. What it copies goes to its own cache (HF_HOME), never beside the
data.
"""

import contextlib
import glob
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import datasets
from datasets import (
    Dataset,
    ReadInstruction,
    config,
    get_dataset_split_names,
    load_dataset,
    load_dataset_builder,
)
from huggingface_hub import HfApi
from huggingface_hub.errors import RepositoryNotFoundError
from pyarrow.parquet import read_metadata

from steerable.data.locations import ROOT_VARIABLE, Files, find_files
from steerable.errors import DataError

FILES_WAY_OUT = "check the files"
PATIENCE = 10.0  # seconds that the Hub has for its first answer


@dataclass(frozen=True)
class Table:
    """Rows of a data set, undecoded, and how to name them.

    Attributes:
        name: the source and its split, for messages and reports.
        shards: file name and number of rows of each parquet file; empty where the rows come from elsewhere.
        first: number of rows that a slice left out before the first one.
    """

    rows: Dataset
    name: str
    shards: tuple[tuple[str, int], ...] = ()
    first: int = 0

    def row_name(self, index: int) -> str:
        """ "shard.parquet#row", or "source:split#row" where the files are not known."""
        index += self.first
        for shard, count in self.shards:
            if index < count:
                return f"{shard}#{index}"
            index -= count
        return f"{self.name.partition('[')[0]}#{index}"


def open_table(name: str, wanted: str | None, *, root: str | os.PathLike[str] | None) -> Table:
    """The rows of split ``wanted`` of a source other than photos; see ``load_images``."""
    files = find_files(name, root)
    split = _choose(name, wanted, tuple(files.by_split) if files else _hub_splits(name))
    with _reading(name, FILES_WAY_OUT if files else _hub_way_out(name)):
        rows = _load_files(files, split) if files else cast(Dataset, load_dataset(name, split=split))
        shards = _shards(files.by_split[split]) if files and files.builder == "parquet" else ()
    start, stop = slice_bounds(wanted or split, len(rows))
    return Table(rows.select(range(start, stop)), f"{name}:{wanted or split}", shards, start)


def split_names(name: str, *, root: str | os.PathLike[str] | None) -> tuple[str, ...]:
    """Splits of a source other than photos."""
    files = find_files(name, root)
    return tuple(files.by_split) if files else _hub_splits(name)


def slice_bounds(split: str, n: int) -> tuple[int, int]:
    """Start and stop of "train", "train[:100]" or "train[10%:]" among ``n`` rows.

    Raises:
        DataError: a slice that is not written so, reaches beyond the rows, or is empty.
    """
    name, bracket, _ = split.partition("[")
    if not bracket:
        return 0, n
    try:
        (part,) = ReadInstruction.from_spec(split).to_absolute({name: n})
    except (ValueError, AssertionError) as error:
        raise DataError(
            f"slice {split!r} does not fit {n} rows ({error}); "
            f"expected a form such as {name}[:100] or {name}[50%:]: correct it"
        ) from None
    start, stop = part.from_ or 0, n if part.to is None else part.to
    if stop <= start:
        raise DataError(f"slice {split!r} holds none of {n} rows; expected at least one: widen it")
    return start, stop


def _choose(name: str, wanted: str | None, names: tuple[str, ...]) -> str:
    split = wanted.partition("[")[0] if wanted else None
    if split in names:
        return cast(str, split)
    if split is None and ("train" in names or len(names) == 1):
        return "train" if "train" in names else names[0]
    lack = "several splits and none called train" if split is None else f"no split {split!r}"
    raise DataError(f"{name} has {lack}; expected one of {', '.join(names)}: write {name}:{names[0]}")


def _load_files(files: Files, split: str) -> Dataset:
    if files.builder == "parquet":
        shards = [glob.escape(str(path)) for path in files.by_split[split]]
        return cast(Dataset, load_dataset("parquet", data_files={split: shards}, split=split))
    # all splits together, so that a class missing from one of them shifts no label
    folders = {
        name: [f"{glob.escape(str(path))}/**" for path in paths] for name, paths in files.by_split.items()
    }
    return cast(Dataset, load_dataset("imagefolder", data_files=folders, split=split, drop_labels=files.flat))


def _shards(paths: list[Path]) -> tuple[tuple[str, int], ...]:
    return tuple((path.name, read_metadata(path).num_rows) for path in paths)


def hub_shards(name: str) -> dict[str, list[str]]:
    """Addresses (hf://...) of the parquet files of a data set on the Hub, by split; empty where it has none.

    Raises:
        DataError: no such data set, or no network.
    """
    _ask_hub(name)
    with _reading(name, _hub_way_out(name)):
        found = load_dataset_builder(name).config.data_files or {}
    shards = {str(split): [str(path) for path in paths] for split, paths in found.items()}
    return {k: paths for k, paths in shards.items() if all(path.endswith(".parquet") for path in paths)}


def _hub_splits(name: str) -> tuple[str, ...]:
    _ask_hub(name)
    with _reading(name, _hub_way_out(name)):
        return tuple(get_dataset_split_names(name))


def _ask_hub(name: str) -> None:
    """One question with a deadline, since ``load_dataset`` without a network retries for half a minute."""
    if config.HF_HUB_OFFLINE:
        return  # the user's own choice: what the Hub's cache holds still loads
    way_out = _hub_way_out(name)
    try:
        HfApi().dataset_info(name, timeout=PATIENCE)
    except RepositoryNotFoundError:
        raise DataError(
            f"{name} is no path here and no data set on the Hub that you may see; expected one: {way_out}"
        ) from None
    except Exception as error:  # errors of the HTTP library, which are no part of the Hub's interface
        raise DataError(
            f"{name} is no path here and the Hub cannot be reached ({type(error).__name__}); "
            f"expected a local copy or a network: {way_out}"
        ) from None


def _hub_way_out(name: str) -> str:
    last = name.rsplit("/", 1)[-1]
    return f"check the name, or set {ROOT_VARIABLE} (--data) to the folder that holds {last}"


@contextlib.contextmanager
def _reading(name: str, way_out: str) -> Iterator[None]:
    """No progress bars, and every error of the readers below as one line."""
    shown = not datasets.utils.are_progress_bars_disabled()
    datasets.utils.disable_progress_bars()
    try:
        yield
    except Exception as error:  # pyarrow, fsspec and datasets share no base class
        cause = error.__cause__ or error
        text = " ".join(f"{type(cause).__name__}: {cause}".split())[:300]
        if isinstance(cause, OSError) and cause.errno is not None:  # the system refused a file
            way_out = "check the permissions, or set HF_HOME to a folder with space for the cache"
        raise DataError(f"{name} cannot be read ({text}); expected undamaged image data: {way_out}") from None
    finally:
        if shown:
            datasets.utils.enable_progress_bars()
