"""``extends: other.yaml``: an experiment file laid over another one, its parent.

Sections are laid over each other key by key, lists and single values replace those of the parent.
A section that says with ``name`` which of several kinds it is, and names another kind than the
parent's, replaces it whole: the keys of one optimizer are no keys of another.
"""

from __future__ import annotations

import os
from pathlib import Path

from orchestrator.config.explain import shown
from orchestrator.config.problems import KeyPath, Place, Problem, error_of
from orchestrator.config.scalars import Json
from orchestrator.config.yaml_loader import Document, load_file
from orchestrator.errors import ConfigError

KEY = "extends"
_TAG = "name"
#: Parents in a row: more are a mistake.
MAX_PARENTS = 16


def load_extended(path: Path) -> tuple[Document, tuple[Path, ...]]:
    """Read an experiment file together with those it extends.

    Returns:
        The document, each of whose values has its place in the file that gives it; and the files,
        the experiment's own first.

    Raises:
        ConfigError: a file cannot be read, or ``extends`` names none, or leads back to itself.
    """
    files = [path]
    documents = [load_file(path)]
    while (parent := _parent_of(documents[-1], files)) is not None:
        files.append(parent)
        documents.append(load_file(parent, check=[str(path)]))
    whole = documents.pop()
    for document in reversed(documents):
        whole = _laid_over(document, whole)
    return whole, tuple(files)


def _parent_of(document: Document, files: list[Path]) -> Path | None:
    """The file that ``extends`` names, which is taken out of the document."""
    tree = document.tree
    if not isinstance(tree, dict) or KEY not in tree:
        return None
    place = document.places.pop((KEY,))
    named = tree.pop(KEY)
    if isinstance(named, str) and named:
        parent = files[-1].parent / named
        message = _why_not(parent, files)
        if message is None:
            return parent
    else:
        allowed = "allowed is the path of one experiment file, relative to this one"
        message = f"found {shown(named)}, {allowed}"
    raise error_of([Problem(place, (KEY,), message)], str(files[0]))


def _why_not(parent: Path, files: list[Path]) -> str | None:
    """Why ``parent`` cannot be extended; None where it can."""
    try:
        # Unlike pathlib, no error where a name is too long, or a link leads to itself.
        if not os.path.isfile(parent):  # noqa: PTH113
            load_file(parent)
        if any(parent.samefile(file) for file in files):
            way = " extends ".join(str(file) for file in [*files, parent])
            return f"leads in a circle: {way}"
    except ConfigError as error:
        return str(error)
    if len(files) > MAX_PARENTS:
        return f"more than {MAX_PARENTS} files in a row; write what they say into one"
    return None


def _laid_over(child: Document, parent: Document) -> Document:
    places = dict(parent.places)
    refused = set(parent.refused)
    tree = _merged(parent.tree, child.tree, (), places, refused)
    places.update(child.places)
    return Document(tree, places, [*parent.problems, *child.problems], refused | child.refused)


def _merged(
    below: Json, above: Json, path: KeyPath, places: dict[KeyPath, Place], refused: set[KeyPath]
) -> Json:
    """``above`` laid over ``below``; what is known of places that it hides is forgotten."""
    if isinstance(below, dict) and isinstance(above, dict):
        kinds = {str(section[_TAG]) for section in (below, above) if _TAG in section}
        if not path or len(kinds) < 2:
            merged = dict(below)
            for key, value in above.items():
                inner = (*path, key)
                merged[key] = (
                    _merged(below[key], value, inner, places, refused) if key in below else value
                )
            return merged
    for known in [known for known in places if known[: len(path)] == path]:
        del places[known]
    refused.difference_update({known for known in refused if known[: len(path)] == path})
    return above
