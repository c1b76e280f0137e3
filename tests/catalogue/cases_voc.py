"""Pascal VOC: XML that is none, elements that are missing, double or wrong, image sets."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from cases_images import PNG
from catalogue_case import Case, Verdict

from orchestrator.data.label_map import LabelMap
from orchestrator.data.readers.voc import read_voc

CLASSES = LabelMap(("cat", "dog"), (0, 1))
#: One element a line, so that each has a line of its own.
XML = """\
<annotation>
<filename>a.png</filename>
<size>
<width>40</width>
<height>30</height>
</size>
<object>
<name>dog</name>
<difficult>0</difficult>
<bndbox>
<xmin>2</xmin>
<ymin>3</ymin>
<xmax>11</xmax>
<ymax>10</ymax>
</bndbox>
</object>
</annotation>
"""
_SIDE = ("", "wide", "0", "-40", "40.5", "4e1", "0x28", "\u0664\u0660", "9" * 30, "2147483648")
_COORDINATE = ("", "left", "nan", "inf", "-infinity", "1e999", "1,5", "0x10", "9" * 500, "--1")
#: Line of an element, and texts it may not have.
WRONG = {
    "width": (4, _SIDE),
    "height": (5, _SIDE),
    "xmin": (11, _COORDINATE),
    "ymax": (14, _COORDINATE),
    "name": (8, ("", "Dog", "bird", "dog cat", "1")),
    "difficult": (9, ("", "2", "-1", "yes", "0.0")),
    "filename": (2, ("",)),
}
#: Elements that are needed, with the line of what lacks them; each also may not be there twice.
NEEDED = {
    "filename": 1,
    "size": 1,
    "width": 3,
    "height": 3,
    "name": 7,
    "bndbox": 7,
    "xmin": 10,
    "ymin": 10,
    "xmax": 10,
    "ymax": 10,
}
_ENTITIES = "".join(f'<!ENTITY e{n} "{f"&e{n - 1};" * 10 if n else "ha"}">' for n in range(10))
NO_XML: dict[str, tuple[bytes, int, str]] = {
    "empty": (b"", 1, "no element found"),
    "blanks": (b"\n\n", 3, "no element found"),
    "prologue alone": (b'<?xml version="1.0"?>', 1, "no element found"),
    "text": (b"a dog at 2, 3\n", 1, "not valid XML"),
    "json": (b'{"annotation": {}}', 1, "not valid XML"),
    "html": (b"<html>\n<br>\n</html>", 3, "mismatched tag"),
    "two roots": (b"<annotation/>\n<annotation/>", 2, "junk after document element"),
    "other root": (b"<annotations></annotations>", 1, "expected <annotation>"),
    "nothing in it": (b"<annotation/>", 1, "has no <filename>"),
    "end tag missing": (XML.replace("</size>\n", "").encode(), 16, "mismatched tag"),
    "attribute without quotes": (b"<annotation\nid=1/>", 2, "not valid XML"),
    "attribute twice": (b'<annotation a="1"\na="2"/>', 2, "duplicate attribute"),
    "bare ampersand": (b"<annotation>\na & b</annotation>", 2, "not valid XML"),
    "entity not declared": (b"<annotation>\n&dog;</annotation>", 2, "undefined entity"),
    "null byte": (b"<annotation>\n\0</annotation>", 2, "not valid XML"),
    "control character": (b"<annotation>\n\x01</annotation>", 2, "not valid XML"),
    "reference to a null byte": (b"<annotation>\n&#0;</annotation>", 2, "not valid XML"),
    "latin-1 without saying so": (b"<annotation>\n\xe9</annotation>", 2, "not valid XML"),
    "unknown encoding": (b'<?xml version="1.0" encoding="klingon"?><a/>', 1, "cannot be read"),
    "encoding of many bytes": (b'<?xml version="1.0" encoding="shift_jis"?><a/>', 1, "read"),
    "utf-32": (XML.encode("utf-32"), 1, "not valid XML"),
    "document type": (b"<!DOCTYPE annotation>\n<annotation/>", 1, "<!DOCTYPE>"),
    "entities that multiply": (
        f"<!DOCTYPE a [{_ENTITIES}]><annotation>&e9;</annotation>".encode(),
        1,
        "<!DOCTYPE>",
    ),
    "entity of a file": (
        b'<!DOCTYPE a [<!ENTITY x SYSTEM "file:///etc/passwd">]><annotation>&x;</annotation>',
        1,
        "<!DOCTYPE>",
    ),
    "type of another host": (
        b'<!DOCTYPE a SYSTEM "http://example.invalid/a.dtd"><annotation/>',
        1,
        "<!DOCTYPE>",
    ),
    "100,000 deep": (b"<annotation>" + b"<a>" * 100_000, 1, "more than 64 elements deep"),
}
#: Image sets: their bytes, place and words.
SETS: dict[str, tuple[bytes, Verdict, str, str]] = {
    "empty": (b"", Verdict.DATA, "train.txt:1", "is empty"),
    "blank lines": (b"\n \r\n\t\n", Verdict.DATA, "train.txt:1", "is empty"),
    "of one class": (b"a 1\nb -1\n", Verdict.DATA, "train.txt:1", "images of one class"),
    "name twice": (b"a\n\na\n", Verdict.DATA, "train.txt:3", "already named in line 1"),
    "name of nothing": (b"a\nb\n", Verdict.DATA, "train.txt:2", "b.xml cannot be read"),
    "latin-1": (b"a\nStra\xdfe\n", Verdict.DATA, "train.txt:2", "not UTF-8"),
    "utf-16": ("a\n".encode("utf-16"), Verdict.DATA, "train.txt:1", "not UTF-8"),
    "byte order mark": (b"\xef\xbb\xbfa\n", Verdict.DATA, "train.txt:1", "byte order mark"),
    "null byte": (b"a\n\0\n", Verdict.DATA, "train.txt:2", "null byte"),
    "old line ends": (b"a\rb\rc", Verdict.DATA, "train.txt:1", "carriage return"),
    "line of 2 megabytes": (b"a" * (2 << 20), Verdict.DATA, "train.txt:1", "2097152 characters"),
    "name of 300 letters": (b"a" * 300, Verdict.DATA, "train.txt:1", "cannot be read"),
    "folder of 300 letters": (b"b" * 300 + b"/a", Verdict.DATA, "train.txt:1", "cannot be read"),
    "parent": (b"a\n../a\n", Verdict.SECURITY, "train.txt:2", "leads out of"),
    "parent, later": (b"b/../../a\n", Verdict.SECURITY, "train.txt:1", "leads out of"),
    "absolute": (b"/etc/passwd\n", Verdict.SECURITY, "train.txt:1", "leads out of"),
}
#: Corners of a box, and as what it is listed.
UNTIDY = {
    "without width": ("2 3 1 10", "zero_size_box"),
    "from right to left": ("11 3 2 10", "negative_size_box"),
    "outside": ("50 3 60 10", "outside_box"),
    "counted from 0": ("0 0 40 30", "over_edge_box"),
    "over the edge": ("2 3 41 10", "over_edge_box"),
}


def build_voc(xml: bytes, listed: bytes, folder: Path) -> partial[Any]:
    """A data set of one image with this annotation and image set."""
    for name in ("JPEGImages", "Annotations", "ImageSets/Main"):
        (folder / name).mkdir(parents=True)
    (folder / "JPEGImages" / "a.png").write_bytes(PNG)
    (folder / "Annotations" / "a.xml").write_bytes(xml)
    source = folder / "ImageSets" / "Main" / "train.txt"
    source.write_bytes(listed)
    return partial(read_voc, folder / "JPEGImages", source, CLASSES)


def replaced(tag: str, line: int, text: str) -> str:
    """The document with another text in the element of a line."""
    lines = XML.splitlines(keepends=True)
    lines[line - 1] = f"<{tag}>{text}</{tag}>\n"
    return "".join(lines)


def element(tag: str) -> str:
    """An element of the document, its children included."""
    return XML[XML.index(f"<{tag}>") : XML.index(f"</{tag}>") + len(tag) + 4]


def cases() -> Iterator[Case]:
    """All entries of this kind."""

    def case(
        name: str, xml: str | bytes, where: str, says: str, verdict: Verdict = Verdict.DATA
    ) -> Case:
        data = xml if isinstance(xml, bytes) else xml.encode()
        return Case("voc", name, partial(build_voc, data, b"a\n"), verdict, where, says)

    for name, (data, line, says) in NO_XML.items():
        yield case(name, data, f"Annotations/a.xml:{line}: ", says)
    for part, kept in (("a quarter", 0.25), ("half", 0.5), ("nine tenths", 0.9)):
        cut = XML[: int(len(XML) * kept)]
        yield case(f"{part} of the file", cut, f"a.xml:{cut.count(chr(10)) + 1}: ", "not valid XML")
    for tag, (line, texts) in WRONG.items():
        for text in texts:
            yield case(
                f"<{tag}> {text[:12]!r}", replaced(tag, line, text), f"a.xml:{line}: ", f"<{tag}>"
            )
    for tag, line in NEEDED.items():
        text = element(tag)
        yield case(f"no <{tag}>", XML.replace(text, ""), f"a.xml:{line}: ", f"has no <{tag}>")
        yield case(f"two <{tag}>", XML.replace(text, text * 2), "a.xml:", f"a second <{tag}>")
    for name, (corners, kind) in UNTIDY.items():
        xml = XML
        for line, tag, text in zip(
            (11, 12, 13, 14), ("xmin", "ymin", "xmax", "ymax"), corners.split(), strict=True
        ):
            lines = xml.splitlines(keepends=True)
            lines[line - 1] = f"<{tag}>{text}</{tag}>\n"
            xml = "".join(lines)
        yield case(f"box {name}", xml, "Annotations/a.xml:10", kind, Verdict.FINDING)
    for name, (data, verdict, where, says) in SETS.items():
        build = partial(build_voc, XML.encode(), data)
        yield Case("voc", f"image set: {name}", build, verdict, where, says)
    for name, file, verdict, says in (
        ("absolute", "/etc/passwd", Verdict.SECURITY, "is absolute"),
        ("parent", "../a.png", Verdict.SECURITY, "leads to"),
        ("folder", "b/", Verdict.SECURITY, "is no file name"),
        ("gone", "b.png", Verdict.DATA, "none of the 1 images"),
    ):
        yield case(f"<filename> {name}", replaced("filename", 2, file), file, says, verdict)
