"""A Gradio page to try a model: drop an image, see classes, attention and masks."""

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
from gmmvit.runs.files import RunError
from gmmvit.runs.run_folder import fold_folder

HOST, PORT = "127.0.0.1", 7860
_TOP = 5
_PORTS_TRIED = 50


def drawn_run(run: LoadedRun, weights: str = "best") -> tuple[LoadedRun, str]:
    """The run whose attention and masks are drawn, and a note if it is one of several models that answer together."""
    if not isinstance(run.model, Ensemble):
        return run, ""
    first = load_run(fold_folder(run.folder, 1), weights=weights, device=run.device)
    return (
        first,
        f"{len(run.model.members)} models answer with the mean of their probabilities; the first one is drawn.",
    )


def looked_at(run: LoadedRun, path: str, note: str = "") -> str:
    """An HTML page: `note`, then where the model looked in an image file."""
    attention = attention_section(run, run.decode(path)[None], ["the image as the model sees it"])
    return _framed("attention", (paragraph(note, "note") if note else "") + attention, 560)


def masks_page(model: nn.Module) -> str:
    """An HTML page with a model's learned masks, or the sentence that it has none."""
    return _framed("masks", mask_section(model), 760)


def _framed(title: str, content: str, height: int) -> str:
    """A page in its own frame, with the report's style, in which nothing may run or be fetched."""
    page = document(title, [], content)
    return (
        f'<iframe title="{title}" sandbox="" style="width:100%;height:{height}px;border:0" srcdoc="{escape(page)}">'
        "</iframe>"
    )


def make_demo(run: LoadedRun, weights: str = "best") -> Any:
    """The page as a `gradio.Blocks`; its endpoint `/predict` takes an image file and returns classes and HTML.

    Raises ModuleNotFoundError, with the command to install it, if Gradio is missing, and RunError for a model of images
    that no browser shows.
    """
    if run.channels not in (1, 3):
        raise RunError(
            f"the page takes pictures in grey or colour, and {run.folder} reads images of {run.channels} channels: "
            f"`gmmvit predict {run.folder} FILE` answers to them"
        )
    gradio = _gradio()
    drawn, note = drawn_run(run, weights)

    def answer(path: str | None) -> tuple[dict[str, float] | None, str]:
        if path is None:
            return None, ""
        try:
            found = run.predict(path)
        except DataError as error:
            message = str(error).replace(path, Path(path).name)  # hide Gradio's temporary path
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
            # Pass the file on unopened: Gradio itself would answer a broken file with a traceback.
            image.preprocess = lambda file: None if file is None else file.path
            classes = gradio.Label(num_top_classes=_TOP, label="Classes")
        gradio.HTML("<h2>Where it looked</h2>")
        attention = gradio.HTML()
        gradio.HTML("<h2>Its masks</h2>")
        gradio.HTML(masks_page(drawn.model))
        image.change(answer, image, [classes, attention], api_name="predict", show_progress="minimal")
    return demo


def launch(demo: Any, *, host: str = HOST, port: int | None = None, wait: bool = True) -> str:
    """Serves the page and returns its address.

    Args:
        demo: from `make_demo`.
        host: 127.0.0.1 is only this machine; 0.0.0.0 lets in everybody who can reach it.
        port: default: the first free one from 7860 on.
        wait: returns only after Ctrl-C; with False at once, and `demo.close()` ends the page.
    """
    gradio = _gradio()
    os.environ.setdefault("GRADIO_NUM_PORTS", str(_PORTS_TRIED))
    # System fonts: Gradio's themes fetch theirs from the net.
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
    os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")  # read at import
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    try:
        import gradio
    except ModuleNotFoundError as error:
        if error.name != "gradio":
            raise
        raise ModuleNotFoundError("the demo needs gradio; install it: pip install gradio", name="gradio") from error
    return gradio
