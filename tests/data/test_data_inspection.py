"""Looking at a data set before training: what is counted, and what is reported instead of raised."""

import numpy as np
import pytest
from PIL import Image
from test_data_copies import picture

from gmmvit.data import inspect_dataset, load_dataset
from gmmvit.data.headers import read_header


@pytest.fixture
def look(tmp_path):
    def here(name, **options):
        defaults = {"image_size": 32, "cache_dir": tmp_path / "cache", "download": False}
        return inspect_dataset(name if isinstance(name, str) else f"folder:{name}", **{**defaults, **options})

    return here


@pytest.fixture
def mixed(tmp_path):
    """Nine readable cats and eight readable dogs of many kinds, two broken dogs, and three copies."""
    for number, name in enumerate(("cat", "dog")):
        folder = tmp_path / "pets" / name
        folder.mkdir(parents=True)
        for index in range(7):
            picture(100 * number + index, (50 + index // 4, 40)).save(folder / f"{index}.png")
    cat, dog = tmp_path / "pets" / "cat", tmp_path / "pets" / "dog"
    picture(0, (50, 40)).save(cat / "again.png")
    picture(1, (50, 40)).save(dog / "cat.jpg", quality=95)
    exif = Image.Exif()
    exif[0x0112] = 6
    picture(55, (20, 30)).convert("L").save(cat / "turned.jpg", exif=exif)
    (dog / "empty.png").write_bytes(b"")
    (dog / "torn.png").write_bytes((dog / "0.png").read_bytes()[:90])
    return tmp_path / "pets"


def test_sizes_kinds_broken_images_and_copies_are_counted(look, mixed):
    found = look(mixed)
    assert found.classes == ("cat", "dog")
    assert sorted(name for name, _ in found.broken) == ["dog/empty.png", "dog/torn.png"]
    assert found.sizes == {(40, 50): 10, (40, 51): 6, (30, 20): 1}
    assert found.kinds == {"PNG, colour": 15, "JPEG, colour": 1, "JPEG, grey": 1}
    assert (found.turned, found.grey, found.refusal) == (1, 1, None)
    names = found.decoded.catalog.names
    copies = [sorted(names[row] for row in rows) for rows in found.copies]
    assert sorted(copies) == [["cat/0.png", "cat/again.png"], ["cat/1.png", "dog/cat.jpg"]]
    assert any("copies with different classes: 1" in line for line in found.leaks)


def test_the_parts_are_those_of_the_training(look, mixed, tmp_path):
    for options in ({}, {"dedupe": True}, {"train_per_class": 4}, {"folds": 3, "fold": 2}, {"train_on_all": True}):
        found = look(mixed, **options)
        data = load_dataset(f"folder:{mixed}", image_size=32, cache_dir=tmp_path / "cache", skip_broken=True, **options)
        for part in ("train", "val", "test"):
            split = getattr(data, part)
            assert (part in found.parts) == (split is not None)
            if split is not None:
                names = [found.decoded.catalog.names[row] for row in found.parts[part]]
                assert names == list(split.names) == list(getattr(found.dataset, part).names)
                assert found.counts(part) == split.labels.bincount(minlength=2).tolist()
        assert (found.dataset.mean, found.dataset.std) == (data.mean, data.std)


def test_what_a_training_refuses_is_told_and_counted(look, tmp_path, fill):
    found = look(fill(tmp_path / "pets", {"cat": 5, "dog": 1}))
    assert found.refusal.startswith("too few images to split class 'dog'")
    assert found.dataset is None
    assert {part: found.counts(part) for part in found.parts} == {"all": [5, 1]}


def test_nothing_to_look_at_is_one_sentence(look, tmp_path, fill, data_error):
    for name in ("cat", "dog"):
        (tmp_path / "torn" / name).mkdir(parents=True)
        (tmp_path / "torn" / name / "1.png").write_bytes(b"no image")
    assert data_error(look, tmp_path / "torn") == f"none of 2 images of folder:{tmp_path / 'torn'} can be read"
    assert "does not exist" in data_error(look, tmp_path / "gone")
    assert "only class 'cat'" in data_error(look, fill(tmp_path / "one", {"cat": 3}))


def test_named_sets_and_parquet_files_are_looked_at_too(look, tmp_path, write_parquet):
    digits = look("digits", image_size=None)
    assert (digits.sizes, digits.kinds) == ({(8, 8): 1797}, {"grey": 1797})
    assert sum(digits.counts("test")) == 360
    write_parquet(tmp_path / "set" / "train.parquet", [0, 1] * 10)
    found = look(f"hf:{tmp_path / 'set'}")
    assert (found.sizes, found.kinds) == ({(32, 32): 20}, {"PNG, colour": 20})


def test_images_larger_than_memory_together_are_not_compared(look, mixed, monkeypatch):
    monkeypatch.setattr("gmmvit.data.inspection.fits_in_memory", lambda size: False)
    found = look(mixed)
    assert found.copies is None
    assert found.leaks == []


@pytest.mark.parametrize(
    ("mode", "name", "kind"),
    [
        ("1", "a.png", "PNG, black and white"),
        ("P", "a.gif", "GIF, palette"),
        ("LA", "a.png", "PNG, grey and transparency"),
        ("CMYK", "a.jpg", "JPEG, CMYK"),
        ("I;16", "a.tiff", "TIFF, grey, 16 bits"),
        ("F", "a.tiff", "TIFF, grey, floats"),
    ],
)
def test_kinds_have_names(tmp_path, mode, name, kind):
    image = Image.fromarray(np.zeros((3, 5), np.uint16)) if mode == "I;16" else Image.new(mode, (5, 3))
    image.save(tmp_path / name)
    header = read_header(str(tmp_path / name))
    assert (header.size, header.kind, header.turned) == ((3, 5), kind, False)
    assert read_header((tmp_path / name).read_bytes()) == header
    assert read_header(b"no image") is None
