"""A page that holds everything in itself, from blocks of plain data; one template writes it.

What stands in a block is text and is escaped by the template (Jinja2 with autoescape). There is no
script in a page: what can be switched is switched by its style sheet.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any, TypeAlias

from jinja2 import Environment, PackageLoader, StrictUndefined

from orchestrator.pages.drawing import Colour


def css(colour: Colour) -> str:
    """An RGB colour as style sheets and matplotlib write it."""
    return "#{:02x}{:02x}{:02x}".format(*colour)


@dataclass(frozen=True)
class Text:
    """A paragraph.

    Attributes:
        text: of it.
        style: ``note`` for what explains, ``verdict`` for what is concluded, empty for the rest.
    """

    text: str
    style: str = "note"
    kind: str = field(default="text", init=False)


@dataclass(frozen=True)
class Table:
    """Rows of text; columns of numbers are aligned at the right.

    Attributes:
        head: names of the columns; no line if all are empty.
        rows: of as many cells.
        values: whether all columns but the first hold values, whatever they look like.
        colours: of a swatch before the first cell of rows, by the text in it.
        shades: of the background of a cell, by row and column; None for none.
        styles: class of each row in the style sheet; empty for none.
        stacked: whether cells stand below each other, each after the name of its column, where a
            page is narrow: for rows of sentences.
    """

    head: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    values: bool = False
    colours: Mapping[str, str] = field(default_factory=dict)
    shades: Mapping[tuple[int, int], str] = field(default_factory=dict)
    styles: tuple[str, ...] = ()
    stacked: bool = False
    kind: str = field(default="table", init=False)

    @property
    def numeric(self) -> list[bool]:
        """Whether each column is aligned at the right."""
        if self.values:
            return [place > 0 for place in range(len(self.head))]
        columns = list(zip(*self.rows, strict=True)) or [()] * len(self.head)
        return [bool(column) and all(map(_is_number, column)) for column in columns]


@dataclass(frozen=True)
class Figure:
    """A picture with text under it.

    Attributes:
        uri: ``data:`` URI of the picture.
        caption: as text.
        wide: whether it is scrolled on a narrow screen, since it cannot be read when it shrinks.
    """

    uri: str
    caption: str
    wide: bool = False
    kind: str = field(default="figure", init=False)


@dataclass(frozen=True)
class Gallery:
    """Pictures of equal rank, as many in a row as a page has room for.

    Attributes:
        figures: the pictures.
        large: whether a phone shows one in a row instead of two.
    """

    figures: tuple[Figure, ...]
    large: bool = False
    kind: str = field(default="gallery", init=False)


@dataclass(frozen=True)
class Layers:
    """Pictures of which one layer is shown at a time, the same one of all.

    Attributes:
        names: of the layers; the first is shown at first.
        pictures: of each, one figure a layer.
    """

    names: tuple[str, ...]
    pictures: tuple[tuple[Figure, ...], ...]
    kind: str = field(default="layers", init=False)


@dataclass(frozen=True)
class Legend:
    """What colours and lines mean.

    Attributes:
        colours: by name.
        lines: style sheet's name of a line (``full``, ``dashed``, ``thin``) and what it means.
    """

    colours: Mapping[str, str]
    lines: tuple[tuple[str, str], ...] = ()
    kind: str = field(default="legend", init=False)


@dataclass(frozen=True)
class Bars:
    """Counts as horizontal bars.

    Attributes:
        caption: as text.
        bars: name, count and colour of each.
        note: what is not shown; empty for nothing.
    """

    caption: str
    bars: tuple[tuple[str, int, str], ...]
    note: str = ""
    kind: str = field(default="bars", init=False)

    @property
    def largest(self) -> int:
        """Count of the longest bar; 1 at the least."""
        return max((count for _, count, _ in self.bars), default=1) or 1


@dataclass(frozen=True)
class Histogram:
    """Counts of values between edges.

    Attributes:
        caption: as text.
        bins: lower edge, upper edge and count of each, edges as text.
        ticks: text below the left edge of a bin, by its number.
    """

    caption: str
    bins: tuple[tuple[str, str, int], ...]
    ticks: Mapping[int, str]
    kind: str = field(default="histogram", init=False)

    @property
    def largest(self) -> int:
        """Count of the highest bar; 1 at the least."""
        return max((count for _, _, count in self.bins), default=1) or 1


@dataclass(frozen=True)
class Code:
    """Lines as they stand in a file."""

    text: str
    kind: str = field(default="code", init=False)


@dataclass(frozen=True)
class Row:
    """Blocks side by side, or below each other where there is no room."""

    blocks: tuple[Block, ...]
    kind: str = field(default="row", init=False)


Block: TypeAlias = (
    "Text | Table | Figure | Gallery | Layers | Legend | Bars | Histogram | Code | Row"
)


@dataclass(frozen=True)
class Section:
    """Part of a page.

    Attributes:
        title: its heading and its line in the table of contents; empty for what stands above that.
        blocks: from top to bottom.
    """

    title: str
    blocks: tuple[Block, ...]

    @property
    def anchor(self) -> str:
        """Its name in addresses."""
        return re.sub(r"\W+", "-", self.title.lower()).strip("-") or "part"


def render(title: str, sections: Iterable[Section]) -> str:
    """A whole page.

    Args:
        title: of the page.
        sections: from top to bottom; those without blocks are left out.
    """
    there = [section for section in sections if section.blocks]
    return _environment().get_template("page.html").render(title=title, sections=there)


@cache
def _environment() -> Environment:
    return Environment(
        loader=PackageLoader("orchestrator.pages"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def facts_table(head: Sequence[str], rows: Iterable[Sequence[str]], **options: Any) -> Table:
    """A table from any rows of text; options are the other fields of :class:`Table`."""
    return Table(tuple(head), tuple(tuple(row) for row in rows), **options)


def number(value: float | None) -> str:
    """A COCO number; a dash where there is none, which COCO writes as -1."""
    return "-" if value is None or value < 0 else f"{value:.4f}"


def _is_number(text: str) -> bool:
    return text == "-" or text.replace(".", "", 1).replace(",", "").isdecimal()
