"""Public names refuse wrong arguments in one sentence that names them; found by `make soak`."""

from pathlib import Path

import numpy as np
import pytest
import torch

import gmmvit
from gmmvit.data import decode_image, each_image, inspect_dataset
from gmmvit.report import write_report
from gmmvit.runs.evaluate import evaluate_run
from gmmvit.runs.export import export_run
from gmmvit.runs.files import RunError, is_there

TABLE = torch.zeros(2, 3)
RECIPE = gmmvit.load_recipe("digits")


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda: gmmvit.load_recipe(model=np.zeros(2)), ValueError, "model must be .*got array"),
        (lambda: gmmvit.load_recipe(policy=np.zeros(2)), ValueError, "policy must be one of .*got array"),
        (lambda: gmmvit.train(RECIPE, 3), TypeError, "out must be a path, got 3"),
        (lambda: gmmvit.train(RECIPE, "run", overwrite="no"), TypeError, "overwrite must be True or False, got 'no'"),
        (lambda: gmmvit.train_several(5), ValueError, "recipes must be a list of at least one recipe, got 5"),
        (lambda: gmmvit.resume("run", quiet=np.zeros(2)), TypeError, "quiet must be True or False, got array"),
        (lambda: gmmvit.load_run("x" * 900), RunError, "cannot read x.*File name too long"),
        (lambda: gmmvit.load_run("run", weights=np.zeros(0)), ValueError, "weights must be one of .*got array"),
        (lambda: gmmvit.unknown_threshold(False), TypeError, "run must be a loaded run, as gmmvit.load_run .*False"),
        (
            lambda: evaluate_run("run", part="all"),
            ValueError,
            r"part must be one of \['test', 'val', 'train'\], got 'all'",
        ),
        (lambda: evaluate_run("run", dataset=1), TypeError, "dataset must be the name of a data set"),
        (lambda: gmmvit.load_run("run", device=10**30), ValueError, "device must exist, such as cpu or cuda, got 1000"),
        (lambda: evaluate_run("run", device=Path()), ValueError, "device must be auto or exist.*got PosixPath"),
        (lambda: write_report([1]), TypeError, "a run folder must be given as a path, got 1"),
        (lambda: export_run("run", check=1), TypeError, "check must be True or False, got 1"),
        (lambda: export_run("run", max_drop="a"), ValueError, "max_drop must be a fraction from 0 to 1, got 'a'"),
        (lambda: inspect_dataset(None), TypeError, "name must be the name of a data set, .*got None"),
        (lambda: gmmvit.load_dataset(cache_dir=(2, 2)), TypeError, r"cache_dir must be a path, got \(2, 2\)"),
        (lambda: gmmvit.load_dataset(channels=TABLE), ValueError, r"channels must be 1 .*got tensor"),
        (lambda: decode_image(np.zeros((8, 8)), size=0), ValueError, "image_size must be .*got 0"),
        (lambda: decode_image(TABLE.to("meta"), size=(8, 8)), TypeError, r"got float32 tensor of shape \(2, 3\)"),
        (lambda: gmmvit.Predictions((), TABLE), ValueError, r"a column for each of 0 classes.*got \[2, 3\]"),
        (lambda: gmmvit.Predictions("abc", TABLE), TypeError, "classes must be the names of the classes, got 'abc'"),
        (lambda: gmmvit.Predictions(("a",), 3), TypeError, "probabilities must be a tensor of floats"),
        (lambda: gmmvit.Predictions(tuple("abc"), TABLE).top("2"), TypeError, "k must be one int, got '2'"),
        (lambda: gmmvit.MaskedAttention(8, 2, mask="gmm"), TypeError, "mask must be a mask such as .*got 'gmm'"),
        (lambda: gmmvit.MaskedAttention(8, 2, mask=torch.nn.Linear(2, 2)), TypeError, "mask must be a mask .*Linear"),
        (
            lambda: gmmvit.create_model(mask="gmm", mask_options={"init": np.zeros(2)}),
            ValueError,
            "init of the mask must",
        ),
        (lambda: gmmvit.load_masks(torch.nn.Linear(2, 2), "x" * 900), FileNotFoundError, "cannot be read: File name"),
        (lambda: evaluate_run("run", csv="x" * 900), RunError, "cannot write x.*File name too long"),
        (lambda: export_run("run", format=np.zeros(2)), ValueError, "format must be one of .*got array"),
        (lambda: gmmvit.load_dataset(report=2), TypeError, "report must be a function of one line of text, got 2"),
        (
            lambda: decode_image(next(each_image(torch.tensor(0.5))), size=(8, 8)),
            TypeError,
            r"got float32 tensor of shape \(\)",
        ),
        (lambda: gmmvit.MaskedAttention(8, 2, qkv_bias=TABLE), TypeError, "qkv_bias must be True or False"),
        (lambda: gmmvit.ElementwiseMask(range(10**12), 2), ValueError, "grid must be .*got range"),
        (lambda: gmmvit.ElementwiseMask((2, 2), TABLE), TypeError, r"num_heads must be one int, got tensor\(\[\[0"),
        (lambda: gmmvit.ElementwiseMask((2, 2), "x" * 5000), TypeError, "num_heads must be one int, got 'xxx"),
    ],
    ids=range(37),
)
def test_it_is_refused_in_one_sentence(call, error, words, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(error, match=words) as caught:
        call()
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 1100
    assert not list(tmp_path.iterdir())


def test_a_file_with_too_long_a_name_is_not_there():
    with pytest.raises(RunError, match="File name too long"):
        is_there(Path("x" * 900))
