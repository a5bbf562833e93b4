"""Parquet shards as a stream: what a batch holds, what workers and resumption change, what is skipped."""

import io
from pathlib import Path
from types import SimpleNamespace

import fsspec
import numpy as np
import pyarrow as pa
import pytest
import torch
from datasets import ClassLabel, Dataset, Features, Image
from PIL import Image as Pillow
from pyarrow import parquet

from steerable.data import tables
from steerable.data.shards import open_shards
from steerable.data.streaming import Stream
from steerable.errors import ConfigError, DataError
from steerable.training import DataConfig, train
from steerable.training.setup import load_splits
from test_training import tiny


def write_shards(folder: Path, counts: tuple[int, ...], split: str = "train") -> list[Path]:
    """Images whose every pixel is their number, with its parity as label."""
    folder.mkdir(parents=True, exist_ok=True)
    features, paths, number = Features(image=Image(), label=ClassLabel(names=["even", "odd"])), [], 0
    for at, count in enumerate(counts):
        cells, labels = [], []
        for _ in range(count):
            stream = io.BytesIO()
            Pillow.fromarray(np.full((16, 16, 3), number, np.uint8)).save(stream, format="PNG")
            cells.append({"bytes": stream.getvalue(), "path": None})
            labels.append(number % 2)
            number += 1
        paths.append(folder / f"{split}-{at:05d}-of-{len(counts):05d}.parquet")
        Dataset.from_dict({"image": cells, "label": labels}, features=features).to_parquet(paths[-1])
    return paths


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("shards")
    write_shards(folder, (30, 20, 14))
    write_shards(folder, (12,), "test")
    return folder


def numbers(stream: Stream, seed: int = 0, first: int = 0) -> list[list[int]]:
    return [batch.images[:, 0, 0, 0].tolist() for batch in stream.batches(seed, first)]


def stream_of(folder: Path, **changes) -> Stream:
    settings = {"batch": 4, "shuffle": 8, "workers": 0, **changes}
    return Stream(open_shards(str(folder), "train"), **settings)


def test_an_epoch_holds_every_image_once_in_an_order_of_its_own(folder):
    stream = stream_of(folder, shuffle=1)
    assert stream.steps_per_epoch == 16
    first, second = numbers(stream, 0), numbers(stream, 1)
    assert len(first) == 16
    assert first != second
    assert first == numbers(stream, 0)
    assert len({i for batch in first for i in batch}) >= 63  # one waits in the pool when the epoch ends
    (batch,) = (next(iter(stream.batches(0, 0))),)
    assert batch.labels.tolist() == [i % 2 for i in batch.images[:, 0, 0, 0].tolist()]


def test_a_resumed_epoch_has_the_batches_that_it_would_have_had(folder):
    whole = numbers(stream_of(folder))
    assert [numbers(stream_of(folder), first=first) for first in (5, 15)] == [whole[5:], whole[15:]]


def test_processes_have_shares_of_their_own(folder):
    shares = [numbers(stream_of(folder, rank=rank, size=2, shuffle=1)) for rank in range(2)]
    assert [len(share) for share in shares] == [8, 8]
    seen = [{i for batch in share for i in batch} for share in shares]
    assert not seen[0] & seen[1]


@pytest.mark.slow
def test_workers_take_turns_and_a_resumed_epoch_keeps_them(folder):
    whole = numbers(stream_of(folder, workers=2))
    assert len({i for batch in whole for i in batch}) > 40
    for first in (5, 6):
        assert numbers(stream_of(folder, workers=2), first=first) == whole[first:]


def test_what_is_damaged_is_skipped_and_named(tmp_path):
    paths = write_shards(tmp_path, (12, 12, 12))
    paths[1].write_bytes(paths[1].read_bytes()[:200])
    stream = stream_of(tmp_path)
    assert list(stream.skipped) == [str(paths[1])]
    paths[2].unlink()  # vanishes after it was listed
    seen = {i for batch in numbers(stream) for i in batch}
    assert seen == set(range(12))
    assert set(stream.skipped) == {str(paths[1]), str(paths[2])}
    paths[0].unlink()
    with pytest.raises(DataError, match=r"no shard of .* can be read"):
        numbers(stream)


