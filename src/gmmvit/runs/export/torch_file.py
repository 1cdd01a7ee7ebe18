"""A run's model as a torch.export program."""

import io
import json

import torch

from gmmvit.runs.export.source import Made, Source, traced

EXTRA_FILE = "gmmvit.json"


def make(source: Source) -> Made:
    """A .pt2 file with its facts in the extra file `gmmvit.json`."""
    file = io.BytesIO()
    torch.export.save(traced(source), file, extra_files={EXTRA_FILE: json.dumps(source.facts)})
    return Made({".pt2": file.getvalue()}, torch.export.load(io.BytesIO(file.getvalue())).module())
