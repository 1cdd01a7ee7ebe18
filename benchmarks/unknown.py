"""How many images of unseen classes `--unknown-below auto` finds: a model of the digits 0 to 4 (recipe digits)
classifies its test part and the digits 5 to 9. A minute on one core.

    python benchmarks/unknown.py
"""

import tempfile
from pathlib import Path

import numpy as np
from PIL import Image
from sklearn.datasets import load_digits

import gmmvit
from gmmvit.runs.evaluate import load_parts


def write_digits(folder: Path) -> None:
    digits = load_digits()
    for number, (image, label) in enumerate(zip(digits.images, digits.target, strict=True)):
        place = folder / ("known" if label < 5 else "new") / str(label)
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray((image * 15.9).astype(np.uint8)).save(place / f"{number}.png")


def main() -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_digits(folder)
        data = {"dataset": f"folder:{folder / 'known'}", "image_size": 8, "channels": 1, "cache_dir": name}
        recipe = gmmvit.load_recipe("digits", threads=1, device="cpu", **data)
        gmmvit.train(recipe, folder / "run", quiet=True)
        run = gmmvit.load_run(folder / "run")
        found = gmmvit.unknown_threshold(run)
        test = load_parts(run).test
        known = run.predict(test.images, unknown_below=found.value)
        new = run.predict(sorted((folder / "new").rglob("*.png")), unknown_below=found.value)
        top1 = (known.probabilities.argmax(1) == test.labels).double().mean()
        print(f"threshold {found.value:g}: {found.kept} of {found.images} validation images keep their class")
        print(f"test images of the classes learned: {top1:.1%} right, {share(known):.1%} unknown")
        print(f"images of classes never seen: {share(new):.1%} unknown")


def share(answers: gmmvit.Predictions) -> float:
    return answers.predicted.count("unknown") / len(answers)


if __name__ == "__main__":
    main()
