"""A page to try a model on, by Gradio: an image goes in, classes, attention and masks come out."""

import os
from html import escape
from pathlib import Path
from typing import Any

from torch import nn

from gmmvit.data import DataError
from gmmvit.report.attention import attention_section
from gmmvit.report.masks import mask_section
from gmmvit.report.page import document, paragraph
from gmmvit.runs.checkpoint import LoadedRun, load_run
from gmmvit.runs.ensemble import Ensemble
from gmmvit.runs.run_folder import fold_folder

HOST, PORT = "127.0.0.1", 7860
_TOP = 5
_PORTS_TRIED = 50


def drawn_run(run: LoadedRun, weights: str = "best") -> tuple[LoadedRun, str]:
    """The run whose attention and masks are drawn, and a sentence where it is one of several models that answer."""
    if not isinstance(run.model, Ensemble):
        return run, ""
    first = load_run(fold_folder(run.folder, 1), weights=weights, device=run.device)
    return (
        first,
        f"{len(run.model.members)} models answer by the mean of their probabilities; drawn is the first of them.",
    )


def looked_at(run: LoadedRun, path: str, note: str = "") -> str:
    """A page of HTML: where a model looked in the image of a file, and a `note` before it."""
    attention = attention_section(run, run.decode(path)[None], ["the image as the model sees it"])
    return _framed("attention", (paragraph(note, "note") if note else "") + attention, 560)


def masks_page(model: nn.Module) -> str:
    """A page of HTML with the learned masks of a model, or the sentence that it has none."""
    return _framed("masks", mask_section(model), 760)


def _framed(title: str, content: str, height: int) -> str:
    """A page in a frame of its own: the report's style, and nothing in it may run or fetch."""
    page = document(title, [], content)
    return (
        f'<iframe title="{title}" sandbox="" style="width:100%;height:{height}px;border:0" srcdoc="{escape(page)}">'
        "</iframe>"
    )


def make_demo(run: LoadedRun, weights: str = "best") -> Any:
    """The page as a `gradio.Blocks`; its endpoint `/predict` takes an image file and returns classes and HTML.

    Raises ModuleNotFoundError that says what to install where Gradio is missing.
    """
    gradio = _gradio()
    drawn, note = drawn_run(run, weights)

    def answer(path: str | None) -> tuple[dict[str, float] | None, str]:
        if path is None:
            return None, ""
        try:
            found = run.predict(path)
        except DataError as error:
            message = str(error).replace(path, Path(path).name)  # not where Gradio has put it
            raise gradio.Error(message, print_exception=False) from None
        return dict(found.top(_TOP)[0]), looked_at(drawn, path, note)

    height, width = run.image_size
    with gradio.Blocks(title=f"gmmvit: {run.folder.name}", analytics_enabled=False) as demo:
        gradio.HTML(
            f"<h1>{escape(run.folder.name)}</h1><p>{escape(run.recipe.model)} with mask {run.recipe.mask}, "
            f"{len(run.classes)} classes, images of {height} x {width}. Images stay on the machine that runs this.</p>"
        )
        with gradio.Row():
            image = gradio.Image(
                type="filepath", image_mode=None, sources=["upload", "clipboard"], label="An image", height=320
            )
            # The file as it came: Gradio would open it itself, and answer to one that is broken with a traceback.
            image.preprocess = lambda file: None if file is None else file.path
            classes = gradio.Label(num_top_classes=_TOP, label="Classes")
        gradio.HTML("<h2>Where it looked</h2>")
        attention = gradio.HTML()
        gradio.HTML("<h2>Its masks</h2>")
        gradio.HTML(masks_page(drawn.model))
        image.change(answer, image, [classes, attention], api_name="predict", show_progress="minimal")
    return demo


def launch(demo: Any, *, host: str = HOST, port: int | None = None, wait: bool = True) -> str:
    """Serves the page and returns its address; with `wait` only when it is ended (Ctrl-C).

    Args:
        demo: of `make_demo`.
        host: 127.0.0.1 is this machine alone; 0.0.0.0 lets in everybody who reaches it.
        port: the first free one from 7860 on by default.
        wait: False goes on at once and leaves ending it to `demo.close()`.
    """
    gradio = _gradio()
    os.environ.setdefault("GRADIO_NUM_PORTS", str(_PORTS_TRIED))
    # Fonts of the system: Gradio's own themes fetch theirs from the net.
    fonts = {"font": ["system-ui", "sans-serif"], "font_mono": ["ui-monospace", "monospace"]}
    _, address, _ = demo.launch(
        server_name=host,
        server_port=port,
        share=False,
        quiet=True,
        theme=gradio.themes.Default(**fonts),
        footer_links=[],
        ssr_mode=False,
        prevent_thread_lock=True,
    )
    if wait:
        print(address, flush=True)
        demo.block_thread()
    return str(address)


def _gradio() -> Any:
    os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")  # read when it is imported
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    try:
        import gradio
    except ModuleNotFoundError as error:
        if error.name != "gradio":
            raise
        raise ModuleNotFoundError("the demo needs gradio; install it: pip install gradio", name="gradio") from error
    return gradio
