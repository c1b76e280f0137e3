"""XML with line numbers and without surprises: no document type, no entities, bounded depth.

A document type is what entity bombs and references to other files are declared in (CWE-776,
CWE-611). Annotations need none, so a file that has one is refused before anything is expanded.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from xml.parsers import expat

MAX_BYTES = 64 << 20
_MAX_DEPTH = 64


class XmlError(Exception):
    """Text that is no acceptable XML.

    Attributes:
        line: counted from 1.
    """

    def __init__(self, line: int, message: str) -> None:
        super().__init__(message)
        self.line = line


@dataclass
class Element:
    """One element; attributes are left out, since annotations use none.

    Attributes:
        tag: its name.
        line: its start tag's, counted from 1.
        text: directly inside it, without surrounding blanks.
        children: in order.
    """

    tag: str
    line: int
    text: str = ""
    children: list[Element] = field(default_factory=list)

    def all(self, tag: str) -> Iterator[Element]:
        """Children of that name."""
        return (child for child in self.children if child.tag == tag)

    def one(self, tag: str) -> Element:
        """The only child of that name.

        Raises:
            XmlError: there is none, or a second one.
        """
        found = list(self.all(tag))
        if not found:
            raise XmlError(self.line, f"<{self.tag}> has no <{tag}>")
        if len(found) > 1:
            raise XmlError(found[1].line, f"<{self.tag}> has a second <{tag}>")
        return found[0]


def parse_xml(data: bytes) -> Element:
    """The root element of a document.

    Raises:
        XmlError: not well-formed, too large or too deep, or with a document type.
    """
    if len(data) > MAX_BYTES:
        raise XmlError(1, f"has {len(data)} bytes, allowed are {MAX_BYTES}")
    parser = expat.ParserCreate()
    parser.buffer_text = True
    top = Element("", 1)
    stack = [top]

    def start(tag: str, attributes: dict[str, str]) -> None:
        if len(stack) > _MAX_DEPTH:
            raise XmlError(parser.CurrentLineNumber, f"more than {_MAX_DEPTH} elements deep")
        element = Element(tag, parser.CurrentLineNumber)
        stack[-1].children.append(element)
        stack.append(element)

    def end(tag: str) -> None:
        stack[-1].text = stack[-1].text.strip()
        stack.pop()

    def text(characters: str) -> None:
        stack[-1].text += characters

    def doctype(*declaration: object) -> None:
        raise XmlError(
            parser.CurrentLineNumber, "has a document type (<!DOCTYPE>), which is not allowed"
        )

    parser.StartElementHandler = start
    parser.EndElementHandler = end
    parser.CharacterDataHandler = text
    parser.StartDoctypeDeclHandler = doctype
    try:
        parser.Parse(data, True)
    except expat.ExpatError as error:
        reason = expat.ErrorString(error.code)
        raise XmlError(error.lineno, f"not valid XML ({reason})") from error
    except (LookupError, ValueError) as error:
        # An encoding that Python does not know, or a multi-byte one.
        raise XmlError(parser.CurrentLineNumber or 1, f"cannot be read ({error})") from error
    return top.children[0]
