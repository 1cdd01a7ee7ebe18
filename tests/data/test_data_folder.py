"""`folder:PATH` with class folders, and one clear sentence for every fault of its layout."""

from __future__ import annotations

import shutil

import pytest
import torch


def test_class_folders_are_split_by_seed(load, two_classes):
    data = load(two_classes)
    assert data.classes == ("cat", "dog")
    assert [len(part) for part in (data.train, data.val, data.test)] == [36, 4, 10]
    assert data.train.images.shape == (36, 3, 8, 8)
    assert data.train.images.dtype == torch.uint8
    assert data.train.labels.dtype == torch.int64
    names = [*data.train.names, *data.val.names, *data.test.names]
    assert sorted(names) == sorted(f"{file.parent.name}/{file.name}" for file in two_classes.rglob("*.png"))
    assert (data.policy, data.flip, data.name) == ("imagenet", True, f"folder:{two_classes}")


def test_labels_and_pixels_belong_to_the_names(load, two_classes):
    part = load(two_classes).train
    for image, label, name in zip(part.images, part.labels, part.names, strict=True):
        folder, file = name.split("/")
        assert label == ["cat", "dog"].index(folder)
        assert image[0, 0, 0] == 40 * label + int(file[:3])


def test_same_seed_same_split_other_seed_other_split(load, two_classes):
    assert load(two_classes, split_seed=3).val.names == load(two_classes, split_seed=3).val.names
    assert load(two_classes, split_seed=3).test.names != load(two_classes, split_seed=4).test.names


def test_statistics_are_those_of_the_training_part(load, two_classes):
    data = load(two_classes)
    pixels = data.train.images.double().permute(1, 0, 2, 3).reshape(3, -1) / 255
    assert data.mean == pytest.approx(pixels.mean(1).tolist(), abs=1e-9)
    assert data.std[:2] == pytest.approx(pixels.std(1, correction=0)[:2].tolist(), abs=1e-9)
    assert data.std[2] == pytest.approx(1 / 255)


@pytest.mark.parametrize(("val", "valid"), [("val", "test"), ("valid", "Test"), ("Validation", "testing")])
def test_given_parts_are_used_as_they_are(load, tmp_path, fill, val, valid):
    for part, count in (("train", 6), (val, 2), (valid, 3)):
        fill(tmp_path / "set" / part, {"a": count, "b": count})
    data = load(tmp_path / "set")
    assert [len(part) for part in (data.train, data.val, data.test)] == [12, 4, 6]
    assert data.test.names[0] == f"{valid}/a/000.png"


def test_validation_is_cut_from_train_where_only_test_is_given(load, tmp_path, fill):
    fill(tmp_path / "set" / "train", {"a": 10, "b": 10})
    fill(tmp_path / "set" / "test", {"a": 3, "b": 3})
    data = load(tmp_path / "set", val_fraction=0.2)
    assert [len(part) for part in (data.train, data.val, data.test)] == [16, 4, 6]
    assert load(tmp_path / "set", val_fraction=0).val is None


def test_no_test_part_is_cut_where_validation_is_given(load, tmp_path, fill):
    fill(tmp_path / "set" / "train", {"a": 10, "b": 10})
    fill(tmp_path / "set" / "val", {"a": 3, "b": 3})
    data = load(tmp_path / "set")
    assert data.test is None
    assert [len(data.train), len(data.val)] == [20, 6]


def test_class_called_train_is_a_class(load, tmp_path, fill):
    fill(tmp_path / "vehicles", {"train": 10, "bus": 10})
    assert load(tmp_path / "vehicles").classes == ("bus", "train")


def test_numbered_classes_are_in_order_of_their_numbers(load, tmp_path, fill):
    fill(tmp_path / "set", {str(number): 4 for number in range(11)})
    assert load(tmp_path / "set").classes == tuple(str(number) for number in range(11))


def test_odd_names_upper_case_and_nested_images_count_and_others_do_not(load, tmp_path, fill, draw):
    root = fill(tmp_path / "set", {"a b": 5, "ü": 5})
    draw(root / "a b" / "UPPER.JPG")
    draw(root / "a b" / "deeper" / "one.Jpeg")
    draw(root / "a b" / ".hidden.png")
    draw(root / ".hidden" / "one.png")
    draw(root / "a b" / ".thumbs" / "one.png")
    (root / "a b" / "notes.txt").write_text("not an image")
    data = load(root, val_fraction=0, test_fraction=0)
    assert data.classes == ("a b", "ü")
    assert len(data.train) == 12
    assert {"a b/UPPER.JPG", "a b/deeper/one.Jpeg"} < set(data.train.names)


def test_images_beside_class_folders_are_ignored_and_reported(load, two_classes, lines, draw):
    draw(two_classes / "stray.png")
    assert len(load(two_classes, test_fraction=0, val_fraction=0).train) == 50
    assert any("ignored 1 image" in line and "stray.png" in line for line in lines)


def test_differently_sized_images_come_out_in_one_size(load, tmp_path, draw):
    for index, size in enumerate([(5, 50), (50, 5), (8, 8), (300, 200)]):
        draw(tmp_path / "set" / "ab"[index % 2] / f"{index}.png", size=size)
    data = load(tmp_path / "set", image_size=(6, 9), val_fraction=0, test_fraction=0)
    assert data.train.images.shape == (4, 3, 6, 9)


def test_default_size_is_64_and_grey_is_one_channel(load, two_classes):
    assert load(two_classes, image_size=None).train.images.shape[1:] == (3, 64, 64)
    grey = load(two_classes, channels=1)
    assert grey.train.images.shape[1:] == (1, 8, 8)
    assert len(grey.mean) == len(grey.std) == 1


