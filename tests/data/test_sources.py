"""load_images on folders and photos: splits, labels, broken files, limits."""

import logging
import shutil

import pytest
import torch

from steerable.data import decode, load_images, localized, photographs, reading, splits
from steerable.data.sources import parse_source
from steerable.errors import DataError


def test_class_folder(class_folder):
    train, test = load_images(class_folder), load_images(class_folder, split="test")
    assert train.classes == test.classes == ("cat", "dog")
    assert train.images.shape == (8, 3, 30, 40)
    assert train.labels.tolist() == [0] * 4 + [1] * 4
    assert test.labels.tolist() == [1, 1]  # though cat is absent there
    assert splits(class_folder) == ("train", "test")
    for path, image in zip(train.paths, train.images, strict=True):
        assert torch.equal(image, decode(path))


def test_class_folder_without_splits_is_train(class_folder):
    images = load_images(class_folder / "train")
    assert images.classes == ("cat", "dog")
    assert splits(class_folder / "train") == ("train",)
    with pytest.raises(DataError, match=r"no split 'test'; expected one of train"):
        load_images(class_folder / "train", split="test")


def test_flat_folder_has_no_labels_whatever_its_files_are_called(tmp_path, picture):
    for name in ("test_1.png", "train.jpg", "val-3.PNG"):
        picture(len(name)).save(tmp_path / name)
    images = load_images(tmp_path)
    assert len(images) == 3
    assert images.classes == ()
    assert images.labels.tolist() == [0, 0, 0]


def test_flat_folders_inside_splits(tmp_path, picture):
    for split in ("train", "val"):
        (tmp_path / split).mkdir()
        picture(1).save(tmp_path / split / "a.png")
    assert load_images(tmp_path, split="val").classes == ()
    assert splits(tmp_path) == ("train", "val")


def test_only_split_is_found(tmp_path, picture):
    (tmp_path / "test").mkdir()
    picture(1).save(tmp_path / "test" / "a.png")
    assert load_images(tmp_path).name.endswith(":test")


def test_folder_whose_name_is_a_pattern(class_folder, tmp_path):
    odd = tmp_path / "a[1]*?"
    shutil.copytree(class_folder, odd)
    assert len(load_images(odd)) == 8


