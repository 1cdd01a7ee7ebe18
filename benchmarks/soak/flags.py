"""Odd values for recipe fields, as flags of `train`."""

from random import Random

from gmmvit.config import Recipe
from soak.trials import ODD, TINY, Sound, one_line

# Fields whose valid values make a trial long: thousands of epochs, a compiler, minutes.
_SLOW = {"compile", "minutes", "loggers"} | set(TINY) - {"image_size", "policy", "batch_size"}
FREE = sorted(set(Recipe.__dataclass_fields__) - _SLOW)


def flag(sound: Sound, rng: Random, number: int) -> str:
    """An odd value of a field is accepted, or refused in one line."""
    name, value = rng.choice(FREE), rng.choice(ODD)
    with sound.place() as place:
        arguments = ["train", "--quiet", "--out", str(place / "run"), *sound.flags(sound.root / "cache")]
        arguments[arguments.index("--epochs") + 1] = "1"
        odd = f"--{name.replace('_', '-')}"
        if odd in arguments:
            del arguments[arguments.index(odd) : arguments.index(odd) + 2]
        return one_line([*arguments, f"{odd}={value}"], (0, 1, 2))
