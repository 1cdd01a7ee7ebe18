"""Which recipe a training gets without naming one: by its number of training images."""

import numpy as np
import pytest
from PIL import Image

from gmmvit.cli import main
from gmmvit.cli.flags import suitable_recipe
from gmmvit.data import count_training, load_dataset


@pytest.fixture
def images(tmp_path):
    def written(per_class, root=tmp_path / "images"):
        for name in ("a", "b"):
            (root / name).mkdir(parents=True)
            for index in range(per_class):
                Image.fromarray(np.full((4, 4, 3), index % 255, np.uint8)).save(root / name / f"{index}.png")
        return root

    return written


@pytest.mark.parametrize(("per_class", "name"), [(900, "few"), (950, "small")])
def test_images_of_ones_own_get_a_recipe_by_their_number(images, per_class, name):
    """A fifth is the test part: 1,440 and 1,520 are left."""
    folder = images(per_class)
    assert suitable_recipe({"dataset": f"folder:{folder}"})[0] == name
    counted = count_training(f"folder:{folder}")
    data = load_dataset(f"folder:{folder}", image_size=4)
    assert counted == len(data.train) + len(data.val) == round(2 * per_class * 0.8)
    assert (
        suitable_recipe({"dataset": f"folder:{folder}", "test_fraction": 0.0})[1]
        == f"for {2 * per_class:,} images to learn from"
    )
    assert suitable_recipe({"dataset": f"folder:{folder}", "train_per_class": 50})[1] == "for 100 images to learn from"


def test_named_sets_have_theirs_and_a_few_of_their_images_one_by_number(cifar10_dir):
    assert suitable_recipe({})[0] == "digits"
    assert suitable_recipe({"dataset": "cifar10"})[0] == "quick"
    few = {"dataset": "cifar10", "data_dir": str(cifar10_dir)}
    for count, name in ((50, "few"), (400, "small"), (5000, "many")):
        assert suitable_recipe(few | {"train_per_class": count}) == (name, f"for {10 * count:,} images to learn from")


def test_the_command_says_which_and_why(images, tmp_path, capsys):
    sizes = ["--dim=8", "--depth=1", "--num-heads=1", "--epochs=1", "--threads=1", "--image-size=8"]
    assert main(["train", f"--dataset=folder:{images(20)}", *sizes, f"--out={tmp_path / 'run'}"]) == 0
    assert "recipe few, for 32 images to learn from (choose with --recipe: " in capsys.readouterr().err