def test_broken_images_are_skipped_listed_and_logged(class_folder, caplog):
    cats = class_folder / "train" / "cat"
    whole = (cats / "0.png").read_bytes()
    (cats / "0.png").write_bytes(whole[: len(whole) // 2])
    (cats / "1.png").write_bytes(b"")
    (cats / "notes.jpg").write_text("not an image")
    (cats / "notes.txt").write_text("not even by its name")
    with caplog.at_level(logging.WARNING, logger="steerable"):
        images = load_images(class_folder)
    assert len(images) == 6
    assert images.labels.tolist() == [0, 0, 1, 1, 1, 1]
    assert {skipped.path.rsplit("/", 1)[-1] for skipped in images.skipped} == {"0.png", "1.png", "notes.jpg"}
    assert all(skipped.reason for skipped in images.skipped)
    assert "skipped 3 of 9 images" in caplog.text
    assert "notes.jpg" in caplog.text


def test_log_names_ten_of_many_skipped_images(tmp_path, picture, caplog):
    picture().save(tmp_path / "good.png")
    for i in range(15):
        (tmp_path / f"bad{i:02}.png").write_bytes(b"x")
    with caplog.at_level(logging.WARNING, logger="steerable"):
        images = load_images(tmp_path)
    assert len(images.skipped) == 15
    assert len(caplog.records) == 12


def test_limit_stands_in_for_broken_images(tmp_path, picture):
    for i in range(20):
        (picture(i).save if i % 2 else lambda path: path.write_bytes(b"x"))(tmp_path / f"{i:02}.png")
    images = load_images(tmp_path, limit=8)
    assert len(images) == 8
    assert len(set(images.paths)) == 8
    assert len(load_images(tmp_path, limit=15)) == 10


def test_limit_is_seeded_and_keeps_the_order(class_folder):
    first, again = load_images(class_folder, limit=4), load_images(class_folder, limit=4)
    assert first.paths == again.paths == tuple(sorted(first.paths))
    assert first.fingerprint == again.fingerprint
    others = {load_images(class_folder, limit=4, seed=seed).paths for seed in range(6)}
    assert len(others) > 1
    assert len(load_images(class_folder, limit=100)) == 8


@pytest.mark.parametrize("kind", ["empty", "text", "broken", "missing"])
def test_no_image_is_an_error(tmp_path, kind):
    if kind == "text":
        (tmp_path / "a.txt").write_text("words")
    elif kind == "broken":
        (tmp_path / "a.jpg").write_text("words")
    source = tmp_path / "none" if kind == "missing" else tmp_path
    match = {"missing": "does not exist", "broken": "no image that can be decoded, 1 were skipped"}
    with pytest.raises(DataError, match=match.get(kind, "holds no images and no parquet files")) as caught:
        load_images(source)
    assert "\n" not in str(caught.value)


def test_several_sizes_need_a_size(tmp_path, picture):
    picture(1, 40, 30).save(tmp_path / "a.png")
    picture(2, 20, 30).save(tmp_path / "b.png")
    with pytest.raises(DataError, match=r"40x30 in .*a\.png.*20x30 in .*b\.png.*--size"):
        load_images(tmp_path)
    assert load_images(tmp_path, size=16).images.shape == (2, 3, 16, 16)


def test_images_in_threads_keep_their_rows(tmp_path, picture):
    for i in range(60):
        picture(i, 96, 96).save(tmp_path / f"{i:02}.png")
    images = load_images(tmp_path, size=24)
    for path, image in zip(images.paths, images.images, strict=True):
        assert torch.equal(image, decode(path, size=24))


def test_new_and_changed_files_are_seen(tmp_path, picture):
    picture(1).save(tmp_path / "a.png")
    before = load_images(tmp_path)
    picture(2).save(tmp_path / "a.png")
    picture(3).save(tmp_path / "b.png")
    after = load_images(tmp_path)
    assert len(after) == 2
    assert not torch.equal(before.images[0], after.images[0])


def test_nothing_is_written_beside_the_data(class_folder):
    before = sorted(class_folder.rglob("*"))
    load_images(class_folder)
    assert sorted(class_folder.rglob("*")) == before


def test_more_images_than_memory(class_folder, monkeypatch):
    monkeypatch.setattr(reading.os, "sysconf", lambda name: 100)
    with pytest.raises(DataError, match=r"8 images of 3,600 bytes.*give a limit or a smaller size"):
        load_images(class_folder)
    assert len(load_images(class_folder, limit=2)) == 2


def test_photos_as_a_source(monkeypatch):
    monkeypatch.setattr(photographs, "COUNTS", {"train": 200, "test": 50})
    images = load_images("photos", split="test")
    assert images.images.shape == (50, 3, 32, 32)
    assert load_images("photos:test[:10]", size=24).images.shape == (10, 3, 24, 24)
    few = load_images("photos", limit=30)
    assert few.fingerprint == load_images("photos", limit=30).fingerprint
    assert few.fingerprint != load_images("photos", limit=30, seed=1).fingerprint
    assert set(few.paths) <= set(load_images("photos").paths)
    assert splits("photos") == ("train", "test")
    with pytest.raises(DataError, match="no split 'val'"):
        load_images("photos:val")


@pytest.mark.parametrize(
    ("source", "parts"),
    [
        ("photos", ("photos", None)),
        ("photos:test", ("photos", "test")),
        ("org/name:train[:10%]", ("org/name", "train[:10%]")),
        ("/data/x-*.parquet:test", ("/data/x-*.parquet", "test")),
    ],
)
def test_split_behind_a_colon(source, parts):
    assert parse_source(source) == parts


def test_existing_path_with_a_colon_is_not_parted(tmp_path, picture):
    folder = tmp_path / "12:30"
    folder.mkdir()
    picture().save(folder / "a.png")
    assert len(load_images(folder)) == 1
    assert len(load_images(f"{folder}:train")) == 1


@pytest.mark.parametrize("slice_", ["train[:0]", "train[100:]", "train[abc]", "train[:1000%]"])
def test_bad_slices(class_folder, slice_):
    with pytest.raises(DataError, match=r"slice 'train\["):
        load_images(class_folder, split=slice_)


def test_data_elsewhere_stand_in_for_a_recipe_s_source(tmp_path, class_folder):
    copies = tmp_path / "copies"
    shutil.copytree(class_folder, copies / "pets")
    name = "some-org/pets:train"
    assert localized(name, None) == (name, None)
    assert localized(name, copies) == (name, copies)
    assert localized(name, class_folder) == (f"{class_folder}:train", None)
    assert localized("photos", class_folder) == (str(class_folder), None)
    pattern = str(tmp_path / "train-*.parquet")
    assert localized("some-org/pets", pattern) == (pattern, None)
    with pytest.raises(DataError, match=r"none does not exist.*--data"):
        localized(name, tmp_path / "none")


def test_empty_name_is_not_the_current_folder(tmp_path, picture, monkeypatch):
    picture().save(tmp_path / "a.png")
    monkeypatch.chdir(tmp_path)
    assert len(load_images(".")) == 1
    with pytest.raises(DataError, match="'' does not exist"):
        load_images("")


@pytest.mark.parametrize(("name", "value"), [("size", 7), ("limit", 0), ("limit", -1)])
def test_bad_numbers(name, value):
    with pytest.raises(DataError, match=f"{name} is {value}"):
        load_images("photos", **{name: value})
