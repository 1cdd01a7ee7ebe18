"""The command cache: lists and removes decoded images."""

import json
from dataclasses import asdict
from pathlib import Path

from gmmvit.cli.app import Json, app, say
from gmmvit.text import columns


@app.command
def cache(*, clear: str | None = None, cache_dir: Path | None = None, as_json: Json = False) -> None:
    """List or remove the decoded images that trainings keep.

    Removing them is safe: the next training decodes its images again. Other files in the folder stay.

    Parameters
    ----------
    clear
        Remove the files of this data set, named as in the list, or of all.
    cache_dir
        The folder; default: $GMMVIT_CACHE, else ~/.cache/gmmvit.
    as_json
        Print the files, or the removed files, as a JSON list.
    """
    from gmmvit.data import cached, clear_cache
    from gmmvit.data.memory import in_words

    def notice(line: str) -> None:
        say(line, error=True)

    files = list(cached(cache_dir, notice) if clear is None else clear_cache(clear, cache_dir, notice))
    if as_json:
        rows = [asdict(file) | {"path": str(file.path), "written": file.written.isoformat()} for file in files]
        print(json.dumps(rows, indent=2))
        return
    width = max((columns(file.dataset) for file in files), default=0)
    for file in files:
        kind = "unfinished" if file.leftover else "in the order of a split" if file.split else ""
        shape = f"{file.image_size}x{file.channels}" + ("x16bit" if file.bits == 16 else "")
        say(
            f"{file.dataset}{' ' * (width - columns(file.dataset))}  {shape:<9}"
            f"  {in_words(file.bytes):>9}  {file.written:%Y-%m-%d %H:%M}  {kind}".rstrip()
        )
    total = in_words(sum(file.bytes for file in files))
    say(f"{'removed' if clear else 'in all'} {len(files)} {'file' if len(files) == 1 else 'files'}, {total}")
