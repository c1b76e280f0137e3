from __future__ import annotations

from pathlib import Path

import pytest

from orchestrator.data.findings import ReadResult
from orchestrator.data.label_map import LabelMap
from orchestrator.data.readers.paths import ReadRules
from orchestrator.data.readers.yolo import read_yolo
from orchestrator.errors import DataError, SecurityError
from orchestrator.layouts.data_yaml import labels_beside
from orchestrator.layouts.layout import Task
from tests.support.data_cases import textured, write_image

CLASSES = LabelMap(("cat", "dog"), (0, 1))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two images of 40x30 and 20x10 pixels."""
    write_image(tmp_path / "images" / "a.jpg", textured(30, 40, 0))
    write_image(tmp_path / "images" / "sub" / "b.PNG", textured(10, 20, 1))
    (tmp_path / "labels" / "sub").mkdir(parents=True)
    return tmp_path


def read(folder: Path, text: str | bytes = "", *, images: str | None = None) -> ReadResult:
    """With ``text`` as labels of a.jpg, and ``images`` as list of images."""
    path = folder / "labels" / "a.txt"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    if images is None:
        return read_yolo(folder / "images", folder / "labels", CLASSES)
    (folder / "train.txt").write_text(images)
    return read_yolo(folder / "images", folder / "train.txt", CLASSES)


def test_reads_what_is_there(folder: Path) -> None:
    (folder / "labels" / "sub" / "b.txt").write_text("0 0.5 0.5 1 1\n")
    # 10 by 6 pixels around (6, 5), in an image of 40 by 30.
    result = read(folder, "1 0.15 0.16666666666666666666666666666666666667 0.25 0.2\r\n\r\n")
    data = result.dataset
    assert result.findings == ()
    assert data.files == ("a.jpg", "sub/b.PNG")
    assert data.image_ids.tolist() == [1, 2]
    assert (data.widths.tolist(), data.heights.tolist()) == ([40, 20], [30, 10])
    assert data.offsets.tolist() == [0, 1, 2]
    assert data.boxes_xywh.tolist() == [[1, 2, 10, 6], [0, 0, 20, 10]]
    assert data.labels.tolist() == [1, 0]
    assert data.areas.tolist() == [60, 200]
    assert not data.crowd.any()


def test_image_without_label_file_has_no_objects(folder: Path) -> None:
    data = read(folder, "0 .5 .5 .5 .5").dataset
    assert data.offsets.tolist() == [0, 1, 1]


def test_order_is_that_of_a_list(folder: Path) -> None:
    names = f"./images/sub/b.PNG\r\n{folder}/images/a.jpg\n"
    data = read(folder, "0 .5 .5 .5 .5", images=names).dataset
    assert data.files == ("sub/b.PNG", "a.jpg")
    assert data.offsets.tolist() == [0, 0, 1]


def test_labels_lie_where_images_stands_last_in_the_path() -> None:
    assert labels_beside(Path("/images/x/images/train")) == Path("/images/x/labels/train")
    # Or beside the images, as Darknet has them.
    assert labels_beside(Path("/data/pictures")) == Path("/data/pictures")


def test_labels_without_image_are_a_finding(folder: Path) -> None:
    (folder / "labels" / "c.txt").write_text("0 .5 .5 .5 .5")
    (folder / "labels" / "classes.txt").write_text("cat\ndog\n")
    (finding,) = read(folder).findings
    assert str(finding) == "labels_without_image: 1 not used (c.txt)"


def test_untidy_boxes_are_dropped_with_file_and_line(folder: Path) -> None:
    result = read(folder, "0 .5 .5 0 .1\n0 1.5 .5 .5 .5\n0 0 .5 .5 .5\n")
    assert [str(finding) for finding in result.findings] == [
        "zero_size_box: 1 dropped (labels/a.txt:1)",
        "outside_box: 1 dropped (labels/a.txt:2)",
        "over_edge_box: 1 clipped for training (labels/a.txt:3)",
    ]


def test_unreadable_image_is_left_out_with_its_labels(folder: Path) -> None:
    write_image(folder / "images" / "c.jpg", textured(10, 10, 2))
    (folder / "images" / "a.jpg").write_bytes(b"GIF87a")
    (folder / "labels" / "c.txt").write_text("1 .5 .5 .5 .5")
    result = read(folder, "no labels\n")
    assert result.dataset.files == ("c.jpg", "sub/b.PNG")
    assert result.dataset.offsets.tolist() == [0, 1, 1]
    (finding,) = result.findings
    assert (finding.kind, finding.count) == ("unreadable_image", 1)


@pytest.mark.parametrize(
    ("task", "line", "finding"),
    [
        # A triangle with its corners at (4, 3), (24, 6) and (8, 15) in 40 x 30 pixels.
        ("segment", "1 .1 .1 .6 .2 .2 .5", "outline: 1 the upright box around it"),
        # A rhombus with its corners at (14, 3), (24, 9), (14, 15) and (4, 9).
        ("obb", "1 .35 .1 .6 .3 .35 .5 .1 .3", "rotated_box: 1 the upright box around it"),
        # The same box, and a key point with its visibility.
        ("pose", "1 .35 .3 .5 .4 .9 .9 2", "key_points: 1 left out; the box is used"),
    ],
)
def test_annotations_for_other_tasks_have_boxes(
    task: Task, line: str, finding: str, folder: Path
) -> None:
    (folder / "labels" / "a.txt").write_text(f"{line}\n0 .5 .5 .5 .5\n")
    rules = ReadRules(task=task)
    result = read_yolo(folder / "images", folder / "labels", CLASSES, rules)
    assert result.dataset.boxes_xywh.tolist() == [[4, 3, 20, 12], [10, 7.5, 20, 15]]
    assert result.dataset.labels.tolist() == [1, 0]
    assert [str(one) for one in result.findings] == [f"{finding} (labels/a.txt:1)"]


@pytest.mark.parametrize(
    ("task", "line", "message"),
    [
        ("segment", "0 .1 .1 .2 .1 .2", "has 6 values"),
        ("segment", "0 .1 .1 .2 .1 .2 .2 .3", "has 8 values"),
        ("segment", "0 .1 .1 .2 .1 .2 9", "y is '9', expected a fraction"),
        ("obb", "0 .1 .1 .2 .1 .2 .2 .1 .2 .3 .3", "has 11 values"),
        ("pose", "0 .1 .1 .2", "has 4 values"),
        ("detect", "0 .1 .1 .2 .1 .2 .2", "with --task, `orchestrator init` takes the boxes"),
    ],
)
def test_other_tasks_refuse_what_is_no_outline(
    task: Task, line: str, message: str, folder: Path
) -> None:
    (folder / "labels" / "a.txt").write_text(line)
    with pytest.raises(DataError, match=message):
        read_yolo(folder / "images", folder / "labels", CLASSES, ReadRules(task=task))


MALFORMED: dict[str, tuple[str | bytes, str]] = {
    "four values": ("0 .5 .5 .5", r"a\.txt:1: has 4 values, expected class x_centre y_centre"),
    "six values": ("0 .5 .5 .5 .5 .9", r"a\.txt:1: has 6 values, .* a sixth is the score"),
    "a segment": ("0 .1 .1 .2 .1 .2 .2", r"a\.txt:1: has 7 values, .* outlines of segments are n"),
    "commas": ("0,.5,.5,.5,.5", r"a\.txt:1: has 1 values"),
    "second line": ("0 .5 .5 .5 .5\n\n0 .5", r"a\.txt:3: has 2 values"),
    "class too high": ("2 .5 .5 .5 .5", r"a\.txt:1: class is 2, allowed is 0\.\.1"),
    "class negative": ("-1 .5 .5 .5 .5", r"a\.txt:1: class is -1, allowed is 0\.\.1"),
    "class a fraction": ("1.0 .5 .5 .5 .5", r"a\.txt:1: class is '1\.0', expected a whole number"),
    "class by name": ("dog .5 .5 .5 .5", r"a\.txt:1: class is 'dog', expected a whole number"),
    "text": ("0 .5 x .5 .5", r"a\.txt:1: y_centre is 'x', expected a number"),
    "NaN": ("0 NaN .5 .5 .5", r"a\.txt:1: x_centre is 'NaN', expected a finite number"),
    "infinity": ("0 .5 .5 inf .5", r"a\.txt:1: width is 'inf', expected a finite number"),
    "beyond floats": ("0 .5 .5 .5 1e999", r"a\.txt:1: height is '1e999', expected a number of"),
    "many digits": (f"0 .5 .5 .5 .{'5' * 500}", r"a\.txt:1: height has 501 characters"),
    "pixels": ("0 20 15 10 8", r"a\.txt:1: x_centre is '20', expected a fraction of the image"),
    "percent": ("0 .5 50 .5 .5", r"a\.txt:1: y_centre is '50', expected a fraction"),
    "far left": ("0 -2 .5 .5 .5", r"a\.txt:1: x_centre is '-2', expected a fraction"),
    "huge exponent": ("0 .5 .5 1e149 .5", r"a\.txt:1: width is '1e149', expected a fraction"),
    "null byte": (b"0 .5 .5\0 .5 .5", r"a\.txt: .*a\.txt:1: holds a null byte"),
    "latin-1": (b"0 .5 .5 .5 .5\n\xe4", r"a\.txt: .*a\.txt:2: byte 14 is not UTF-8"),
    "byte order mark": (
        b"\xef\xbb\xbf0 .5 .5 .5 .5",
        r"a\.txt: .*:1: begins with a byte order mark",
    ),
    "json": ('{"a": 1}', r"a\.txt:1: has 2 values"),
}


@pytest.mark.parametrize("case", MALFORMED)
def test_malformed_labels_are_refused_with_their_line(case: str, folder: Path) -> None:
    text, message = MALFORMED[case]
    with pytest.raises(DataError, match="labels/" + message) as caught:
        read(folder, text)
    assert caught.value.exit_code == 65


LISTS = {
    "empty": ("", r"train\.txt:1: is empty, expected one image path a line"),
    "named twice": (
        "images/a.jpg\nimages/./a.jpg\n",
        r"train\.txt:2: 'a\.jpg' is already the image of train\.txt:1",
    ),
    "one label file for two": (
        "images/a.jpg\nimages/a.png\n",
        r"a\.png: shares the label file a\.txt with a\.jpg",
    ),
    "none is there": ("images/x.jpg\n", r"none of the 1 images of .*train\.txt is in"),
    "null byte": ("images/a.jpg\0\n", r"train\.txt:1: holds a null byte"),
}


@pytest.mark.parametrize("case", LISTS)
def test_malformed_list_is_refused(case: str, folder: Path) -> None:
    images, message = LISTS[case]
    with pytest.raises(DataError, match=message):
        read(folder, images=images)


def test_two_images_of_one_name_are_refused(folder: Path) -> None:
    write_image(folder / "images" / "a.png", textured(10, 10, 2))
    with pytest.raises(DataError, match=r"a\.png: shares the label file a\.txt with a\.jpg"):
        read(folder)


@pytest.mark.parametrize("line", ["../x.jpg", "/etc/passwd", "images/../x.jpg", "images", "."])
def test_list_that_leads_out_is_refused(folder: Path, line: str) -> None:
    with pytest.raises(SecurityError, match=r"1 path\(s\) lead out of the image folder") as caught:
        read(folder, images=f"images/a.jpg\n{line}\n")
    assert f"train.txt:2: {line!r}" in str(caught.value)


def test_links_that_lead_out_are_refused(folder: Path) -> None:
    (folder / "secret.txt").write_text("0 .5 .5 .5 .5")
    (folder / "labels" / "sub" / "b.txt").symlink_to(folder / "secret.txt")
    with pytest.raises(SecurityError, match=r"labels/sub/b\.txt: is a link to .*secret\.txt, out"):
        read(folder)
    (folder / "x.jpg").touch()
    (folder / "images" / "link.jpg").symlink_to(folder / "x.jpg")
    with pytest.raises(SecurityError, match=r"'link\.jpg' is a link to"):
        read(folder)


@pytest.mark.parametrize("linked", [("images", "labels"), ("images",), ("labels",)])
def test_linked_folders_are_read_or_refused(linked: tuple[str, ...], folder: Path) -> None:
    for name in ("images", "labels"):
        day = folder / ("store" if name in linked else ".") / name / "day2"
        day.mkdir(parents=True)
        if name in linked:
            (folder / name / "day2").symlink_to(day)
    write_image(folder / "images" / "day2" / "c.jpg", textured(10, 20, 2))
    (folder / "labels" / "day2" / "c.txt").write_text("0 .5 .5 .5 .5")
    with pytest.raises(SecurityError, match=rf"{linked[0]}/day2.*: is a link to .*, ou") as caught:
        read(folder)
    assert caught.value.exit_code == 77
    allowed = ReadRules(follow_links=True)
    result = read_yolo(folder / "images", folder / "labels", CLASSES, allowed)
    assert result.dataset.files == ("a.jpg", "day2/c.jpg", "sub/b.PNG")
    assert result.dataset.offsets.tolist() == [0, 0, 1, 1]
    assert result.findings == ()


def test_hidden_files_are_no_images_and_no_labels(folder: Path) -> None:
    for name in ("images", "labels"):
        for place in (".ipynb_checkpoints/a", "._a", "sub/.b", "__MACOSX/sub/b"):
            file = folder / name / (place + (".jpg" if name == "images" else ".txt"))
            file.parent.mkdir(exist_ok=True, parents=True)
            file.write_bytes(b"\0\5\x16\7\0\2\0\0Mac OS X")
    result = read(folder)
    assert result.dataset.files == ("a.jpg", "sub/b.PNG")
    assert result.findings == ()


def test_link_to_nothing_is_an_image_that_cannot_be_read(folder: Path) -> None:
    (folder / "images" / "c.jpg").symlink_to("gone.jpg")
    result = read(folder)
    assert result.dataset.files == ("a.jpg", "sub/b.PNG")
    (finding,) = result.findings
    assert (finding.kind, finding.count) == ("unreadable_image", 1)


def test_missing_parts_name_the_next_step(folder: Path) -> None:
    with pytest.raises(DataError, match=r"label folder or list .*lables does not exist; did you"):
        read_yolo(folder / "images", folder / "lables", CLASSES)
    (folder / "none").mkdir()
    with pytest.raises(DataError, match=r"none: holds no image; point data\.train\.images"):
        read_yolo(folder / "none", folder / "labels", CLASSES)


@pytest.mark.parametrize(
    ("line", "form"),
    [
        ("0 .3{i} .1 .9 .8", "x1 y1 x2 y2"),
        ("0 .{i:02} .05 .6 .5", "x1 y1 x2 y2 or left top width height"),
        ("0 .4{i} .05 .4 .5", "left top width height"),
        ("0 .7{i} .5 .5 .5", None),  # Over the right edge by less than two pixels of 40.
        ("0 .1{i} .1 .4 .4\n0 .9 .9 .1{i} .1", None),
    ],
)
def test_lines_that_hold_no_centres_are_refused(line: str, form: str | None, folder: Path) -> None:
    text = "\n".join(line.format(i=i) for i in range(10))
    if form is None:
        assert len(read(folder, text).dataset.labels) == text.count("\n") + 1
        return
    with pytest.raises(DataError, match=f"10 of 10 boxes reach .* as {form}; the first is at .*:1"):
        read(folder, text)


@pytest.mark.parametrize(
    ("image", "label"), [("a.jpg", "a.TXT"), ("a.jpg", "A.txt"), ("\u00fc.jpg", "u\u0308.txt")]
)
@pytest.mark.parametrize("listed", [False, True])
def test_label_files_by_another_spelling_are_refused(
    image: str, label: str, listed: bool, folder: Path
) -> None:
    (folder / "images" / "a.jpg").rename(folder / "images" / image)
    (folder / "labels" / label).write_text("0 .5 .5 .5 .5")
    source = folder / "labels"
    if listed:
        source = folder / "train.txt"
        source.write_text(f"images/{image}\n")
    with pytest.raises(DataError, match=f"labels/{label}: is the label file of no image"):
        read_yolo(folder / "images", source, CLASSES)
