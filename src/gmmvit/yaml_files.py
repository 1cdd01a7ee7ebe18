"""YAML files: read so that a small one cannot grow without end, and written so that no value stands for another."""

from pathlib import Path
from typing import Any

LARGEST_FILE, LARGEST_TREE = 64 * 2**20, 1_000_000  # bytes; values, those that an alias repeats counted each time
_WORD = 2**64  # no field of ours holds a larger number


class YamlError(ValueError):
    """What is wrong with a YAML file; a sentence that its name begins."""


def read_yaml(path: Path) -> Any:
    """The content of a YAML file.

    Raises YamlError where it is damaged, names a field twice, or is larger than any recipe; OSError.
    """
    import yaml

    if path.stat().st_size > LARGEST_FILE:
        raise YamlError(f"has more than {LARGEST_FILE // 2**20} MiB")
    try:
        loader = yaml.SafeLoader(path.read_text(encoding="utf-8"))
        node = loader.get_single_node()
        if node is None:
            return None
        _checked_size(node, {})
        return loader.construct_document(node)
    except RecursionError:
        reason = "it is nested too deeply"
    except YamlError:
        raise
    except yaml.YAMLError as error:
        reason = " ".join(str(error).split())
    except (ValueError, TypeError, LookupError, OverflowError) as error:  # of a date, a number or a text that is none
        reason = f"it holds a value that is none: {error}"
    raise YamlError(f"is not valid YAML: {reason}")


def _checked_size(node: Any, sizes: dict[int, int]) -> int:
    """How many values a node stands for; 0 in `sizes` marks one that is not counted to its end."""
    if id(node) in sizes:
        if not sizes[id(node)]:
            raise YamlError("is not valid YAML: a value holds itself")
        return sizes[id(node)]
    sizes[id(node)] = 0
    size = 1
    if node.id == "scalar" and node.tag.endswith(":int") and len(node.value) > len(str(_WORD)) + 4:
        raise YamlError(f"holds a number of {len(node.value)} digits")
    if node.id == "mapping":
        keys = [key.value for key, _ in node.value if key.id == "scalar"]
        seen: set[str] = set()
        for key in keys:
            if key in seen:
                raise YamlError(f"names {key!r} twice; keep one of them")
            seen.add(key)
    if node.id != "scalar":
        for part in node.value:
            for inner in part if isinstance(part, tuple) else (part,):
                size += _checked_size(inner, sizes)
                if size > LARGEST_TREE:
                    raise YamlError(f"holds aliases that stand for more than {LARGEST_TREE:,} values")
    sizes[id(node)] = size
    return size


def yaml_bytes(content: Any) -> bytes:
    """Plain values as YAML, in their order."""
    import yaml

    class Dumper(yaml.SafeDumper):
        def ignore_aliases(self, data: Any) -> bool:
            return True

    return yaml.dump(content, Dumper=Dumper, sort_keys=False).encode()
