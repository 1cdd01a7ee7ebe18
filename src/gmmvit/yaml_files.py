"""Reads YAML with limits on what aliases can expand to, and writes it without aliases."""

from pathlib import Path
from typing import Any

LARGEST_FILE, LARGEST_TREE = 64 * 2**20, 1_000_000  # bytes; values, counting every repetition by an alias
_WORD = 2**64  # larger than any number in our fields


class YamlError(ValueError):
    """An error in a YAML file; the message continues a sentence that starts with its name."""


def read_yaml(path: Path) -> Any:
    """The content of a YAML file.

    Raises YamlError if it is damaged, names a field twice, or is larger than any recipe; OSError if it is unreadable.
    """
    import yaml

    if path.stat().st_size > LARGEST_FILE:
        raise YamlError(f"is larger than {LARGEST_FILE // 2**20} MiB")
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
    except (ValueError, TypeError, LookupError, OverflowError) as error:  # from an invalid date, number or text
        reason = f"it holds an invalid value: {error}"
    raise YamlError(f"is not valid YAML: {reason}")


def _checked_size(node: Any, sizes: dict[int, int]) -> int:
    """How many values a node expands to; 0 in `sizes` marks one whose count is in progress."""
    if id(node) in sizes:
        if not sizes[id(node)]:
            raise YamlError("is not valid YAML: a value contains itself")
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
                    raise YamlError(f"holds aliases that expand to more than {LARGEST_TREE:,} values")
    sizes[id(node)] = size
    return size


def yaml_bytes(content: Any) -> bytes:
    """Plain values as YAML, in order."""
    import yaml

    class Dumper(yaml.SafeDumper):
        def ignore_aliases(self, data: Any) -> bool:
            return True

    return yaml.dump(content, Dumper=Dumper, sort_keys=False).encode()
