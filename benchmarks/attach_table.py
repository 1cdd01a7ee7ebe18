"""The table of docs/attach.md: every model that `attach` knows, against the independent oracle of the tests.

python benchmarks/attach_table.py            prints the table
python benchmarks/attach_table.py --write    puts it into docs/attach.md
"""

import argparse
import io
import sys
from pathlib import Path

import torch
from torch import nn

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tests" / "attach"))

from donor import Donor, logits  # noqa: E402 (found through the line above)
from donors import DONORS  # noqa: E402
from oracle import masked_logits  # noqa: E402

from gmmvit.attach import attach, detach  # noqa: E402
from gmmvit.attach.surgery import MaskedDonor  # noqa: E402

PAGE = ROOT / "docs" / "attach.md"
BEGIN, END = "<!-- table: python benchmarks/attach_table.py --write -->", "<!-- end of table -->"


def oracle_error(donor: Donor) -> float:
    """Largest difference of the logits from the donor's own forward with the mask put in, in float64."""
    got, expected = masked_logits(donor)
    return (got - expected).abs().max().item()


def identity_error(donor: Donor) -> float:
    """Largest difference of the logits between the donor and its attached self, in float32."""
    images = donor.images()
    return (logits(attach(donor.make()), images) - logits(donor.make(), images)).abs().max().item()


def compiles(model: nn.Module, images: torch.Tensor) -> bool:
    """Whether the model becomes one graph."""
    torch.compiler.reset()
    try:
        logits(torch.compile(model, backend="aot_eager", fullgraph=True), images)
    except (torch._dynamo.exc.TorchDynamoException, RuntimeError):
        return False
    return True


def compiled(donor: Donor) -> str:
    if compiles(attach(donor.make(), init="paper"), donor.images()):
        return "yes"
    return "NO" if compiles(donor.make(), donor.images()) else "as the donor: no"


def saved(donor: Donor) -> str:
    """Weights through a file into another instance, and the donor back by detach."""
    model, images, file = attach(donor.make(), init="paper"), donor.images(), io.BytesIO()
    torch.save(model.state_dict(), file)
    file.seek(0)
    other = attach(donor.make(seed=7))
    other.load_state_dict(torch.load(file, weights_only=True))
    same = torch.equal(logits(other, images), logits(model, images))
    same &= torch.equal(logits(detach(model), images), logits(donor.make(), images))
    return "yes" if same else "NO"


def row(donor: Donor) -> str:
    if donor.missing():
        return f"| {donor.library} | {donor.name} | {donor.missing()} | | | | |"
    model = attach(donor.make())
    grids = [m.gmm_mask.grid for m in model.modules() if isinstance(m, MaskedDonor)]
    where = ", ".join(f"{grids.count(g)} of {g[0]} x {g[1]}" for g in dict.fromkeys(grids))
    errors = f"{oracle_error(donor):.0e} | {identity_error(donor):.0e}"
    return f"| {donor.library} | {donor.name} | {where} | {errors} | {compiled(donor)} | {saved(donor)} |"


def table() -> str:
    lines = [
        "| library | model | masks attached, of which grid | oracle | identity | compiles | saves, detaches |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for donor in DONORS:
        lines.append(row(donor))
        print(lines[-1], file=sys.stderr, flush=True)
    return "\n".join(lines)


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
