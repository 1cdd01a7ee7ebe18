"""The table of docs/attach.md: every model that `attach` knows, against the independent oracle of the tests.

python benchmarks/attach_table.py            prints the table
python benchmarks/attach_table.py --write    puts it into docs/attach.md
"""

import argparse
import copy
import pickle
import sys
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import nn
from torch.fx.experimental.symbolic_shapes import GuardOnDataDependentSymNode

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tests" / "attach"))

from oracle import masked_logits  # noqa: E402 (found through the line above)
from zoo import DONORS, Donor, logits, with_dropout  # noqa: E402

from gmmvit.attach import attach, detach, load_masks  # noqa: E402
from gmmvit.attach.surgery import MaskedDonor  # noqa: E402

PAGE = ROOT / "docs" / "attach.md"
BEGIN, END = "<!-- table: python benchmarks/attach_table.py --write -->", "<!-- end of table -->"


def oracle_error(donor: Donor) -> float:
    """Largest difference of the logits from the donor's own forward pass with the mask inserted, in float64."""
    got, expected = masked_logits(donor)
    return (got - expected).abs().max().item()


def identity_error(donor: Donor, training: bool) -> float:
    """Largest difference of the logits before and after `attach`, in float32; in training with every dropout and drop
    path on, under the same seed."""
    results = []
    for change in (lambda model: model, attach):
        model = donor.make()
        model = change(with_dropout(model) if training else model).train(training)
        torch.manual_seed(5)
        results.append(logits(model, donor.images()))
    return (results[1] - results[0]).abs().max().item()


def compiles(model: nn.Module, images: Any) -> bool:
    """Whether the model becomes one graph."""
    torch.compiler.reset()
    try:
        logits(torch.compile(model, backend="aot_eager", fullgraph=True), images)
    except (torch._dynamo.exc.TorchDynamoException, RuntimeError):
        return False
    return True


def exports(model: nn.Module, images: Any) -> bool:
    """Whether torch.export gives a program with the model's outputs, to 1e-5 of the largest."""
    try:
        program = torch.export.export(model, (images,)).module()
    except (torch._dynamo.exc.TorchDynamoException, GuardOnDataDependentSymNode, RuntimeError):
        return False
    expected = logits(model, images)
    error = (logits(program, images) - expected).abs().max()
    return bool(error <= 1e-5 * expected.abs().max().clamp(min=1))


def tool(check: Callable[[nn.Module, Any], bool], donor: Donor) -> str:
    if check(attach(donor.make(), init="paper"), donor.images()):
        return "yes"
    return "NO" if check(donor.make(), donor.images()) else "as the donor: no"


def saved(donor: Donor) -> str:
    """Whether other instances with masks loaded from files of torch and safetensors have equal outputs."""
    model, images = attach(donor.make(), init="paper"), donor.images()
    weights = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
    same = True
    with TemporaryDirectory() as folder:
        for file, write, read in (("w.pt", torch.save, torch.load), ("w.safetensors", save_file, load_file)):
            path = str(Path(folder, file))
            write(weights, path)
            other = load_masks(donor.make(seed=7), path)
            other.load_state_dict(read(path))
            same &= torch.equal(logits(other, images), logits(model, images))
        if donor.library == "transformers":
            model.save_pretrained(folder)
            other = load_masks(type(model).from_pretrained(folder), folder).eval()
            same &= torch.allclose(logits(other, images), logits(model, images), atol=1e-6)
    return "yes" if same else "NO"


def copied(donor: Donor) -> str:
    """Whether deepcopy and pickle have equal outputs, and detach restores the donor's, bit for bit."""
    model, images, original = attach(donor.make(), init="paper"), donor.images(), donor.make()
    copies = [copy.deepcopy(model), pickle.loads(pickle.dumps(model))]
    same = all(torch.equal(logits(other, images), logits(model, images)) for other in copies)
    same &= torch.equal(logits(detach(model), images), logits(original, images))
    same &= list(model.state_dict()) == list(original.state_dict())
    same &= [type(m) for m in model.modules()] == [type(m) for m in original.modules()]
    return "yes" if same else "NO"


COLUMNS = ["library", "model", "masks attached, of which grid", "oracle", "identity", "in training", "compiles"]
COLUMNS += ["exports", "saves", "copies, detaches"]


def row(donor: Donor) -> list[str]:
    name = f"{donor.name} *" if donor.patches else donor.name
    if donor.missing():
        return [donor.library, name, donor.missing() or ""] + [""] * (len(COLUMNS) - 3)
    model = attach(donor.make())
    grids = [m.gmm_mask.grid for m in model.modules() if isinstance(m, MaskedDonor)]
    where = ", ".join(f"{grids.count(g)} of {g[0]} x {g[1]}" for g in dict.fromkeys(grids))
    errors = [oracle_error(donor), identity_error(donor, False), identity_error(donor, True)]
    tools = [tool(compiles, donor), tool(exports, donor)]
    return [donor.library, name, where, *(f"{e:.0e}" for e in errors), *tools, saved(donor), copied(donor)]


def table() -> str:
    lines = [COLUMNS, ["---"] * len(COLUMNS)]
    for donor in DONORS:
        lines.append(row(donor))
        print(" | ".join(lines[-1]), file=sys.stderr, flush=True)
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help="put the table into docs/attach.md")
    write = parser.parse_args().write
    torch.set_num_threads(1)
    text = table()
    print(text)
    if write:
        page = PAGE.read_text()
        head, rest = page.split(BEGIN)
        PAGE.write_text(f"{head}{BEGIN}\n{text}\n{END}{rest.split(END)[1]}")


if __name__ == "__main__":
    main()
