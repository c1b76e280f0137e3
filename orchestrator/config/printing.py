"""A resolved experiment as YAML that reads back as the same experiment."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from orchestrator.config.problems import KeyPath, dotted
from orchestrator.config.resolve import ResolvedExperiment
from orchestrator.config.scalars import Json, scalar_text

_INDENT = "  "


def dump_yaml(resolved: ResolvedExperiment) -> str:
    """Every value of the experiment; loading it gives the same digest."""
    return "".join(f"{text}\n" for text, _ in _lines(resolved.tree))


def print_config(resolved: ResolvedExperiment) -> str:
    """The same with the origin of each value beside it, and the digest on top."""
    lines = list(_lines(resolved.tree))
    width = min(60, max(len(text) for text, _ in lines))
    commented = [
        f"{text:<{width}}  # {origin}" if origin else text
        for text, origin in ((text, _origin(leaves, resolved.origins)) for text, leaves in lines)
    ]
    return "\n".join([f"# digest {resolved.digest}", *commented, ""])


def _origin(leaves: list[KeyPath], origins: Mapping[str, str]) -> str:
    return ", ".join(dict.fromkeys(origins[dotted(leaf)] for leaf in leaves))


def _lines(tree: Json, path: KeyPath = (), indent: str = "") -> Iterator[tuple[str, list[KeyPath]]]:
    """Lines of YAML, each with the paths of the values that stand on it."""
    if not isinstance(tree, dict):
        raise TypeError(f"an experiment is a mapping, not {type(tree).__name__}")
    # The name says what kind of section it is, so it comes first.
    for key in sorted(tree, key=lambda key: key != "name"):
        value = tree[key]
        inner = (*path, key)
        if isinstance(value, dict) and value:
            yield f"{indent}{scalar_text(key)}:", []
            yield from _lines(value, inner, indent + _INDENT)
        else:
            leaves: list[KeyPath] = []
            text = _on_one_line(value, inner, leaves)
            yield f"{indent}{scalar_text(key)}: {text}", leaves


def _on_one_line(value: Json, path: KeyPath, leaves: list[KeyPath]) -> str:
    if isinstance(value, list) and value:
        items = [_on_one_line(item, (*path, index), leaves) for index, item in enumerate(value)]
        return f"[{', '.join(items)}]"
    if isinstance(value, dict) and value:
        pairs = [
            f"{scalar_text(key)}: {_on_one_line(item, (*path, key), leaves)}"
            for key, item in value.items()
        ]
        return f"{{{', '.join(pairs)}}}"
    leaves.append(path)
    if isinstance(value, list | dict):
        return "[]" if isinstance(value, list) else "{}"
    return scalar_text(value)
