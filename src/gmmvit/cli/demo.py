"""The command demo: a page on which a trained model is tried."""

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
    """Open a page to try a model: drop an image, see its classes, where the model looked and the masks (extra demo).

    It needs no network, and only this machine reaches it. Ctrl-C ends it.

    Parameters
    ----------
    run
        Folder of the run, or of a cross-validation.
    weights
        Best on validation, or of the last epoch.
    device
        auto, cpu, cuda ...
    host
        Address to listen at; 0.0.0.0 lets in everybody who reaches this machine.
    port
        The first free one from 7860 on by default.
    """
    if port is not None and not 0 < port < 65536:
        raise RecipeError(f"--port must be 1 to 65535, got {port}")
    from gmmvit.device import choose_device
    from gmmvit.report.demo import launch, make_demo
    from gmmvit.runs.checkpoint import load_run

    page = make_demo(load_run(run, weights=weights, device=choose_device(device)), weights)
    say("Ctrl-C ends the page:", error=True)
    launch(page, host=host, port=port)
