"""``extends: other.yaml``: an experiment file laid over another one, its parent.

Sections are laid over each other key by key, lists and single values replace those of the parent.
A section that says with ``name`` which of several kinds it is, and names another kind than the
parent's, replaces it whole: the keys of one optimizer are no keys of another.
"""

from __future__ import annotations

from pathlib import Path

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
    if not isinstance(named, str) or not named:
        message = "allowed is the path of one experiment file, relative to this one"
        raise error_of([Problem(place, (KEY,), message)], str(files[0]))
    parent = files[-1].parent / named
    if any(parent.resolve() == file.resolve() for file in files):
        way = " extends ".join(str(file) for file in [*files, parent])
        raise error_of([Problem(place, (KEY,), f"leads in a circle: {way}")], str(files[0]))
    if len(files) > MAX_PARENTS:
        message = f"more than {MAX_PARENTS} files in a row; write what they say into one"
        raise error_of([Problem(place, (KEY,), message)], str(files[0]))
    if not parent.is_file():
        try:
            load_file(parent)
        except ConfigError as error:
            raise error_of([Problem(place, (KEY,), str(error))], str(files[0])) from None
    return parent


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
