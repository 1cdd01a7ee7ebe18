"""Copies of a picture in several parts of a data set: found, reported, and kept together on request."""

import numpy as np
import pytest
from PIL import Image

from gmmvit.data.copies import find_copies


def picture(seed, size=(40, 40)):
    """Smooth random colours, like a photograph."""
    small = np.random.default_rng(seed).integers(0, 256, (6, 6, 3), dtype=np.uint8)
    return Image.fromarray(small).resize(size, Image.Resampling.BICUBIC)


@pytest.fixture
def leaking(tmp_path):
    """30 pictures in each of two classes, ten of them with a copy: exact, as a JPEG, or larger."""
    for number, name in enumerate(("cat", "dog")):
        (tmp_path / "pets" / name).mkdir(parents=True)
        for index in range(30):
            image = picture(100 * number + index)
            image.save(tmp_path / "pets" / name / f"{index:02d}.png")
            if index % 3 == 0:
                copy = tmp_path / "pets" / name / f"copy{index:02d}"
                if index % 2:
                    image.save(copy.with_suffix(".jpg"), quality=85)
                else:
                    image.resize((48, 48)).save(copy.with_suffix(".png"))
    return tmp_path / "pets"


def stem(name):
    return name.replace("copy", "").split(".")[0]


def test_exact_and_near_copies_are_found_and_others_are_not(load, leaking):
    data = load(leaking, image_size=32, val_fraction=0, test_fraction=0)
    groups = find_copies(data.train.images.numpy())
    names = [stem(name) for name in data.train.names]
    same_name = np.array([[a == b for a in names] for b in names])
    assert np.array_equal(groups[:, None] == groups[None], same_name)


def test_copies_in_other_parts_are_told_with_an_example(load, leaking, lines):
    data = load(leaking, image_size=32)
    trained = {stem(name) for name in data.train.names}
    leaked = sum(stem(name) in trained for name in data.test.names)
    assert leaked
    told = [line for line in lines if "test images are copies of training images" in line]
    assert told[0].startswith(f"{leaked} of {len(data.test)} test images are copies")
    assert "--dedupe" in told[0]


def test_dedupe_keeps_copies_in_one_part(load, leaking, lines):
    data = load(leaking, image_size=32, dedupe=True)
    parts = [{stem(name) for name in part.names} for part in (data.train, data.val, data.test)]
    assert not parts[0] & parts[1] | parts[0] & parts[2] | parts[1] & parts[2]
    assert sum(len(part) for part in (data.train, data.val, data.test)) == 80
    assert any("moved to training" in line for line in lines)


def test_dedupe_of_given_parts_leaves_the_test_as_it_is(load, tmp_path, lines):
    for part, seeds in (("train", range(20)), ("test", range(15, 25))):
        for seed in seeds:
            path = tmp_path / "pets" / part / ("cat" if seed % 2 else "dog") / f"{seed}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            picture(seed).save(path)
    data = load(tmp_path / "pets", image_size=32, val_fraction=0, dedupe=True)
    assert (len(data.train), len(data.test)) == (15, 10)
    assert any("5 images left out" in line for line in lines)


def test_copies_of_another_class_are_told(load, leaking, lines):
    picture(0).save(leaking / "dog" / "wrong.png")
    load(leaking, image_size=32)
    assert any("copies with different classes" in line for line in lines)


def test_flat_pictures_are_no_copies_of_one_another(load, two_classes, lines):
    """Each has a single colour, which alone distinguishes them."""
    load(two_classes)
    assert not any("copies" in line for line in lines)


def test_grey_images_in_colour_are_told(load, tmp_path, lines):
    for name in ("a", "b"):
        (tmp_path / "scans" / name).mkdir(parents=True)
        for index in range(6):
            values = np.random.default_rng(index).integers(0, 255, (12, 12), dtype=np.uint8)
            Image.fromarray(values).save(tmp_path / "scans" / name / f"{index}{name}.png")
    assert load(tmp_path / "scans").train.images.shape[1] == 3
    assert any("is grey: --channels 1" in line for line in lines)
    lines.clear()
    assert load(tmp_path / "scans", channels=1).train.images.shape[1] == 1
    assert not any("is grey" in line for line in lines)
