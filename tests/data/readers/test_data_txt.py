from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.data.findings import ReadResult
from orchestrator.data.label_map import LabelMap
from orchestrator.data.readers.text_files import fields_of, quoted
from orchestrator.data.readers.txt import read_txt
from orchestrator.errors import DataError, SecurityError
from tests.support.data_cases import textured, write_image

CLASSES = LabelMap(("cat", "dog", "cow"), (0, 1, 2))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two images of 40x30 and 20x10 pixels."""
    write_image(tmp_path / "images" / "a.jpg", textured(30, 40, 0))
    write_image(tmp_path / "images" / "my dir" / 'b "2".png', textured(10, 20, 1))
    return tmp_path


def read(folder: Path, text: str | bytes, classes: LabelMap = CLASSES) -> ReadResult:
    path = folder / "train.txt"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return read_txt(folder / "images", path, classes)


def test_reads_what_is_there(folder: Path) -> None:
    lines = 'a.jpg 1,2,11,10,2 0.5,0,40,30,0,1\r\n\r\n"my dir/b \\"2\\".png"\t3,4,8.5,10,1,0\r\n'
    result = read(folder, lines)
    data = result.dataset
    assert result.findings == ()
    assert data.files == ("a.jpg", 'my dir/b "2".png')
    assert data.image_ids.tolist() == [1, 2]
    # Of the image files; the text does not say.
    assert (data.widths.tolist(), data.heights.tolist()) == ([40, 20], [30, 10])
    assert data.offsets.tolist() == [0, 2, 3]
    assert data.boxes_xywh.tolist() == [[1, 2, 10, 8], [0.5, 0, 39.5, 30], [3, 4, 5.5, 6]]
    assert data.labels.tolist() == [2, 0, 1]
    assert data.crowd.tolist() == [False, True, False]
    assert data.areas.tolist() == [80, 39.5 * 30, 33]


def test_line_of_the_seed_documents(tmp_path: Path) -> None:
    name = "train2017/0000001.jpg"
    write_image(tmp_path / "images" / name, textured(480, 640, 0))
    classes = LabelMap(tuple("abcdefgh"), tuple(range(8)))
    data = read(tmp_path, f"{name} 0,259,401,459,7 35,28,324,201,2 0,30,59,80,2", classes).dataset
    assert data.boxes_xywh.tolist() == [[0, 259, 401, 200], [35, 28, 289, 173], [0, 30, 59, 50]]
    assert data.labels.tolist() == [7, 2, 2]


def test_image_without_boxes_is_kept(folder: Path) -> None:
    assert read(folder, "a.jpg\n").dataset.offsets.tolist() == [0, 0]


def test_classes_may_begin_at_one(folder: Path) -> None:
    numbered = LabelMap(("cat", "dog"), (1, 2))
    assert read(folder, "a.jpg 1,2,3,4,2", numbered).dataset.labels.tolist() == [1]
    with pytest.raises(DataError, match=r"field 2: class is 0, allowed is 1\.\.2"):
        read(folder, "a.jpg 1,2,3,4,0", numbered)


def test_untidy_boxes_are_dropped_with_their_line(folder: Path) -> None:
    result = read(folder, "\na.jpg 5,5,5,9,0 41,3,50,9,0 -3,5,6,9,0\n")
    assert [str(finding) for finding in result.findings] == [
        "zero_size_box: 1 dropped (train.txt:2)",
        "outside_box: 1 dropped (train.txt:2)",
        "over_edge_box: 1 clipped for training (train.txt:2)",
    ]
    assert result.dataset.boxes_xywh.tolist() == [[-3, 5, 9, 4]]


def test_unreadable_images_are_left_out_with_their_boxes(folder: Path) -> None:
    (folder / "images" / "page.jpg").write_text("<html>not found</html>")
    (folder / "images" / "empty.jpg").touch()
    result = read(
        folder,
        "gone.jpg 1,2,3,4,0\npage.jpg 1,2,3,4,1 0,0,0,0,0\nempty.jpg\na.jpg 1,2,11,10,2 9,9,9,9,0",
    )
    data = result.dataset
    assert data.files == ("a.jpg",)
    assert data.image_ids.tolist() == [4]
    assert data.labels.tolist() == [2]
    assert data.boxes_xywh.tolist() == [[1, 2, 10, 8]]
    first, second = result.findings
    assert (first.kind, first.count) == ("unreadable_image", 3)
    assert [example.split(": ")[1] for example in first.examples] == [
        "cannot be read (No such file or directory)",
        "not an image of a known format; begins with '<html>not found<'",
        "empty file",
    ]
    assert str(second) == "zero_size_box: 1 dropped (train.txt:4)"
    (folder / "images" / "a.jpg").unlink()
    with pytest.raises(DataError, match=r"none of the 2 images of .*train\.txt can be read"):
        read(folder, "gone.jpg\npage.jpg\n")


GOOD = "a.jpg 1,2,11,10,2"

MALFORMED: dict[str, tuple[str | bytes, str]] = {
    "empty": ("", r"train\.txt:1: is empty, expected a path and its boxes"),
    "blank": ("\n  \r\n", r"train\.txt:1: is empty"),
    "three values": ("a.jpg 1,2,3", r"train\.txt:1: field 2: '1,2,3' has 3 values, expected xmin"),
    "four values": (GOOD + " 1,2,3,4", r"train\.txt:1: field 3: '1,2,3,4' has 4 values"),
    "seven values": ("a.jpg 1,2,3,4,0,0,9", r"field 2: '1,2,3,4,0,0,9' has 7 values, expected"),
    "no commas": ("a.jpg 1 2 3 4 0", r"field 2: '1' has 1 values, expected xmin,ymin"),
    "blank behind a comma": ("a.jpg 1,2, 3,4,0", r"field 2: '1,2,' has 3 values"),
    "name with a blank": ("my dir/a.jpg 1,2,3,4,0", r"field 2: 'dir/a\.jpg' has 1 values"),
    "semicolons": ("a.jpg 1;2;3;4;0", r"field 2: '1;2;3;4;0' has 1 values"),
    "empty value": ("a.jpg 1,,3,4,0", r"field 2: ymin is '', expected a number"),
    "text": ("a.jpg 1,2,x,4,0", r"field 2: xmax is 'x', expected a number"),
    "NaN": ("a.jpg nan,2,3,4,0", r"field 2: xmin is 'nan', expected a finite number"),
    "infinity": ("a.jpg 1,2,3,Infinity,0", r"field 2: ymax is 'Infinity', expected a finite"),
    "beyond floats": ("a.jpg 1,2,3,1e999,0", r"field 2: ymax is '1e999', expected a number of at"),
    "hexadecimal": ("a.jpg 1,2,0x3,4,0", r"field 2: xmax is '0x3', expected a number"),
    "many digits": (f"a.jpg 1,2,{'3' * 500},4,0", r"field 2: xmax has 500 characters"),
    "x swapped": ("a.jpg 9,2,3,4,0", r"field 2: xmin 9 is greater than xmax 3"),
    "y swapped": ("a.jpg 1,9,3,4,0", r"field 2: ymin 9 is greater than ymax 4"),
    "width and height": (GOOD + "\n" + "b.jpg 30,20,5,5,0", r"train\.txt:2: field 2: xmin 30 is g"),
    "class too high": ("a.jpg 1,2,3,4,3", r"field 2: class is 3, allowed is 0\.\.2"),
    "class negative": ("a.jpg 1,2,3,4,-1", r"field 2: class is -1, allowed is 0\.\.2"),
    "class a fraction": ("a.jpg 1,2,3,4,1.0", r"field 2: class is '1.0', expected a whole number"),
    "class by name": ("a.jpg 1,2,3,4,dog", r"field 2: class is 'dog', expected a whole number"),
    "class empty": ("a.jpg 1,2,3,4,", r"field 2: class is '', expected a whole number"),
    "class of many digits": (f"a.jpg 1,2,3,4,{'1' * 99}", r"field 2: class is '1+\.\.\.', expect"),
    "crowd is two": ("a.jpg 1,2,3,4,0,2", r"field 2: iscrowd is 2, allowed is 0\.\.1"),
    "crowd is text": ("a.jpg 1,2,3,4,0,no", r"field 2: iscrowd is 'no', expected a whole number"),
    "quote not closed": ('"a.jpg 1,2,3,4,0', r"train\.txt:1: column 1: the quote is not closed"),
    "nothing behind a quote": ('"a.jpg"1,2,3,4,0', r"train\.txt:1: column 8: a blank must follow"),
    "quote at the end": ('a.jpg "', r"train\.txt:1: column 7: the quote is not closed"),
    "image named twice": (
        GOOD + "\n" + "./a.jpg",
        r"train\.txt:2: '\./a\.jpg' is already the image of train\.txt:1",
    ),
    "box before the image": ("1,2,3,4,0 a.jpg", r"field 2: 'a\.jpg' has 1 values"),
    "null byte": (b"a.jpg\0 1,2,3,4,0", r"train\.txt:1: holds a null byte"),
    "old line ends": (b"a.jpg\rb.jpg\r", r"train\.txt:1: holds a carriage return"),
    "byte order mark": (b"\xef\xbb\xbfa.jpg 1,2,3,4,0", r"train\.txt:1: begins with a byte order"),
    "latin-1": ("\näh.jpg".encode("latin-1"), r"train\.txt:2: byte 1 is not UTF-8"),
    "utf-16": (GOOD.encode("utf-16"), r"train\.txt:1: byte 0 is not UTF-8"),
    "an image": (b"\xff\xd8\xff\xe0\x00\x10JFIF", r"train\.txt:1: byte 0 is not UTF-8"),
    "one endless line": ("a" * (2 << 20), r"train\.txt:1: has 2097152 characters; is this a text"),
    "json": ('{"images": []}', r"train\.txt:1: field 2: '\[\]\}' has 1 values"),
}


@pytest.mark.parametrize("case", MALFORMED)
def test_malformed_file_is_refused_with_its_line(case: str, folder: Path) -> None:
    text, message = MALFORMED[case]
    with pytest.raises(DataError, match=message) as caught:
        read(folder, text)
    assert str(caught.value).startswith(str(folder / "train.txt"))
    assert caught.value.exit_code == 65


def test_all_problems_are_listed_at_once(folder: Path) -> None:
    with pytest.raises(DataError) as caught:
        read(folder, "a.jpg 1,2,3 1,2,3,4,9\n\nb.jpg 5,2,3,4,0\n")
    first, *lines, last = str(caught.value).splitlines()
    assert first.endswith("train.txt: 3 problems")
    assert last == "correct these entries in the file and run again"
    assert [line.split(": ")[0].strip() for line in lines] == [
        "train.txt:1",
        "train.txt:1",
        "train.txt:3",
    ]


@pytest.mark.parametrize(
    ("name", "text"),
    [("../x.jpg", "leads to"), ("/etc/passwd", "is absolute"), ("link.jpg", "is a link to")],
)
def test_path_that_leads_out_is_refused(folder: Path, name: str, text: str) -> None:
    (folder / "x.jpg").touch()
    (folder / "images" / "link.jpg").symlink_to(folder / "x.jpg")
    with pytest.raises(SecurityError, match=text):
        read(folder, f"a.jpg\n{name} 1,2,3,4,0\n")


def test_an_absolute_path_below_the_folder_is_that_of_its_file(folder: Path) -> None:
    result = read(folder, f"{folder}/images/a.jpg 1,2,3,4,0\n")
    assert list(result.dataset.files) == ["a.jpg"]


@given(st.lists(st.text(st.characters(exclude_characters="\n\r\0", exclude_categories=["Cs"]))))
def test_quoted_fields_are_read_back(fields: list[str]) -> None:
    assert list(fields_of(" ".join(map(quoted, fields)))) == fields


@pytest.mark.parametrize("name", ["a\nb", "a\rb", "a\0b"])
def test_what_a_line_cannot_hold_is_not_written(name: str) -> None:
    with pytest.raises(ValueError, match="cannot be written to a line of text"):
        quoted(name)
