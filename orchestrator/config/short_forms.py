"""What a file may say shortly, turned into the values that the schema has."""

from __future__ import annotations

import json

from orchestrator.config.explain import place_of
from orchestrator.config.problems import KeyPath, Problem
from orchestrator.config.yaml_loader import Document

AUGMENTATION = ("data", "augmentation")
_WORKERS = ("cluster", "workers")
_LEAST = ("cluster", "min_workers")


def chain_augmentations(document: Document) -> None:
    """Turn a list in ``data.augmentation`` into the section that it stands for."""
    data = document.tree.get("data") if isinstance(document.tree, dict) else None
    listed = data.get("augmentation") if isinstance(data, dict) else None
    if not isinstance(data, dict) or not isinstance(listed, list) or not listed:
        return
    *steps, last = listed
    data["augmentation"] = {"name": "chain", "steps": steps, "last": last}

    def moved(path: KeyPath) -> KeyPath:
        if path[:2] != AUGMENTATION or len(path) == 2:
            return path
        number, rest = path[2], path[3:]
        last = number == len(steps)
        return (*AUGMENTATION, *(("last",) if last else ("steps", number)), *rest)

    document.places = {moved(path): place for path, place in document.places.items()}
    document.refused = {moved(path) for path in document.refused}


def spread_workers(document: Document) -> None:
    """Turn a section in ``cluster.workers`` into the two values that it stands for.

    A ``cluster.min_workers`` beside it says one of them a second time, which is a problem.
    """
    cluster = document.tree.get("cluster") if isinstance(document.tree, dict) else None
    given = cluster.get("workers") if isinstance(cluster, dict) else None
    if not isinstance(cluster, dict) or not isinstance(given, dict) or set(given) != {"min", "max"}:
        return
    if cluster.get("min_workers") is not None:
        workers = place_of(_WORKERS, document.places)
        message = (
            f"found {json.dumps(cluster['min_workers'])}, and cluster.workers ({workers}) is "
            f"{{min: {json.dumps(given['min'])}, max: {json.dumps(given['max'])}}}, whose min says "
            "the same; remove one of the two, or write null here"
        )
        document.problems.append(Problem(place_of(_LEAST, document.places), _LEAST, message))
    cluster["workers"], cluster["min_workers"] = given["max"], given["min"]
    names: dict[KeyPath, KeyPath] = {(*_WORKERS, "max"): _WORKERS, (*_WORKERS, "min"): _LEAST}
    places = dict(document.places)
    for old, new in names.items():
        if old in places:
            places[new] = places.pop(old)
    document.places = places
    document.refused = {names.get(path, path) for path in document.refused}
