from __future__ import annotations

import re
from pathlib import Path

import pytest

from orchestrator.data.findings import ReadResult
from orchestrator.data.label_map import LabelMap
from orchestrator.data.readers.paths import ReadRules
from orchestrator.data.readers.voc import read_voc, voc_classes
from orchestrator.errors import DataError, SecurityError
from orchestrator.layouts.recognise import find_layout
from tests.support.data_cases import textured, write_image

CLASSES = LabelMap(("cat", "dog"), (0, 1))

OBJECT = """\
  <object>
    <name>dog</name>
    <pose>Left</pose>
    <truncated>0</truncated>
    <difficult>0</difficult>
    <bndbox>
      <xmin>2</xmin>
      <ymin>3</ymin>
      <xmax>11</xmax>
      <ymax>10</ymax>
    </bndbox>
    <part><name>head</name><bndbox><xmin>1</xmin></bndbox></part>
  </object>
"""
HEAD = """\
<annotation>
  <folder>VOC2012</folder>
  <filename>a.jpg</filename>
  <size>
    <width>40</width>
    <height>30</height>
    <depth>3</depth>
  </size>
"""
XML = HEAD + OBJECT + "</annotation>\n"


def write_voc(folder: Path, xml: str | bytes, *, stems: str = "a\n") -> Path:
    """One image, its annotation and an image set."""
    for name in ("JPEGImages", "Annotations", "ImageSets/Main"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    write_image(folder / "JPEGImages" / "a.jpg", textured(30, 40, 0))
    data = xml if isinstance(xml, bytes) else xml.encode()
    (folder / "Annotations" / "a.xml").write_bytes(data)
    (folder / "ImageSets" / "Main" / "train.txt").write_text(stems)
    return folder


def read(folder: Path) -> ReadResult:
    return read_voc(folder / "JPEGImages", folder / "ImageSets" / "Main" / "train.txt", CLASSES)


def test_reads_what_is_there(tmp_path: Path) -> None:
    result = read(write_voc(tmp_path, XML))
    data = result.dataset
    assert result.findings == ()
    assert data.label_map is CLASSES
    assert data.files == ("a.jpg",)
    assert data.image_ids.tolist() == [1]
    assert (data.widths.tolist(), data.heights.tolist()) == ([40], [30])
    # The pixels 2..11 and 3..10, counted from 1.
    assert data.boxes_xywh.tolist() == [[1, 2, 10, 8]]
    assert data.labels.tolist() == [1]
    assert data.areas.tolist() == [80]
    assert not data.crowd.any()


def test_first_to_last_pixel_is_the_whole_image(tmp_path: Path) -> None:
    corners = {"<xmin>2<": "<xmin>1<", "<ymin>3<": "<ymin>1<", ">11<": ">40<", ">10<": ">30<"}
    xml = XML
    for old, new in corners.items():
        xml = xml.replace(old, new)
    assert read(write_voc(tmp_path, xml)).dataset.boxes_xywh.tolist() == [[0, 0, 40, 30]]


def test_fractions_of_pixels_lose_nothing(tmp_path: Path) -> None:
    xml = XML.replace(">2<", ">1.1<").replace(">11<", ">1.4<")
    x, _, width, _ = read(write_voc(tmp_path, xml)).dataset.boxes_xywh[0]
    # In binary, 1.1 - 1 would be 0.10000000000000009.
    assert (x, width) == (0.1, 1.3)


def test_difficult_objects_are_not_learnt_from(tmp_path: Path) -> None:
    hard = OBJECT.replace("<difficult>0", "<difficult>1")
    plain = OBJECT.replace("    <difficult>0</difficult>\n", "")
    data = read(write_voc(tmp_path, HEAD + hard + plain + "</annotation>")).dataset
    assert data.crowd.tolist() == [True, False]
    assert len(data.training_boxes(0)[0]) == 1
    assert len(data.training_boxes(0, with_crowd=True)[0]) == 2


def test_ignored_and_deleted_objects_are_not_learnt_from(tmp_path: Path) -> None:
    flag = "    <difficult>0</difficult>\n"
    ignored = OBJECT.replace(flag, "    <ignore>1</ignore>\n")
    deleted = OBJECT.replace(flag, "    <deleted>1</deleted>\n")
    result = read(write_voc(tmp_path, HEAD + ignored + deleted + OBJECT + "</annotation>"))
    assert result.dataset.crowd.tolist() == [True, False]
    assert [(one.kind, one.count) for one in result.findings] == [
        ("ignored_region", 1),
        ("deleted_object", 1),
    ]


def test_boxes_that_begin_at_zero_are_said(tmp_path: Path) -> None:
    result = read(write_voc(tmp_path, XML.replace("<xmin>2<", "<xmin>0<")))
    assert result.dataset.boxes_xywh.tolist() == [[-1, 2, 12, 8]]
    assert [one.kind for one in result.findings] == ["counts_from_zero", "over_edge_box"]


def test_image_without_objects_is_kept(tmp_path: Path) -> None:
    data = read(write_voc(tmp_path, HEAD + "</annotation>")).dataset
    assert data.offsets.tolist() == [0, 0]


def test_order_is_that_of_the_image_set(tmp_path: Path) -> None:
    folder = write_voc(tmp_path, XML, stems="b\r\n\r\na\r\n")
    (folder / "Annotations" / "b.xml").write_text(XML.replace("a.jpg", "b.jpg"))
    assert read(folder).dataset.files == ("b.jpg", "a.jpg")


def test_folder_of_annotations_in_the_order_of_their_names(tmp_path: Path) -> None:
    folder = write_voc(tmp_path, XML)
    (folder / "Annotations" / "sub").mkdir()
    (folder / "Annotations" / "sub" / "b.xml").write_text(XML.replace("a.jpg", "0.jpg"))
    data = read_voc(folder / "JPEGImages", folder / "Annotations", CLASSES).dataset
    assert data.files == ("a.jpg", "0.jpg")


def test_untidy_boxes_are_dropped_with_file_and_line(tmp_path: Path) -> None:
    flat = OBJECT.replace(">11<", ">1<")
    away = OBJECT.replace(">2<", ">50<").replace(">11<", ">60<")
    result = read(write_voc(tmp_path, HEAD + flat + away + OBJECT + "</annotation>"))
    assert [str(finding) for finding in result.findings] == [
        "zero_size_box: 1 dropped (Annotations/a.xml:14)",
        "outside_box: 1 dropped (Annotations/a.xml:27)",
    ]
    assert len(result.dataset.labels) == 1


def test_encodings_that_xml_may_declare(tmp_path: Path) -> None:
    text = '<?xml version="1.0" encoding="ISO-8859-1"?>' + XML.replace("Left", "Mäßig")
    assert len(read(write_voc(tmp_path, text.encode("latin-1"))).dataset) == 1
    assert len(read(write_voc(tmp_path, XML.encode("utf-16"))).dataset) == 1


BOMB = """<?xml version="1.0"?>
<!DOCTYPE x [<!ENTITY a "aaaaaaaaaa"><!ENTITY b "&a;&a;&a;&a;&a;&a;&a;&a;">]>
<annotation>&b;</annotation>"""
EXTERNAL = '<!DOCTYPE x [<!ENTITY a SYSTEM "file:///etc/passwd">]>\n<annotation>&a;</annotation>'


def replaced(old: str, new: str) -> str:
    assert old in XML
    return XML.replace(old, new, 1)


MALFORMED: dict[str, tuple[str | bytes, str]] = {
    "empty": ("", r"a\.xml:1: not valid XML \(no element found\)"),
    "no xml": ("a.jpg 1,2,3,4", r"a\.xml:1: not valid XML"),
    "cut short": (XML[:200], r"a\.xml:11: not valid XML"),
    "wrong end tag": (replaced("</pose>", "</posse>"), r"a\.xml:11: .*mismatched tag"),
    "text behind the end": (XML + "more", r"a\.xml:23: .*junk after document element"),
    "null bytes": (XML.encode() + b"\0\0", r"a\.xml:23: not valid XML"),
    "latin-1 undeclared": (replaced("Left", "Mäßig").encode("latin-1"), r"a\.xml:11: .*token"),
    "unknown encoding": ('<?xml version="1.0" encoding="x-y"?>' + XML, r"a\.xml:1: .*encoding"),
    "entity bomb": (BOMB, r"a\.xml:2: has a document type"),
    "external entity": (EXTERNAL, r"a\.xml:1: has a document type"),
    "undefined entity": (replaced("Left", "&left;"), r"a\.xml:11: .*undefined entity"),
    "very deep": ("<a>" * 100_000, r"a\.xml:1: more than 64 elements deep"),
    "other root": ("<html></html>", r"a\.xml:1: the root is <html>, expected <annotation>"),
    "no file name": (
        replaced("<filename>a.jpg</filename>", ""),
        r"a\.xml:1: <annotation> has no <filename>",
    ),
    "empty file name": (replaced("a.jpg", " "), r"a\.xml:3: <filename> is empty"),
    "two file names": (
        replaced("<folder>VOC2012</folder>", "<filename>b.jpg</filename>"),
        r"a\.xml:3: <annotation> has a second <filename>",
    ),
    "no size": (re.sub(r"<size>.*</size>", "", XML, flags=re.S), r"a\.xml:1: .*no <size>"),
    "no width": (replaced("<width>40</width>", ""), r"a\.xml:4: <size> has no <width>"),
    "two heights": (replaced("<depth>3</depth>", "<height>3</height>"), r"a\.xml:7: .*second <hei"),
    "zero width": (replaced(">40<", ">0<"), r"a\.xml:5: <width> is 0, allowed is 1\.\.21474"),
    "negative height": (replaced(">30<", ">-30<"), r"a\.xml:6: <height> is -30, allowed"),
    "fraction of a width": (replaced(">40<", ">40.0<"), r"a\.xml:5: <width> is '40.0', expected a"),
    "width in words": (replaced(">40<", ">forty<"), r"a\.xml:5: <width> is 'forty', expected"),
    "huge width": (replaced(">40<", ">2147483648<"), r"a\.xml:5: <width> is 2147483648, allow"),
    "width of a thousand digits": (replaced(">40<", f">{'4' * 1000}<"), r"a\.xml:5: <width> is '4"),
    "empty height": (replaced(">30<", "><"), r"a\.xml:6: <height> is '', expected a whole number"),
    "no class": (replaced("<name>dog</name>", ""), r"a\.xml:9: <object> has no <name>"),
    "unknown class": (
        replaced(">dog<", ">dogg<"),
        r"a\.xml:10: <name> is 'dogg', but the classes are cat, dog; did you mean 'dog'\?",
    ),
    "class in capitals": (replaced(">dog<", ">DOG<"), r"a\.xml:10: <name> is 'DOG', but"),
    "empty class": (replaced(">dog<", "><"), r"a\.xml:10: <name> is '', but"),
    "two classes": (
        replaced("<pose>Left</pose>", "<name>cat</name>"),
        r"a\.xml:11: .*second <name",
    ),
    "no box": (XML.replace("bndbox>", "box>"), r"a\.xml:9: <object> has no <bndbox>"),
    "two boxes": (replaced("<part>", "<bndbox></bndbox><part>"), r"a\.xml:20: .*second <bndbox>"),
    "no xmin": (replaced("<xmin>2</xmin>", ""), r"a\.xml:14: <bndbox> has no <xmin>"),
    "no ymax": (replaced("<ymax>10</ymax>", ""), r"a\.xml:14: <bndbox> has no <ymax>"),
    "two ymin": (replaced("<xmax>11</xmax>", "<ymin>1</ymin>"), r"a\.xml:17: .*second <ymin>"),
    "empty corner": (replaced(">2<", "><"), r"a\.xml:15: <xmin> is '', expected a number"),
    "corner in words": (replaced(">2<", ">two<"), r"a\.xml:15: <xmin> is 'two', expected a number"),
    "NaN": (replaced(">2<", ">NaN<"), r"a\.xml:15: <xmin> is 'NaN', expected a finite number"),
    "infinity": (replaced(">10<", ">-inf<"), r"a\.xml:18: <ymax> is '-inf', expected a finite"),
    "number beyond floats": (replaced(">10<", ">1e400<"), r"a\.xml:18: <ymax> is '1e400', expec"),
    "number of a thousand digits": (
        replaced(">10<", f">{'1' * 1000}<"),
        r"a\.xml:18: <ymax> has 1000 characters",
    ),
    "exponent of many digits": (replaced(">10<", ">1e99999999<"), r"a\.xml:18: <ymax> is '1e9999"),
    "hexadecimal": (replaced(">10<", ">0x10<"), r"a\.xml:18: <ymax> is '0x10', expected a number"),
    "underscore": (replaced(">10<", ">1_0<"), r"a\.xml:18: <ymax> is '1_0', expected a number"),
    "decimal comma": (replaced(">10<", ">1,5<"), r"a\.xml:18: <ymax> is '1,5', expected a number"),
    "other digits": (replaced(">10<", ">١٢<"), r"a\.xml:18: <ymax> is '١٢', expected a number"),
    "difficult is two": (replaced("<difficult>0", "<difficult>2"), r"a\.xml:13: <difficult> is 2"),
    "difficult is text": (
        replaced("<difficult>0", "<difficult>no"),
        r"a\.xml:13: .*'no', expected",
    ),
}


@pytest.mark.parametrize("case", MALFORMED)
def test_malformed_file_is_refused_with_its_line(case: str, tmp_path: Path) -> None:
    xml, text = MALFORMED[case]
    with pytest.raises(DataError, match="Annotations/" + text) as caught:
        read(write_voc(tmp_path, xml))
    assert str(caught.value).startswith(str(tmp_path / "ImageSets"))
    assert caught.value.exit_code == 65


IMAGE_SETS = {
    "empty": ("", r"train\.txt:1: is empty, expected one image name a line"),
    "blank": (" \n\n", r"train\.txt:1: is empty"),
    "of one class": ("a  1\na -1\n", r"train\.txt:2: marks images of one class; take the set"),
    "no such file": ("a\nb\n", r"train\.txt:2: Annotations/b\.xml cannot be read \(No such file"),
    "a folder": ("a\nfolder\n", r"train\.txt:2: Annotations/folder\.xml cannot be read"),
    "named twice": ("a\nb\na\n", r"train\.txt:3: 'a' is already named in line 1"),
    "name too long": ("a" * 5000, r"train\.txt:1: Annotations/a+\.xml cannot be read"),
    "binary": ("a\0b\n", r"train\.txt:1: holds a null byte"),
    "old line ends": ("a\rb\r", r"train\.txt:1: holds a carriage return"),
}


@pytest.mark.parametrize("case", IMAGE_SETS)
def test_malformed_image_set_is_refused_with_its_line(case: str, tmp_path: Path) -> None:
    stems, text = IMAGE_SETS[case]
    folder = write_voc(tmp_path, XML, stems=stems)
    (folder / "Annotations" / "folder.xml").mkdir()
    with pytest.raises(DataError, match=text):
        read(folder)


@pytest.mark.parametrize("stem", ["a 1", "a -1", "a b  0", "a b"])
def test_blanks_belong_to_the_name_of_an_image(stem: str, tmp_path: Path) -> None:
    folder = write_voc(tmp_path, XML, stems=f"a\n{stem}\n")
    (folder / "Annotations" / f"{stem}.xml").write_text(XML.replace("a.jpg", f"{stem}.jpg"))
    write_image(folder / "JPEGImages" / f"{stem}.jpg", textured(30, 40, 1))
    assert read(folder).dataset.files == ("a.jpg", f"{stem}.jpg")
    assert list(find_layout(folder).splits) == ["train"]


def test_all_problems_are_listed_at_once(tmp_path: Path) -> None:
    broken = HEAD + OBJECT.replace("dog", "cow") + OBJECT.replace(">2<", "><") + "</annotation>"
    folder = write_voc(tmp_path, broken, stems="a\nb\nc\n")
    (folder / "Annotations" / "b.xml").write_text("<annotation>")
    with pytest.raises(DataError) as caught:
        read(folder)
    first, *lines, last = str(caught.value).splitlines()
    assert first.endswith("train.txt: 4 problems")
    assert last == "correct these entries in the file and run again"
    assert [line.split(": ")[0].strip() for line in lines] == [
        "Annotations/a.xml:10",
        "Annotations/a.xml:28",
        "Annotations/b.xml:1",
        "train.txt:3",
    ]


def test_two_annotations_of_one_image_are_refused(tmp_path: Path) -> None:
    folder = write_voc(tmp_path, XML, stems="a\nb\n")
    (folder / "Annotations" / "b.xml").write_text(XML.replace("a.jpg", "./a.jpg"))
    with pytest.raises(
        DataError, match=r"b\.xml:3: '\./a\.jpg' is already the image of .*a\.xml:3"
    ):
        read(folder)


def test_names_that_lead_out_are_refused(tmp_path: Path) -> None:
    (tmp_path / "outside.xml").write_text(XML)
    (tmp_path / "outside.jpg").touch()
    folder = write_voc(tmp_path / "set", XML, stems="../../outside\n")
    with pytest.raises(SecurityError, match=r"train\.txt:1: '../../outside' leads out of"):
        read(folder)
    (folder / "Annotations" / "link.xml").symlink_to(tmp_path / "outside.xml")
    (folder / "ImageSets" / "Main" / "train.txt").write_text("link\n")
    with pytest.raises(SecurityError, match=r"train\.txt:1: 'link' leads out of"):
        read(folder)
    with pytest.raises(SecurityError, match=r"'\.\./\.\./outside\.jpg' leads to"):
        read(write_voc(folder, XML.replace("a.jpg", "../../outside.jpg")))
    with pytest.raises(SecurityError, match="'/etc/passwd' is absolute"):
        read(write_voc(folder, XML.replace("a.jpg", "/etc/passwd")))


def test_an_absolute_name_below_the_folder_is_that_of_its_file(tmp_path: Path) -> None:
    folder = write_voc(tmp_path, XML)
    images = folder / "JPEGImages"
    (folder / "Annotations" / "a.xml").write_text(XML.replace("a.jpg", f"{images}/a.jpg"))
    assert list(read(folder).dataset.files) == ["a.jpg"]


def test_linked_folder_of_annotations_is_read_or_refused(tmp_path: Path) -> None:
    folder = write_voc(tmp_path / "set", XML)
    places = folder / "JPEGImages", folder / "Annotations"
    (tmp_path / "store").mkdir()
    (tmp_path / "store" / "b.xml").write_text(XML.replace("a.jpg", "b.jpg").replace("dog", "cat"))
    write_image(folder / "JPEGImages" / "b.jpg", textured(30, 40, 1))
    for hidden in ("._a.xml", ".ipynb_checkpoints/a.xml", "__MACOSX/a.xml"):
        (places[1] / hidden).parent.mkdir(exist_ok=True)
        (places[1] / hidden).touch()
    assert read_voc(*places, CLASSES).dataset.files == ("a.jpg",)
    (places[1] / "day2").symlink_to(tmp_path / "store")
    refused = r"Annotations/day2: is a link to .*store, out of"
    with pytest.raises(SecurityError, match=refused):
        read_voc(*places, CLASSES)
    with pytest.raises(SecurityError, match=refused):
        voc_classes([places[1]])
    allowed = ReadRules(follow_links=True)
    assert voc_classes([places[1]], allowed).names == ("cat", "dog")
    result = read_voc(*places, CLASSES, allowed)
    assert result.dataset.files == ("a.jpg", "b.jpg")
    assert result.findings == ()


def test_missing_parts_name_the_next_step(tmp_path: Path) -> None:
    folder = write_voc(tmp_path, XML)
    sets = folder / "ImageSets" / "Main"
    with pytest.raises(
        DataError, match=r"image set .*trian\.txt does not exist; did you mean .*tra"
    ):
        read_voc(folder / "JPEGImages", sets / "trian.txt", CLASSES)
    with pytest.raises(DataError, match=r"holds no \.xml file; is this the folder of annotations"):
        read_voc(folder / "JPEGImages", sets, CLASSES)
    (folder / "Annotations").rename(folder / "xml")
    with pytest.raises(
        DataError, match=r"no folder Annotations beside it or above it\nput the XML"
    ):
        read(folder)


def test_missing_image_is_a_finding_and_all_missing_an_error(tmp_path: Path) -> None:
    folder = write_voc(tmp_path, XML, stems="a\nb\n")
    (folder / "Annotations" / "b.xml").write_text(XML.replace("a.jpg", "b.jpg"))
    (finding,) = read(folder).findings
    assert (finding.kind, finding.examples) == ("missing_image", ("b.jpg",))
    (folder / "JPEGImages" / "a.jpg").unlink()
    with pytest.raises(DataError, match=r"none of the 2 images of .*train\.txt is in"):
        read(folder)
