"""load_images on parquet files and names of the Hub."""

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from huggingface_hub.errors import RepositoryNotFoundError

from steerable.data import decode, load_images, splits, tables
from steerable.errors import DataError


@pytest.fixture
def rows(picture, encoded):
    """Bytes of ten images of 12x10 pixels."""
    return [encoded(picture(i, 12, 10)) for i in range(10)]


@pytest.fixture
def write(rows):
    """A function that writes a parquet file as datasets does: images ``rows[part]``, labels row modulo 3."""

    def save(path, part=slice(None), image="image", label="label", labels=None):
        path.parent.mkdir(parents=True, exist_ok=True)
        numbers = list(range(10))[part]
        cells = [{"bytes": rows[i], "path": f"was/{i}.png"} for i in numbers]
        columns = {image: cells, label: labels or [i % 3 for i in numbers]}
        features = {image: datasets.Image(), label: datasets.ClassLabel(names=["a", "b", "c"])}
        datasets.Dataset.from_dict(columns, features=datasets.Features(features)).to_parquet(path)
        return path

    return save


def test_shards_splits_and_row_names(tmp_path, write, rows):
    write(tmp_path / "train-00000.parquet", slice(0, 4))
    write(tmp_path / "train-00001.parquet", slice(4, 8))
    write(tmp_path / "test-00000.parquet", slice(8, 10))
    train, test = load_images(tmp_path), load_images(tmp_path, split="test")
    assert train.classes == ("a", "b", "c")
    assert train.labels.tolist() == [i % 3 for i in range(8)]
    assert train.paths[3:5] == ("train-00000.parquet#3", "train-00001.parquet#0")
    assert torch.equal(train.images, torch.stack([decode(row) for row in rows[:8]]))
    assert torch.equal(test.images, torch.stack([decode(row) for row in rows[8:]]))
    assert set(splits(tmp_path)) == {"train", "test"}


def test_slices_keep_row_names(tmp_path, write, rows):
    write(tmp_path / "train.parquet")
    part = load_images(f"{tmp_path}:train[3:6]")
    assert part.paths == tuple(f"train.parquet#{i}" for i in (3, 4, 5))
    assert torch.equal(part.images[0], decode(rows[3]))
    assert len(load_images(tmp_path, split="train[50%:]")) == 5


@pytest.mark.parametrize(
    ("layout", "found"),
    [
        (["data/train-00000-of-00001.parquet", "data/test-00000-of-00001.parquet"], {"train", "test"}),
        (["plain_text/train-0-of-1-0a1b.parquet"], {"train"}),
        (["train/0000.parquet", "validation/0000.parquet"], {"train", "validation"}),
        (["part-1.parquet", "part-2.parquet"], {"train"}),
        (["train-1.parquet", "extra.parquet"], {"train", "extra"}),
        (["test_small.parquet"], {"test"}),
        (["trainer.parquet"], {"train"}),
    ],
)
def test_layouts(tmp_path, write, layout, found):
    for path in layout:
        write(tmp_path / path)
    assert set(splits(tmp_path)) == found
    assert len(load_images(tmp_path)) == 10 * (len(layout) if len(found) == 1 else 1)


def test_globs_and_files(tmp_path, write):
    write(tmp_path / "train-0.parquet")
    write(tmp_path / "test-0.parquet", slice(0, 2))
    assert len(load_images(str(tmp_path / "*.parquet"))) == 10
    assert len(load_images(str(tmp_path / "test-*.parquet"))) == 2
    assert len(load_images(tmp_path / "test-0.parquet")) == 2
    with pytest.raises(DataError, match="no split 'train'; expected one of test"):
        load_images(tmp_path / "test-0.parquet", split="train")
    with pytest.raises(DataError, match="matches no parquet file"):
        load_images(str(tmp_path / "val-*.parquet"))


def test_several_data_sets_in_one_folder(tmp_path, write):
    write(tmp_path / "one" / "train-0.parquet")
    write(tmp_path / "two" / "train-0.parquet")
    with pytest.raises(DataError, match=r"several data sets \(one, two\)"):
        load_images(tmp_path)


def test_columns_are_found_by_type(tmp_path, write):
    write(tmp_path / "train.parquet", image="img", label="fine_label")
    images = load_images(tmp_path)
    assert images.classes == ("a", "b", "c")
    assert images.labels.tolist() == [i % 3 for i in range(10)]


def test_of_two_labels_the_finer_counts(tmp_path, rows):
    features = datasets.Features(
        img=datasets.Image(),
        coarse_label=datasets.ClassLabel(names=["x", "y"]),
        fine_label=datasets.ClassLabel(names=["a", "b", "c"]),
    )
    cells = [{"bytes": row, "path": None} for row in rows]
    columns = {"img": cells, "coarse_label": [0] * 10, "fine_label": [2] * 10}
    datasets.Dataset.from_dict(columns, features=features).to_parquet(tmp_path / "train.parquet")
    assert load_images(tmp_path).labels.unique().tolist() == [2]


@pytest.mark.parametrize("cell", ["struct", "binary"])
def test_plain_parquet_without_the_hub_schema(tmp_path, rows, cell):
    cells = [{"bytes": row, "path": None} for row in rows] if cell == "struct" else rows
    labels = [i % 3 for i in range(10)]
    pq.write_table(pa.table({"image": cells, "label": labels}), tmp_path / "train.parquet")
    images = load_images(tmp_path)
    assert images.classes == ("0", "1", "2")
    assert images.labels.tolist() == labels
    assert torch.equal(images.images[4], decode(rows[4]))


