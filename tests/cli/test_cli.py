"""The command: exit statuses, one-sentence errors, fast help, from a folder of images to a report."""

import dataclasses
import json
import os
import re
import resource
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from gmmvit.cli import main
from gmmvit.config import Recipe

TINY = ["--dim", "16", "--depth", "2", "--num-heads", "2", "--passes", "1", "--threads", "1", "--quiet"]


def call(capsys, *arguments):
    status = main([str(a) for a in arguments])
    captured = capsys.readouterr()
    return status, captured.out, captured.err


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "digits"
    assert main(["train", "--out", str(folder), "--epochs", "2", *TINY]) == 0
    return folder


@pytest.mark.parametrize("command", [["--help"], ["train", "--help"]])
def test_help_answers_within_a_second_and_without_torch(command):
    code = f"import sys; from gmmvit.cli import main; main({command}); print('torch' in sys.modules)"
    times = []
    for _ in range(3):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)  # its own time: other tests run beside it
        times.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
        assert done.stdout.splitlines()[-1] == "False"
    assert min(times) < 1


def test_the_help_of_train_shows_every_field_with_its_default(capsys):
    status, out, _ = call(capsys, "train", "--help")
    text = " ".join(out.replace("│", " ").split())
    assert status == 0
    assert "hold for fields that the recipe leaves open" in text
    for field in dataclasses.fields(Recipe):
        assert f"--{field.name.replace('_', '-')} " in text, field.name
    for shown in ("--lr FLOAT Peak learning rate. [default: 0.001]", "[default: 0.02,0.4]", "[default: digits]"):
        assert shown in text
    defaults = [field.default for field in dataclasses.fields(Recipe) if field.default not in (None, ())]
    assert text.count("[default: ") >= len(defaults)


