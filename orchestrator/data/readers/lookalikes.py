"""Images that are there by another spelling than the annotations have: found to be named, not used.

Labelling tools write the names of the machine they ran on: with backslashes, with blanks as
``%20``, in another case or with letters composed otherwise, and with the suffix a picture had
before it was converted.
"""

from __future__ import annotations

import os
import unicodedata
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from pathlib import Path, PurePosixPath
from urllib.parse import unquote

from orchestrator.layouts.files import is_file

#: Files of a folder that are compared with; more are not looked at.
_MOST_FILES = 200_000


class Lookalikes:
    """Files by what is left of their names when spelling is taken away.

    Args:
        files: paths below some place.
        usable: whether one of them is more than a link to nothing.
    """

    def __init__(
        self, files: Iterable[str], usable: Callable[[str], bool] = lambda file: True
    ) -> None:
        self._usable = usable
        self._exact: set[str] = set()
        self._folded: dict[str, str] = {}
        self._by_name: dict[str, list[str]] = {}
        self._by_stem: dict[str, list[str]] = {}
        for file in islice(files, _MOST_FILES):
            path = PurePosixPath(file)
            self._exact.add(file)
            self._folded.setdefault(_fold(file), file)
            self._by_name.setdefault(_fold(path.name), []).append(file)
            self._by_stem.setdefault(_fold(path.stem), []).append(file)

    @classmethod
    def below(cls, root: Path) -> Lookalikes:
        """Of the files of a folder."""
        return cls(_files(root), lambda file: is_file(root / file))

    def of(self, name: str, stem: str | None = None) -> str | None:
        """The likely match of a file that is not there, and what tells it apart, in words.

        Args:
            name: as annotated.
            stem: of the annotation file, where each image has one.
        """
        plain = unquote(name.replace("\\", "/"))
        path = PurePosixPath(plain)
        if plain != name and self._is_there(plain):
            how = "backslashes" if "\\" in name else "escapes such as %20"
            return f"{plain} is there, without {how}"
        for separator in (",", ";", "\t"):
            head, found, _ = plain.partition(separator)
            if found and self._is_there(head):
                return f"{head} is there; what follows it looks like a row of a table"
        folded = self._folded.get(_fold(plain))
        if folded is not None and self._is_there(folded):
            same = unicodedata.normalize("NFC", folded) == unicodedata.normalize("NFC", plain)
            how = "letters composed otherwise" if same else "capitals elsewhere"
            return f"{folded} is there, with {how}"
        for matches, how in (
            (self._by_name.get(_fold(path.name)), "in another folder"),
            (self._by_stem.get(_fold(path.stem)), "with another suffix"),
            (stem and self._by_stem.get(_fold(stem)), "named like its annotation file"),
        ):
            if matches and len(matches) == 1 and self._is_there(matches[0]):
                return f"{matches[0]} is there, {how}"
        return None

    def _is_there(self, file: str) -> bool:
        """Whether there is such a file, which can be used."""
        return file in self._exact and self._usable(file)


def _fold(text: str) -> str:
    return unicodedata.normalize("NFC", text).casefold()


def _files(root: Path) -> Iterator[str]:
    for folder, _, names in os.walk(root):
        below = os.path.relpath(folder, root)
        for name in names:
            yield name if below == "." else f"{below}/{name}"