def test_secret_labels_are_no_labels_and_missing_ones_an_error(tmp_path, write):
    write(tmp_path / "test.parquet", labels=[-1] * 10)
    assert load_images(tmp_path).classes == ()
    write(tmp_path / "train.parquet", labels=[None] + [0] * 9)
    with pytest.raises(DataError, match="1 of 10 rows have no label"):
        load_images(tmp_path, split="train")


def test_broken_rows_are_skipped_by_name(tmp_path, rows):
    cells = [{"bytes": row, "path": "a.png"} for row in rows]
    cells[2]["bytes"] = rows[2][:20]
    cells[5] = {"bytes": None, "path": None}
    cells[6] = None
    features = datasets.Features(image=datasets.Image())
    table = pa.table({"image": cells}, schema=features.arrow_schema)
    pq.write_table(table, tmp_path / "train.parquet")
    images = load_images(tmp_path)
    assert [skipped.path for skipped in images.skipped] == [f"train.parquet#{i}" for i in (2, 5, 6)]
    assert len(images) == 7


def test_rewritten_parquet_is_read_again(tmp_path, write):
    write(tmp_path / "train.parquet", slice(0, 3))
    assert len(load_images(tmp_path)) == 3
    write(tmp_path / "train.parquet", slice(0, 5))
    assert len(load_images(tmp_path)) == 5


def test_damaged_parquet(tmp_path, write):
    path = write(tmp_path / "train.parquet")
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(DataError, match="cannot be read") as caught:
        load_images(tmp_path)
    assert "\n" not in str(caught.value)


def test_cache_that_cannot_be_written(tmp_path, write, monkeypatch):
    write(tmp_path / "train.parquet")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", "/proc/none")
    with pytest.raises(DataError, match=r"cannot be read.*set HF_HOME"):
        load_images(tmp_path)


def test_hub_that_the_user_turned_off(monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(tables.HfApi, "dataset_info", lambda *_, **__: pytest.fail("asked the Hub"))
    with pytest.raises(DataError, match=r"some-org/pets cannot be read.*STEERABLE_DATA"):
        load_images("some-org/pets")


def test_parquet_without_images(tmp_path):
    pq.write_table(pa.table({"text": ["a"], "label": [1]}), tmp_path / "train.parquet")
    with pytest.raises(DataError, match="no image column among text, label"):
        load_images(tmp_path)


def test_progress_bars_are_left_as_they_were(tmp_path, write, capfd):
    write(tmp_path / "train.parquet")
    capfd.readouterr()
    load_images(tmp_path)
    assert capfd.readouterr() == ("", "")
    assert not datasets.utils.are_progress_bars_disabled()


@pytest.mark.parametrize("place", ["pets", "transfer/pets"])
@pytest.mark.parametrize("way", ["root", "environment", "itself"])
def test_local_copy_of_a_hub_data_set(tmp_path, write, monkeypatch, place, way):
    write(tmp_path / place / "train-0.parquet")
    root = tmp_path / place if way == "itself" else tmp_path
    if way == "environment":
        monkeypatch.setenv("STEERABLE_DATA", str(root))
    images = load_images("some-org/pets:train[:4]", root=None if way == "environment" else root)
    assert len(images) == 4
    assert images.name == "some-org/pets:train[:4]"


def test_root_that_is_missing(tmp_path):
    with pytest.raises(DataError, match="folder for local copies"):
        load_images("some-org/pets", root=tmp_path / "none")


@pytest.mark.parametrize(
    ("error", "match"),
    [
        (ConnectionError("no network"), "Hub cannot be reached"),
        (RepositoryNotFoundError, "no data set on the Hub that you may see"),
    ],
)
def test_hub_that_cannot_help(monkeypatch, tmp_path, error, match):
    def fail(*_, **__):
        raise error if isinstance(error, Exception) else error.__new__(error)

    monkeypatch.setattr(tables.HfApi, "dataset_info", fail)
    monkeypatch.setattr(tables, "load_dataset", lambda *_, **__: pytest.fail("retries begin here"))
    with pytest.raises(DataError, match=f"{match}.*STEERABLE_DATA.*folder that holds pets"):
        load_images("some-org/pets", root=tmp_path)


def test_hub_data_set(monkeypatch, rows):
    features = datasets.Features(image=datasets.Image(), label=datasets.ClassLabel(names=["a"]))
    cells = [{"bytes": row, "path": "a.png"} for row in rows]
    table = datasets.Dataset.from_dict({"image": cells, "label": [0] * 10}, features=features)
    monkeypatch.setattr(tables.HfApi, "dataset_info", lambda *_, **__: None)
    monkeypatch.setattr(tables, "get_dataset_split_names", lambda name: ["train", "test"])
    monkeypatch.setattr(tables, "load_dataset", lambda name, split: table)
    images = load_images("some-org/pets:test[2:4]")
    assert images.paths == ("some-org/pets:test#2", "some-org/pets:test#3")
    assert splits("some-org/pets") == ("train", "test")


def test_real_cifar10(local_data):
    images = load_images("uoft-cs/cifar10", split="test", root=local_data, limit=2000)
    assert images.images.shape == (2000, 3, 32, 32)
    counts = images.labels.bincount()
    assert len(counts) == 10
    assert int((counts - 200).abs().max()) < 60  # five standard deviations of a random fifth
    assert images.classes[:3] == ("airplane", "automobile", "bird")
    assert images.skipped == ()
    assert 100 < float(images.images.float().mean()) < 140


def test_real_set_one_folder_deeper(local_data):
    images = load_images("any/flowers", split="test", root=local_data, size=32, limit=64)
    assert images.images.shape == (64, 3, 32, 32)
    assert len(images.classes) == 89