def test_an_image_that_cannot_be_decoded_is_named_and_moves_no_other(tmp_path):
    features = Features(image=Image(), label=ClassLabel(names=["a"]))
    stream = io.BytesIO()
    Pillow.new("RGB", (16, 16)).save(stream, format="PNG")
    cells = [{"bytes": b"no image" if i == 2 else stream.getvalue(), "path": None} for i in range(8)]
    rows = Dataset.from_dict({"image": cells, "label": [0] * 8}, features=features)
    rows.to_parquet(tmp_path / "train-0.parquet")
    found = stream_of(tmp_path, shuffle=0)
    assert [len(batch) for batch in numbers(found)] == [4, 4]
    assert list(found.skipped) == [f"{tmp_path / 'train-0.parquet'}#2"]


def test_a_worker_gives_no_more_than_the_epoch_takes(folder):
    reader = stream_of(folder).reader
    assert len(list(reader)) == 16
    reader.start[:] = torch.tensor([0, 13])
    assert len(list(reader)) == 3


@pytest.mark.parametrize("form", ["file", "path", "both"])
def test_images_come_from_any_column_that_can_hold_them(tmp_path, form):
    picture = tmp_path / "picture.png"
    Pillow.fromarray(np.full((16, 16, 3), 7, np.uint8)).save(picture)
    content = picture.read_bytes()
    cell = {"file": content, "path": {"bytes": None, "path": str(picture)}}.get(
        form, {"bytes": content, "path": "elsewhere.png"}
    )
    parquet.write_table(pa.table({"image": [cell] * 8}), tmp_path / "train-0.parquet")
    assert numbers(stream_of(tmp_path)) == [[7] * 4] * 2


def test_shards_without_rows_are_refused(tmp_path):
    parquet.write_table(pa.table({"image": pa.array([], pa.binary())}), tmp_path / "train-0.parquet")
    with pytest.raises(DataError, match="no rows"):
        open_shards(str(tmp_path), "train")


def test_training_from_a_stream_resumes_in_the_middle_of_an_epoch(folder, tmp_path, caplog):
    data = DataConfig(source=str(folder), size=16, stream=True, workers=0, shuffle=8)
    config = tiny(data=data, batch_size=8, refit=False, validate_every=2)

    class Stop(Exception):
        pass

    def stop(row):
        if row.get("step") == 11 and "epoch" not in row:
            raise Stop

    with pytest.raises(Stop):
        train(config, out=tmp_path / "run", listener=stop)
    resumed = train(config, out=tmp_path / "run", resume=True).model.state_dict()
    with caplog.at_level("INFO", logger="steerable"):
        unbroken = train(config).model.state_dict()
    assert all(torch.equal(resumed[name], value) for name, value in unbroken.items())
    assert "images/s by stage: reading" in caplog.text


@pytest.fixture
def on_hub(folder, monkeypatch):
    """A data set on a stand-in for the Hub: fsspec's file system in memory."""
    memory = fsspec.filesystem("memory")
    files: dict[str, list[str]] = {"train": [], "test": []}
    for path in sorted(folder.iterdir()):
        memory.pipe_file(f"/hub/{path.name}", path.read_bytes())
        files[path.name.split("-")[0]].append(f"memory://hub/{path.name}")
    builder = SimpleNamespace(config=SimpleNamespace(data_files=files))
    monkeypatch.setattr(tables, "_ask_hub", lambda name: None)
    monkeypatch.setattr(tables, "load_dataset_builder", lambda name: builder)
    monkeypatch.setattr(tables, "get_dataset_split_names", lambda name: list(files))
    monkeypatch.delenv("STEERABLE_DATA", raising=False)
    yield memory
    memory.rm("/hub", recursive=True)


def test_a_data_set_on_the_hub_is_streamed_without_a_copy(on_hub, folder):
    stream = Stream(open_shards("owner/numbers", "train"), batch=4, shuffle=8, workers=0)
    assert all(path.startswith("memory://") for path in stream.shards.paths)
    assert numbers(stream) == numbers(stream_of(folder))
    on_hub.rm("/hub/train-00001-of-00003.parquet")
    assert len(numbers(stream, 1)) == 16
    assert list(stream.skipped) == ["memory://hub/train-00001-of-00003.parquet"]
    with pytest.raises(DataError, match="no parquet files of the split validation"):
        open_shards("owner/numbers", "validation")
    data = DataConfig(source="owner/numbers", size=16, stream=True, workers=0)
    train_set, test_set = load_splits(tiny(data=data))
    assert (len(train_set), len(test_set)) == (64 - 20, 12)


def test_a_stream_needs_shards_and_refuses_what_needs_memory(tmp_path):
    with pytest.raises(DataError, match="photos has no parquet files of the split train"):
        open_shards("photos", "train")
    with pytest.raises(ConfigError, match=r"data\.stream"):
        train(tiny(data=DataConfig(stream=True, train_limit=10)))