def test_python_m_is_the_command():
    done = subprocess.run([sys.executable, "-m", "gmmvit", "--version"], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == __import__("gmmvit").__version__


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["trian"], 'Did you mean "train"'),
        (["train", "--epoch", "3"], "Did you mean --epochs"),
        (["train", "--lr", "abc"], 'unable to convert "abc" into float'),
        (["train", "--mask", "gm"], 'Did you mean "gmm"'),
        (["train", "--epochs", "0"], "epochs must be 1 to 1e+09, got 0"),
        (["train", "--recipe", "papr"], "did you mean 'paper'"),
        (["train", "--quiet", "--model", "vitt", "--out", "never"], "did you mean 'vit'"),
        (["predict", "somewhere"], "at least one image"),
        (["report"], "at least one run folder"),
        (["resume", __file__, __file__], "at least one run folder"),
        (["train", "--quiet", "--dataset", "cifar11"], "cifar10"),
        (["train", "--quiet", "--device", "cuda:99", "--out", "never"], "device 'cuda:99' cannot be used"),
        (["train", "--quiet", "--patch-size", "3", "--out", "never"], "nearest image size"),
        (["train", "--quiet", "--dim", "10", "--num-heads", "3", "--out", "never"], "dim must be a multiple of num_he"),
        (["convert", "x.pth", "--family", "vitt", "--mask", "gmm", "--out", "never"], "family must be one of ['vit'"),
        (["models", "--image-size", "8", "--num-classes", "1"], "num_classes must be at least 2"),
    ],
)
def test_wrong_usage_is_one_sentence_and_status_2(capsys, arguments, words):
    status, out, err = call(capsys, *arguments)
    assert status == 2
    assert out == ""
    assert words in err
    assert len(err.splitlines()) == 1 + arguments.count(__file__)
    assert err.splitlines()[-1].startswith("gmmvit: ")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["train", "--dataset", "folder:nowhere"], "does not exist"),
        (["train", "--image-size", "100000", "--out", "never"], "100000 x 100000 in grey"),
        (["train", "--dim", "100000", "--num-heads", "1", "--out", "never"], "dim 100000, depth 4, num_heads 1"),
        (
            [
                "train",
                "--mask",
                "elm",
                "--dim",
                "8",
                "--image-size",
                "128",
                "--patch-size",
                "1",
                "--depth",
                "99",
                "--out",
                "never",
            ],
            "mask elm",
        ),
        (["convert", __file__, "--family", "vit", "--mask", "gmm", "--out", "never"], "not a weight file"),
        (["resume", "never"], "not a run folder"),
        (["eval", "never"], "not a run folder"),
        (["report", "never"], "not a run folder"),
    ],
)
def test_a_failure_is_one_sentence_and_status_1(capsys, arguments, words, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    status, _, err = call(capsys, *arguments)
    assert status == 1
    assert words in err
    assert len(err.splitlines()) <= 2
    assert "Traceback" not in err
    assert list(tmp_path.iterdir()) == []


def test_a_step_that_is_larger_than_memory_tells_its_images(tmp_path):
    """With all libraries loaded, the process may take one more gigabyte; the batch's first activation needs two."""
    fields = ["--image-size", "128", "--patch-size", "1", "--batch-size", "512", "--mask", "none", "--dim", "64"]
    code = (
        "import pathlib, resource, sys\nfrom gmmvit.cli import main\n"
        f"main(['train', '--out', {str(tmp_path / 'first')!r}, '--epochs', '1', *{TINY!r}])\n"
        "held = int(pathlib.Path('/proc/self/statm').read_text().split()[0]) * resource.getpagesize()\n"
        "resource.setrlimit(resource.RLIMIT_AS, (held + 2**30, held + 2**30))\n"
        f"sys.exit(main(['train', '--threads', '1', '--quiet', '--out', {str(tmp_path / 'a')!r}, *{fields!r}]))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == 1, done.stderr
    assert len(done.stderr.splitlines()) == 1
    asked = (
        r"gmmvit: the memory of cpu ran out \(\d GiB were asked for at once, and "  # by the first or a later activation
    )
    assert re.match(asked, done.stderr), done.stderr
    assert "in a step of 512 images 128 x 128 through vit; take a smaller --batch-size" in done.stderr


def test_debug_shows_the_traceback(tmp_path):
    with pytest.raises(RuntimeError, match="not a run folder"):
        main(["eval", str(tmp_path), "--debug"])


def test_eval_and_predict_agree_with_the_summary(capsys, run, tmp_path):
    summary = json.loads((run / "summary.json").read_text())
    status, out, _ = call(capsys, "eval", run, "--json")
    assert status == 0
    assert json.loads(out)["top1"] == pytest.approx(summary["test_top1_best"])
    status, out, _ = call(capsys, "eval", run, "--weights", "last")
    assert f"{summary['test_top1_last']:.4f}" in out
    paths = []
    for name in ("a.png", "b.jpg"):
        paths.append(tmp_path / name)
        Image.fromarray(np.random.default_rng(0).integers(0, 255, (20, 30, 3), dtype=np.uint8)).save(paths[-1])
    status, out, _ = call(capsys, "predict", run, *paths, "--top", "3", "--json")
    rows = json.loads(out)
    assert status == 0
    assert [row["image"] for row in rows] == [str(path) for path in paths]
    assert all(len(row["classes"]) == 3 for row in rows)
    assert all(a["probability"] >= b["probability"] for row in rows for a, b in zip(row["classes"], row["classes"][1:]))  # noqa: B905
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"\x89PNG torn")
    status, out, err = call(capsys, "predict", run, broken, paths[0], tmp_path / "missing.png")
    assert status == 1
    assert str(paths[0]) in out
    assert "broken.png" in err
    assert "missing.png" in err


def test_predict_takes_the_images_of_a_folder_in_order(capsys, run, tmp_path):
    names = ["b/2.png", "b/deep/1.png", "a.jpg", "c.png"]
    for name in names:
        (tmp_path / "in" / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (9, 8)).save(tmp_path / "in" / name)
    (tmp_path / "in" / "notes.txt").write_text("no image")
    status, out, err = call(capsys, "predict", run, tmp_path / "in", tmp_path / "in" / "a.jpg", "--json")
    assert status == 0
    assert [row["image"] for row in json.loads(out)] == [
        str(tmp_path / "in" / name) for name in ("a.jpg", "b/2.png", "b/deep/1.png", "c.png", "a.jpg")
    ]
    assert err == f"ignored 1 file that is not an image: .txt 1 (in {tmp_path / 'in'})\n"
    (tmp_path / "empty").mkdir()
    status, out, err = call(capsys, "predict", run, tmp_path / "empty", tmp_path / "in" / "a.jpg")
    assert status == 1
    assert err == f"gmmvit: {tmp_path / 'empty'} holds no images\ngmmvit: 1 of 2 could not be predicted\n"
    assert "a.jpg: " in out


def test_from_a_folder_of_mixed_images_to_a_report(capsys, tmp_path):
    """Colour, grey, palette, alpha and 16-bit files of many shapes: train, evaluate, predict, report."""
    rng = np.random.default_rng(0)
    for klass, level in (("dark", 60), ("light", 190)):
        (tmp_path / "images" / klass).mkdir(parents=True)
        for index in range(30):
            height, width = rng.integers(20, 60, 2)
            pixels = np.clip(rng.normal(level, 30, (height, width, 3)), 0, 255).astype(np.uint8)
            image = Image.fromarray(pixels)
            if index % 5 == 4:
                wide = pixels[..., 0].astype(np.uint16) * 257
                Image.fromarray(wide).save(tmp_path / "images" / klass / f"{index}.png")
                continue
            mode = ["RGB", "L", "P", "RGBA"][index % 5]
            suffix = "jpg" if mode in ("RGB", "L") else "png"
            image.convert(mode).save(tmp_path / "images" / klass / f"{index}.{suffix}")
    dataset, out = f"folder:{tmp_path / 'images'}", tmp_path / "run"
    fields = ["--image-size", "16", "--batch-size", "8", "--lr", "3e-3", "--epochs", "15", *TINY]
    cache = ["--cache-dir", str(tmp_path / "cache")]
    status, text, err = call(capsys, "train", "--dataset", dataset, "--out", out, "--json", *cache, *fields)
    assert status == 0, err
    assert json.loads(text)["test_top1_best"] >= 0.9
    status, text, _ = call(capsys, "predict", out, tmp_path / "images" / "dark" / "0.jpg")
    assert ": dark " in text
    status, text, err = call(capsys, "report", out)
    assert status == 0, err
    assert (out / "report.html").stat().st_size > 10_000


def test_ctrl_c_is_told_and_resumable(tmp_path):
    code = (
        "import os, signal, sys, threading, time\nfrom gmmvit.cli import main\nfrom gmmvit.runs import run_folder\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"  # a background shell leaves it ignored
        f"folder = {str(tmp_path / 'a')!r}\n"
        "def stop():\n"
        "    while not run_folder.read_rows(folder): time.sleep(0.01)\n"
        "    os.kill(os.getpid(), signal.SIGINT)\n"
        "threading.Thread(target=stop, daemon=True).start()\n"
        f"sys.exit(main(['train', '--out', folder, '--epochs', '500', *{TINY!r}]))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == 1, done.stderr
    assert done.stderr.strip().startswith("gmmvit: interrupted after epoch ")
    assert f"`gmmvit resume {tmp_path / 'a'}`" in done.stderr
    assert not [p.name for p in (tmp_path / "a").iterdir() if p.name.endswith(".tmp")]


def test_a_closed_pipe_is_no_error_message():
    code = "from gmmvit.cli import main; import sys; sys.exit(main(['recipes']))"
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run([sys.executable, "-c", code], stdout=write, stderr=subprocess.PIPE, text=True, check=False)
    os.close(write)
    assert "Traceback" not in done.stderr


def test_a_folder_of_runs_and_a_data_folder_without_its_word_are_told(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "compare" / "vit-gmm-s0").mkdir(parents=True)
    (tmp_path / "compare" / "vit-gmm-s0" / "config.yaml").write_text("{}")
    for arguments, words in (
        (["report", "compare"], "it has no config.yaml; it holds 1 run folders, such as compare/vit-gmm-s0"),
        (["report", "nowhere"], "nowhere is not a run folder: there is no such folder"),
        (["train", "--dataset", "compare", "--out", "never"], "did you mean 'folder:compare'?"),
    ):
        assert main(arguments) > 0
        assert words in capsys.readouterr().err


def test_the_modules_of_the_library_need_no_import_of_their_own():
    code = "import gmmvit, torch; print(gmmvit.attention.explain(torch.ones(1, 1, 4, 4)).splitlines()[0])"
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert shown.startswith("chunked: taken")
