"""The frame of a page that holds everything in itself: style, figures and tables as HTML."""

from __future__ import annotations

import html
from collections.abc import Iterable, Sequence

_STYLE = """
body { font: 15px/1.45 system-ui, sans-serif; margin: 2em auto; max-width: 1120px; padding: 0 1em;
       color: #1c1c1c; background: #fff; }
h1 { margin-bottom: 0; overflow-wrap: anywhere; }
h2 { border-bottom: 1px solid #ddd; margin-top: 2em; }
.wide { overflow-x: auto; max-width: 100%; }
table { border-collapse: collapse; margin: .5em 0; }
td, th { padding: .2em .7em; text-align: left; border-bottom: 1px solid #eee; vertical-align: top; }
td.n, th.n { text-align: right; font-variant-numeric: tabular-nums; }
.row { display: flex; flex-wrap: wrap; gap: 1.2em; align-items: flex-start; }
figure { margin: 0; max-width: 100%; } img { max-width: 100%; height: auto; }
figcaption { color: #555; font-size: .9em; max-width: 480px; }
.note { color: #555; }
"""


def document(title: str, body: str, *, style: str = "") -> str:
    """A whole page.

    Args:
        title: as text.
        body: as HTML.
        style: rules of this page, beside those of all pages.
    """
    return (
        f'<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{html.escape(title)}</title>\n<style>{_STYLE}{style}</style>\n</head>\n<body>\n"
        f"{body}\n</body>\n</html>\n"
    )


def figure(uri: str, caption: str, *, width: int | None = None) -> str:
    """A picture of ``width`` pixels with text under it."""
    size = "" if width is None else f' width="{width}"'
    text = html.escape(caption)
    return f'<figure><img src="{uri}" alt="{text}"{size}><figcaption>{text}</figcaption></figure>'


def table(head: Sequence[str], rows: Iterable[Sequence[str]], *, values: bool = False) -> str:
    """A table of text, with columns of numbers aligned at the right.

    Args:
        head: names of the columns; no line if all are empty.
        rows: of as many cells.
        values: all columns but the first hold values, whatever they look like.
    """
    body = [tuple(row) for row in rows]
    if values:
        numeric = [place > 0 for place in range(len(head))]
    else:
        columns = zip(*body, strict=True)
        numeric = [all(_is_number(value) for value in column) for column in columns]

    def cells(texts: Sequence[str], tag: str) -> str:
        return "".join(
            f"<{tag}{' class=n' if number else ''}>{html.escape(text)}</{tag}>"
            for text, number in zip(texts, numeric or [False] * len(texts), strict=True)
        )

    lines = [f"<tr>{cells(head, 'th')}</tr>"] if any(head) else []
    lines += [f"<tr>{cells(row, 'td')}</tr>" for row in body]
    return f'<div class="wide"><table>{"".join(lines)}</table></div>'


def number(value: float | None) -> str:
    """A COCO number; a dash where there is none, which COCO writes as -1."""
    return "-" if value is None or value < 0 else f"{value:.4f}"


def _is_number(text: str) -> bool:
    return text == "-" or text.replace(".", "", 1).isdecimal()
