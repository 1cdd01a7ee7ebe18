"""What a study means: its trials, their names and recipes, and a sentence for every impossible study."""

from pathlib import Path

import pytest

from gmmvit.config import RecipeError
from gmmvit.sweep.plan import make_plan
from gmmvit.sweep.study import StudyError, read_study

STUDIES = Path(__file__).parents[2] / "benchmarks" / "studies"
MASKS = "variants: {none: {mask: none}, gmm: {mask: gmm}}\n"
CONTROL = "controls: {mask: {variant: none}}\n"


def plan(path, data_dir=None):
    return make_plan(read_study(path), data_dir)


def test_trials_are_all_combinations_with_the_first_seed_first(write):
    made = plan(write(MASKS + CONTROL + "grid: {lr: [1e-3, 2e-3]}\nseeds: [3, 4]\n"))
    names = [trial.name for trial in made.trials()]
    arms = ["none-lr=1e-3", "none-lr=2e-3", "gmm-lr=1e-3", "gmm-lr=2e-3"]
    assert names == [f"digits-{arm}-s{seed}" for seed in (3, 4) for arm in arms]
    last = made.trials()[-1].recipe
    assert (last.mask, last.lr, last.seed, last.epochs) == ("gmm", 2e-3, 4, 2)


def test_named_levels_data_sets_and_arms_beside_the_grid(write):
    base = "recipe: small\ndata: {few: {dataset: cifar10, train_per_class: 50}, all: {dataset: cifar10}}\n"
    lines = MASKS + CONTROL + "grid: {width: {narrow: {dim: 16}, wide: {dim: 32, num_heads: 2}}}\n"
    lines += "also: {vgg: {model: 'timm:vgg11', mask: none, drop_path: 0}}\n"
    made = plan(write(lines, base), data_dir="/data")
    trials = {trial.name: trial.recipe for trial in made.trials()}
    assert len(trials) == 2 * (2 * 2 + 1)
    wide = trials["few-gmm-wide-s0"]
    assert (wide.dim, wide.num_heads, wide.train_per_class, wide.data_dir) == ((32,), (2,), 50, "/data")
    assert trials["all-vgg-s0"].dim is None, "the recipe's sizes are of another model"


def test_a_control_keeps_the_other_levels_or_is_one_arm(write):
    made = plan(write(MASKS + "grid: {depth: [1, 2]}\ncontrols: {mask: {variant: none}, best: gmm-depth=1}\n"))
    arms = made.arms
    assert made.control(arms["gmm-depth=2"], "mask") is arms["none-depth=2"]
    assert made.control(arms["none-depth=2"], "mask") is None
    assert made.control(arms["none-depth=2"], "best") is arms["gmm-depth=1"]


def test_the_base_recipe_may_lie_beside_the_study(write, tmp_path):
    (tmp_path / "mine.yaml").write_text("lr: 0.5\n")
    made = plan(write("", "recipe: mine.yaml\ndata: [digits]\n"))
    assert made.trials()[0].recipe.lr == 0.5


@pytest.mark.parametrize(
    ("lines", "sentence"),
    [
        (MASKS, "has 2 arms but no control: say what to compare them with"),
        ("variants: {a: {masc: none}}\n", r"trial digits-a-s0: an unknown field 'masc'; did you mean 'mask'\?"),
        ("variants: {a: {mask: gm}}\n", r"trial digits-a-s0: mask must be one of .* got 'gm'"),
        ("variant: {a: {}}\n", r"unknown key 'variant'; did you mean 'variants'\?"),
        ("variants: {a: {lr: 1.0e-3}, a: {lr: 2.0e-3}}\n", "names 'a' twice"),
        ("seeds: [0, 0]\n", "seeds must not repeat a seed"),
        ("grid: {lr: [1.0e-3, 1.0e-3]}\n", "grid: lr must not repeat a value"),
        (MASKS + CONTROL + "also: {gmm: {mask: elm}}\n", "has two arms called 'gmm'"),
        ("variants: {a: {lr: 2.0e-3}, b: {}}\ncontrols: {x: a}\n", "digits-a-s0 and digits-b-s0 are the same training"),
        (MASKS + "controls: {mask: {variant: non}}\n", r"variant has no level 'non'; did you mean 'none'\?"),
        (MASKS + "controls: {mask: {variants: none}}\n", r"no factor 'variants'; did you mean 'variant'\?"),
        (MASKS + "controls: {mask: nome}\n", r"no arm 'nome'; did you mean 'none'\?"),
        ("variants: {a: {lr: 1}}\ngrid: {lr: [1, 2]}\n", "lr is set by variant a and by lr 1; keep one"),
        ("variants: {a: {seed: 1}}\n", "variant a sets the seed; use `seeds` instead"),
        ("variants: {../a: {}}\n", "'../a' becomes a folder name: use letters"),
        ("seeds: 3\n", r"seeds must be a list of whole numbers like \[0, 1, 2\], got 3"),
        ("ranges: {lr: {low: 1e-4, high: 1e-2}}\n", "ranges need `trials`"),
        ("trials: 3\n", "there are no ranges"),
        ("trials: 3\nranges: {lrr: {low: 1, high: 2}}\n", r"unknown field 'lrr'; did you mean 'lr'\?"),
        ("trials: 3\nranges: {lr: {low: 1, high: 1}}\n", "low below high"),
        ("trials: 3\nranges: {lr: {low: 0, high: 1, log: true}}\n", "low above 0 with log"),
        ("trials: 3\nranges: {depth: {low: 1, high: 2.5}}\n", "from a whole number to a whole number"),
        ("trials: 3\nranges: {drop_path: {low: 0, high: 2}}\n", r"trial digits-base-s0: drop_path must be 0 to 0.99"),
        ("trials: 3\nranges: {lr: {low: 1, high: 2}}\ngrid: {lr: [1]}\n", "lr is set by arm lr=1 and by ranges"),
        ("grid: {lr: 3}\n", "grid: lr must be a list of values or named sets"),
        ("variants: [a]\n", "variants must be a mapping"),
    ],
)
def test_a_study_that_cannot_be_gets_one_sentence(write, lines, sentence):
    with pytest.raises(RecipeError, match=sentence):
        plan(write(lines))


@pytest.mark.parametrize("path", sorted(STUDIES.glob("*.yaml")), ids=lambda path: path.stem)
def test_every_study_of_the_benchmarks_makes_trials(path):
    assert plan(path).samples()


def test_a_missing_or_empty_study_is_told(tmp_path):
    with pytest.raises(StudyError, match="there is no study"):
        read_study(tmp_path / "none.yaml")
    (tmp_path / "empty.yaml").write_text("")
    with pytest.raises(StudyError, match="must hold a study"):
        read_study(tmp_path / "empty.yaml")
