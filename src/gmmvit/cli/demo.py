"""The command demo: a page to try a trained model."""

import typing
from pathlib import Path

from gmmvit.cli.app import app, say
from gmmvit.config import RecipeError


@app.command
def demo(
    run: Path,
    /,
    *,
    weights: typing.Literal["best", "last"] = "best",
    device: str = "auto",
    host: str = "127.0.0.1",
    port: int | None = None,
) -> None:
    """Open a page to try a model: drop an image, see its classes, attention and masks (needs the extra demo).

    It works offline, and only this machine can reach it. Ctrl-C ends it.

    Parameters
    ----------
    run
        Folder of the run, or of a cross-validation.
    weights
        The best on validation, or those of the last epoch.
    device
        auto, cpu, cuda ...
    host
        Address to listen on; 0.0.0.0 lets in everybody who can reach this machine.
    port
        Default: the first free one from 7860 on.
    """
    if port is not None and not 0 < port < 65536:
        raise RecipeError(f"--port must be 1 to 65535, got {port}")
    from gmmvit.device import choose_device
    from gmmvit.report.demo import launch, make_demo
    from gmmvit.runs.checkpoint import load_run

    page = make_demo(load_run(run, weights=weights, device=choose_device(device)), weights)
    say("Ctrl-C ends the page:", error=True)
    launch(page, host=host, port=port)
