"""Trainings by the command on images of several channels and 16 bits, and what follows."""

import json

import numpy as np
import pytest
import torch

import gmmvit
from gmmvit.cli import main
from gmmvit.data import load_dataset

FAST = ["--recipe", "digits", "--passes", "1", "--warmup-epochs", "0", "--batch-size", "16", "--threads", "1"]
SIZE = (24, 48)


def levels(label, number):
    """uint16 [5, 24, 48]: only the last channel shows the class, in levels that 8 bits merge into one."""
    rng = np.random.default_rng(2 * number + label)
    image = rng.integers(0, 65536, (5, *SIZE)).astype(np.uint16)
    image[4] = rng.integers(5140 + 60 * label, 5200 + 60 * label, SIZE)
    return image


def write_set(folder, write):
    for label in range(2):
        (folder / f"class{label}").mkdir(parents=True)
        for number in range(40):
            write(folder / f"class{label}" / str(number), levels(label, number))
    return folder


@pytest.fixture(scope="module")
def arrays(tmp_path_factory):
    return write_set(tmp_path_factory.mktemp("npy") / "set", lambda path, image: np.save(f"{path}.npy", image))


@pytest.fixture(scope="module")
def bands(tmp_path_factory):
    tifffile = pytest.importorskip("tifffile", reason="pip install '.[tiff]'")

    def write(path, image):
        tifffile.imwrite(f"{path}.tif", image, photometric="minisblack", planarconfig="separate")

    return write_set(tmp_path_factory.mktemp("tiff") / "set", write)


def train(folder, out, size, *flags):
    places = ["--dataset", f"folder:{folder}", "--cache-dir", str(folder.parent / "cache"), "--out", str(out)]
    assert main(["train", *FAST, *places, "--image-size", size, *flags]) == 0
    return json.loads((out / "summary.json").read_text())


def test_eight_bits_would_lose_what_the_classes_differ_in(arrays):
    data = load_dataset(f"folder:{arrays}", image_size=SIZE, bits=8, cache_dir=arrays.parent / "cache")
    assert data.train.images[:, 4].unique().tolist() == [20]


def test_low_bits_of_a_tiff_are_learned_and_read_alike_afterwards(bands, tmp_path, capfd):
    run = tmp_path / "run"
    sizes = ["--depth", "1", "--dim", "24", "--num-heads", "2", "--patch-size", "8x12"]
    flags = ["--policy", "trivial", "--epochs", "10", "--lr", "3e-3"]
    assert train(bands, run, "24x48", *sizes, *flags)["test_top1_last"] >= 0.9
    config = (run / "config.yaml").read_text()
    assert "bits: 16" in config
    loaded = gmmvit.load_run(run)
    assert (loaded.channels, loaded.bits, loaded.image_size) == (5, 16, SIZE)
    capfd.readouterr()
    assert main(["eval", str(run), "--json"]) == 0
    assert json.loads(capfd.readouterr().out)["top1"] >= 0.9
    new = levels(1, 99)
    np.save(tmp_path / "new.npy", new)
    answers = loaded.predict([tmp_path / "new.npy", new.transpose(1, 2, 0), torch.from_numpy(new)]).probabilities
    assert torch.allclose(answers[0], answers[1])
    assert torch.allclose(answers[0], answers[2])
    assert loaded.predict(tmp_path / "new.npy").predicted == ["class1"]
    assert main(["predict", str(run), str(tmp_path / "new.npy")]) == 0
    np.save(tmp_path / "rgb.npy", new[:3])
    capfd.readouterr()
    assert main(["predict", str(run), str(tmp_path / "rgb.npy")]) == 1
    assert "rgb.npy cannot be read: it has 3 channels and 5 are wanted" in capfd.readouterr().err
    assert main(["report", str(run)]) == 0
    page = (run / "report.html").read_text()
    assert "Of 5 channels the first three are shown. Levels of 16 bits are stretched" in page
    assert main(["export", str(run), "--format", "torch", "--check"]) == 0
    program = torch.export.load(run / "model.pt2").module()
    images = torch.stack([loaded.decode(tmp_path / "new.npy")])
    assert torch.allclose(program(images.float() / 65535), loaded.logits(images), atol=1e-3)


def test_arrays_train_other_models_of_the_same_channels(arrays, tmp_path, capfd):
    flags = ["--model", "resnet", "--mask", "none", "--depth", "8", "--dim", "8", "--epochs", "6"]
    assert train(arrays, tmp_path / "run", "12x24", *flags)["test_top1_last"] >= 0.9
    assert main(["resume", str(tmp_path / "run"), "--epochs", "7"]) == 0


def test_a_look_before_training_says_what_is_shown(arrays, tmp_path, capfd):
    page = tmp_path / "page.html"
    flags = ["--cache-dir", str(arrays.parent / "cache"), "--image-size", "24x48"]
    assert main(["inspect", f"folder:{arrays}", "--out", str(page), *flags]) == 0
    assert "read at 24 x 48 in 5 channels, 16 bits" in capfd.readouterr().out
    assert "Of 5 channels the first three are shown." in page.read_text()


def test_the_page_for_trying_refuses_what_no_browser_shows(tmp_path):
    from types import SimpleNamespace

    from gmmvit.report.demo import make_demo
    from gmmvit.runs.files import RunError

    with pytest.raises(RunError, match="reads images of 5 channels: `gmmvit predict"):
        make_demo(SimpleNamespace(channels=5, folder=tmp_path))