def test_missing_folder(data_error, load, tmp_path):
    assert f"folder {tmp_path / 'none'} does not exist" in data_error(load, tmp_path / "none")


def test_file_instead_of_folder(data_error, load, draw, tmp_path):
    assert "is not a folder; expected PATH/CLASS/*.jpg" in data_error(load, draw(tmp_path / "a.png"))


def test_no_class_folders(data_error, load, draw, tmp_path):
    draw(tmp_path / "set" / "a.png")
    assert "has 1 image directly in it but no class folders" in data_error(load, tmp_path / "set")
    (tmp_path / "empty").mkdir()
    assert f"{tmp_path / 'empty'} has no class folders" in data_error(load, tmp_path / "empty")


def test_empty_classes_are_all_named(data_error, load, two_classes):
    (two_classes / "bird").mkdir()
    (two_classes / "fish").mkdir()
    (two_classes / "fish" / "photo.heic").write_bytes(b"x")
    message = data_error(load, two_classes)
    assert "no images in class folder 'bird', 'fish'" in message
    assert "jpg" in message


def test_single_class(data_error, load, two_classes):
    shutil.rmtree(two_classes / "cat")
    assert "only class 'dog': at least two" in data_error(load, two_classes)


def test_missing_train_part(data_error, load, tmp_path, fill):
    fill(tmp_path / "set" / "val", {"a": 3, "b": 3})
    fill(tmp_path / "set" / "test", {"a": 3, "b": 3})
    message = data_error(load, tmp_path / "set")
    assert "no train part" in message
    assert "test, val" in message


def test_part_given_twice(data_error, load, tmp_path, fill):
    for part in ("train", "val", "valid"):
        fill(tmp_path / "set" / part, {"a": 3, "b": 3})
    assert "are a val part: keep one" in data_error(load, tmp_path / "set")


def test_class_that_train_lacks(data_error, load, tmp_path, fill):
    fill(tmp_path / "set" / "train", {"a": 3, "b": 3})
    fill(tmp_path / "set" / "test", {"a": 3, "b": 3, "c": 1})
    assert "the test part" in (message := data_error(load, tmp_path / "set"))
    assert "class 'c', which the training part lacks" in message


def test_classes_that_differ_by_case(data_error, load, two_classes, draw):
    draw(two_classes / "Cat" / "a.png")
    assert "classes 'Cat' and 'cat'" in data_error(load, two_classes)


def test_numbers_that_differ_by_zeros_in_front(data_error, load, two_classes, fill):
    fill(two_classes, {"1": 3, "01": 3})
    assert "classes '01' and '1'" in (message := data_error(load, two_classes))
    assert "differ by zeros in front only: merge them" in message


def test_class_too_small_to_split(data_error, load, two_classes, draw):
    draw(two_classes / "fish" / "a.png")
    assert "too few images to split class 'fish'" in data_error(load, two_classes)


def test_every_broken_file_is_told_once(data_error, load, two_classes, lines):
    reason = "(not a JPEG, PNG, WebP, BMP, GIF, TIFF, PPM, AVIF or NPY image)"
    (two_classes / "cat" / "bad00.png").write_bytes(b"broken")
    assert f"1 broken image: cat/bad00.png {reason}; repair or remove" in data_error(load, two_classes)
    assert not any("bad00" in line for line in lines)
    for index in range(25):
        (two_classes / "cat" / f"bad{index:02d}.png").write_bytes(b"broken")
    message = data_error(load, two_classes)
    assert "25 broken images, named above; repair or remove them, or leave them out with --skip-broken" in message
    assert lines[-25:] == [f"broken image: cat/bad{index:02d}.png {reason}" for index in range(25)]


def test_the_error_names_the_first_of_many_broken_files_where_nobody_listens(data_error, load, two_classes):
    for index in range(25):
        (two_classes / "cat" / f"bad{index:02d}.png").write_bytes(b"broken")
    message = data_error(load, two_classes, report=None)
    assert (
        "25 broken images: cat/bad00.png (not a JPEG, PNG, WebP, BMP, GIF, TIFF, PPM, AVIF or NPY image), cat/bad01.png"
        in message
    )
    assert "bad03" not in message
    assert "and 22 more; repair or remove them, or leave them out with --skip-broken (in Python skip_b" in message


def test_skip_broken_goes_on_and_reports(load, two_classes, lines):
    (two_classes / "cat" / "bad.png").write_bytes(b"broken")
    for _ in range(2):
        lines.clear()
        assert len(load(two_classes, skip_broken=True, val_fraction=0, test_fraction=0).train) == 50
        assert any(line.startswith("broken image: cat/bad.png (") for line in lines)
        assert lines[-1].endswith("1 broken image skipped")


def test_a_run_of_broken_images_longer_than_what_is_decoded_at_once_is_skipped(load, two_classes):
    for index in range(300):
        (two_classes / "cat" / f"torn{index}.png").write_bytes(b"no image")
    assert len(load(two_classes, skip_broken=True, val_fraction=0, test_fraction=0).train) == 50


def test_class_of_broken_files_only(data_error, load, two_classes):
    (two_classes / "fish").mkdir()
    (two_classes / "fish" / "bad.png").write_bytes(b"broken")
    assert "no readable training image in class 'fish'" in data_error(load, two_classes, skip_broken=True)


def test_images_larger_than_a_block_of_decoding(load, two_classes):
    data = load(two_classes, image_size=600, val_fraction=0, test_fraction=0)
    assert data.train.images.shape == (50, 3, 600, 600)
    assert data.train.images[:, 0].flatten(1).unique(dim=1).flatten().tolist() == [*range(20), *range(40, 70)]
