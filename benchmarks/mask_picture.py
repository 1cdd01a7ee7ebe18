"""Draws the learned masks of a run, a row a layer and a column a head, for the README.

python benchmarks/mask_picture.py RUN docs/masks.svg
"""

import argparse
import sys
from pathlib import Path

from gmmvit.report import mask_picture
from gmmvit.runs.checkpoint import load_run
from gmmvit.runs.files import RunError, write_whole


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="run folder of a model with masks")
    parser.add_argument("out", type=Path, help="the SVG file to write")
    arguments = parser.parse_args()
    try:
        picture = mask_picture(load_run(arguments.run).model)
        write_whole(arguments.out, picture.encode())
    except (RunError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(f"{arguments.out}: {len(picture.encode()) / 1000:.1f} kB")
    return 0


if __name__ == "__main__":
    sys.exit(main())
