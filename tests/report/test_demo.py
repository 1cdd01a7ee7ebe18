"""The page to try a model: a real server, a real image, and a real browser if there is one."""

import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from gmmvit.config import load_recipe
from gmmvit.report.demo import launch, looked_at, make_demo, masks_page
from gmmvit.runs.checkpoint import load_run
from gmmvit.training.run import train

TINY = {"threads": 1, "epochs": 1, "passes": 1, "val_fraction": 0.8}
SMALL = TINY | {"dim": 16, "depth": 2, "num_heads": 2}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("demo") / "digits <b>"  # a name that a page must not read as a tag
    train(load_recipe("digits", **SMALL), folder, quiet=True)
    return load_run(folder)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """A grey image, one in colour, one with 16 bits, and a file that is not an image."""
    folder, rng = tmp_path_factory.mktemp("images"), np.random.default_rng(0)
    Image.fromarray(rng.integers(0, 255, (20, 30), dtype=np.uint8)).save(folder / "grey.png")
    Image.fromarray(rng.integers(0, 255, (20, 30, 3), dtype=np.uint8)).save(folder / "colour.jpg")
    Image.fromarray(rng.integers(0, 65535, (20, 30), dtype=np.uint16)).save(folder / "deep.png")
    (folder / "broken.png").write_bytes(b"\x89PNG no more")
    return folder


@pytest.fixture(scope="module")
def address(run):
    pytest.importorskip("gradio", reason="gradio is not installed: pip install '.[demo]'")
    demo = make_demo(run)
    yield launch(demo, wait=False)
    demo.close()


def test_the_server_answers_as_predict_does(address, run, pictures):
    client = pytest.importorskip("gradio_client")
    page = client.Client(address, verbose=False)
    for name in ("grey.png", "colour.jpg", "deep.png"):
        label, attention = page.predict(client.handle_file(str(pictures / name)), api_name="/predict")
        found = run.predict(pictures / name).top(5)[0]
        assert label["label"] == found[0][0]
        shown = {entry["label"]: entry["confidence"] for entry in label["confidences"]}
        assert shown == pytest.approx(dict(found), abs=1e-5)
        assert "data:image/png;base64," in attention
    with pytest.raises(client.exceptions.AppError, match=r"broken\.png"):
        page.predict(client.handle_file(str(pictures / "broken.png")), api_name="/predict")


def test_only_this_machine_reaches_it(address):
    assert address.startswith("http://127.0.0.1:")


def test_a_model_without_masks_or_attention_says_so(tmp_path, pictures):
    folder = tmp_path / "resnet"
    train(load_recipe("digits", model="resnet", mask="none", dim=4, depth=8, **TINY), folder, quiet=True)
    run = load_run(folder)
    assert "This model has no masks" in masks_page(run.model)
    assert "Attention is not drawn for resnet" in looked_at(run, pictures / "grey.png")


def test_a_model_of_timm_is_drawn(tmp_path, pictures):
    pytest.importorskip("timm")
    sizes = "embed_dim=24,depth=2,num_heads=2,patch_size=8"
    fields = {"model": "timm:deit_tiny_patch16_224", "model_args": sizes, "image_size": 16} | TINY
    train(load_recipe("digits", **fields), tmp_path / "timm", quiet=True)
    run = load_run(tmp_path / "timm")
    assert "layer 2, head 2" in masks_page(run.model)
    assert looked_at(run, pictures / "colour.jpg").count("&lt;figure") == 3  # the image and two layers


def test_of_folds_the_first_model_is_drawn(tmp_path, pictures):
    from gmmvit.report.demo import drawn_run
    from gmmvit.training.folds import cross_validate

    cross_validate(load_recipe("digits", folds=2, **SMALL), tmp_path / "cv", quiet=True)
    run = load_run(tmp_path / "cv")
    drawn, note = drawn_run(run)
    assert note == "2 models answer with the mean of their probabilities; the first one is drawn."
    first = dict(run.model.members[0].named_parameters())
    assert all(torch.equal(value, first[name]) for name, value in drawn.model.named_parameters())
    assert note in looked_at(drawn, pictures / "grey.png", note)


def browsers():
    """Paths of the installed Chromiums."""
    names = ("chromium-headless-shell", "chromium", "google-chrome")
    return [path for path in map(shutil.which, names) if path]


def test_in_a_browser_an_image_gets_its_classes_and_nothing_is_fetched(address, run, pictures):
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed: pip install '.[dev]'")
    if not browsers():
        pytest.skip("no Chromium is installed (apt-get install chromium-headless-shell)")
    asked = []
    with playwright.sync_playwright() as program:
        browser = program.chromium.launch(executable_path=browsers()[0], args=["--no-sandbox"])
        page = browser.new_page()
        page.set_default_timeout(120_000)
        page.on("request", lambda request: asked.append(request.url))
        page.goto(address)
        assert page.locator("h1").inner_text() == run.folder.name
        masks = page.frame_locator('iframe[title="masks"]')
        assert masks.locator("img").count() == 4  # two layers, two heads
        page.locator('input[type="file"]').set_input_files(str(pictures / "colour.jpg"))
        attention = page.frame_locator('iframe[title="attention"]')
        attention.locator("figure").first.wait_for()
        assert attention.locator("figure").count() == 3  # the image and two layers
        (name, share), *_ = run.predict(pictures / "colour.jpg").top(1)[0]
        assert page.get_by_test_id("label-output-value").inner_text() == name
        assert f"{share:.0%}" in page.locator("body").inner_text()
        browser.close()
    assert {url for url in asked if not url.startswith((address, "data:", "blob:", "about:"))} == set()
