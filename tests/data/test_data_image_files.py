"""Orientation tags, images of more than 8 bits, JPEGs with more behind their end, and bombs."""

from __future__ import annotations

import io
import struct
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image, ImageOps, features

from orchestrator.data.decode import (
    STORED,
    BadImageError,
    Decoding,
    decode_image,
    deep_values,
    header_in,
    read_header,
    read_image,
    require_decodable,
    require_sound,
)
from orchestrator.data.image_streams import MAX_SCANS
from orchestrator.data.orientation import turned, turned_boxes
from tests.support.data_cases import textured

PICTURE = textured(40, 60, seed=3)
DISPLAYED = Decoding("displayed")
KINDS = [
    "JPEG",
    "PNG",
    "TIFF",
    "WEBP",
    pytest.param(
        "AVIF", marks=pytest.mark.skipif(not features.check("avif"), reason="Pillow has no AVIF")
    ),
]


def tagged(kind: str, tag: int) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = tag
    options = {"WEBP": {"lossless": True}, "AVIF": {"quality": 100}, "JPEG": {"quality": 95}}
    buffer = io.BytesIO()
    Image.fromarray(PICTURE).save(buffer, kind, exif=exif, **options.get(kind, {}))
    return buffer.getvalue()


@pytest.mark.parametrize("tag", range(1, 9))
@pytest.mark.parametrize("kind", KINDS)
def test_one_rule_of_orientation_for_every_format(kind: str, tag: int) -> None:
    data = tagged(kind, tag)
    stored = decode_image(data)
    displayed = decode_image(data, decoding=DISPLAYED)
    assert np.abs(stored.astype(int) - PICTURE).mean() < 6
    # Pillow's own turning is the independent one.
    plain = Image.fromarray(stored)
    plain.getexif()[0x0112] = tag
    assert np.array_equal(displayed, np.asarray(ImageOps.exif_transpose(plain)))
    header = header_in(data)
    assert (header.height, header.width) == (40, 60)
    assert header.size("displayed") == displayed.shape[:2]
    assert header.size("stored") == stored.shape[:2]


def test_a_box_turns_with_its_picture() -> None:
    image = np.zeros((40, 60, 3), np.uint8)
    image[5:15, 20:50] = 255
    for tag in range(1, 9):
        upright = turned(image, tag)
        rows, columns = np.nonzero(upright[..., 0])
        box = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
        assert turned_boxes(np.array([[20.0, 5, 50, 15]]), (40, 60), tag).tolist() == [box]


def test_the_size_that_fits_only_the_other_orientation_is_named() -> None:
    with pytest.raises(BadImageError, match=r"annotated as 40x60.*data\.orientation=displayed"):
        decode_image(tagged("JPEG", 6), size=(60, 40))
    with pytest.raises(BadImageError, match=r"annotated as 60x40.*data\.orientation=stored"):
        decode_image(tagged("JPEG", 8), size=(40, 60), decoding=DISPLAYED)
    assert decode_image(tagged("TIFF", 6), size=(60, 40), decoding=DISPLAYED).shape == (60, 40, 3)
    # Without a tag it can only be a mistake.
    with pytest.raises(BadImageError, match=r"width and height swapped\?"):
        decode_image(tagged("JPEG", 1), size=(60, 40))


def thermal(kind: str) -> bytes:
    """Values from 7200 to 7455, one a column, over 256 columns."""
    row = np.arange(7200, 7456, dtype=np.uint16)
    return cv2.imencode(f".{kind}", np.repeat(row[None], 8, axis=0))[1].tobytes()


@pytest.mark.parametrize("kind", ["tiff", "png"])
def test_levels_of_images_of_sixteen_bits(kind: str) -> None:
    data = thermal(kind)
    assert header_in(data).deep
    # 7200 / 256 = 28.1 and 7455 / 256 = 29.1: two grey levels are left.
    assert np.unique(decode_image(data)).tolist() == [28, 29]
    chosen = decode_image(data, decoding=Decoding(levels=(7200, 7455)))
    assert chosen[0, :, 0].tolist() == list(range(256))
    half = decode_image(data, decoding=Decoding(levels=(7200, 7710)))
    assert half[0, [0, 100, 255], 1].tolist() == [0, 50, 128]  # 127.5 goes to the even one
    used = decode_image(data, decoding=Decoding(levels="used"))
    # Of 256 equally frequent values the percentiles 0.1 and 99.9 are the first and the last.
    assert used[0, [0, 255], 2].tolist() == [0, 255]
    flat = cv2.imencode(".png", np.full((4, 4), 9000, np.uint16))[1].tobytes()
    assert decode_image(flat, decoding=Decoding(levels="used")).max() == 0
    eight = cv2.imencode(".png", PICTURE)[1].tobytes()
    assert np.array_equal(
        decode_image(eight, decoding=Decoding(levels=(0, 10))), decode_image(eight)
    )


def tiff(values: np.ndarray, photometric: int, *, planes: bool = False, order: str = "<") -> bytes:
    """(h, w, c) values of 16 bits as a TIFF without compression (TIFF 6.0, sections 2 and 8)."""
    height, width, channels = values.shape
    if planes:
        values = values.transpose(2, 0, 1)
    pixels = values.astype(f"{order}u2").tobytes()
    strips = channels if planes else 1
    tags = {
        256: (4, [width]),
        257: (4, [height]),
        258: (3, [16] * channels),
        259: (3, [1]),
        262: (3, [photometric]),
        273: (4, [8 + i * len(pixels) // strips for i in range(strips)]),
        277: (3, [channels]),
        278: (4, [height]),
        279: (4, [len(pixels) // strips] * strips),
        284: (3, [2 if planes else 1]),
        **({338: (3, [2])} if channels == 4 else {}),
    }
    at = 8 + len(pixels)
    entries, behind = b"", b""
    for tag, (kind, numbers) in tags.items():
        value = struct.pack(f"{order}{len(numbers)}{'H' if kind == 3 else 'I'}", *numbers)
        if len(value) > 4:
            where = at + 2 + 12 * len(tags) + 4 + len(behind)
            behind += value
            value = struct.pack(f"{order}I", where)
        entries += struct.pack(f"{order}HHI", tag, kind, len(numbers)) + value.ljust(4, b"\0")
    head = (b"II" if order == "<" else b"MM") + struct.pack(f"{order}HI", 42, at)
    return b"".join([head, pixels, struct.pack(f"{order}H", len(tags)), entries, b"\0" * 4, behind])


#: Values of 16 bits that 8 bits hold as well, and with a fourth channel.
WIDE = PICTURE.astype(np.uint16) * 257
WIDE_ALPHA = np.dstack([WIDE, WIDE[..., 1]])
GREY = PICTURE[..., :1].repeat(3, axis=2)
TIFFS = {
    "grey": (tiff(WIDE[..., :1], 1), GREY),
    "grey, the other byte order": (tiff(WIDE[..., :1], 1, order=">"), GREY),
    "grey, said to be in planes": (tiff(WIDE[..., :1], 1, planes=True), GREY),
    "white is zero": (tiff(65535 - WIDE[..., :1], 0), GREY),
    "colours": (tiff(WIDE, 2), PICTURE),
    "colours, the other byte order": (tiff(WIDE, 2, order=">"), PICTURE),
    "colours, compressed": (cv2.imencode(".tiff", WIDE[..., ::-1])[1].tobytes(), PICTURE),
    "alpha": (tiff(WIDE_ALPHA, 2), PICTURE),
}


@pytest.mark.parametrize("form", TIFFS)
def test_all_levels_of_a_tiff_are_those_of_eight_bits(form: str) -> None:
    data, picture = TIFFS[form]
    # A picture in between, so that nothing stands in memory that would be right by chance.
    for _ in range(3):
        decode_image(thermal("tiff"), decoding=Decoding(levels="used"))
        for levels in ("full", (0, 65535)):
            found = decode_image(data, decoding=Decoding(levels=levels))
            assert np.array_equal(found, picture), levels
    values = deep_values(data)
    assert values is not None
    assert np.array_equal(values, picture.astype(np.uint16) * 257)


@pytest.mark.parametrize("values", [WIDE, WIDE_ALPHA])
def test_levels_of_colours_in_planes_are_refused(values: np.ndarray, tmp_path: Path) -> None:
    data = tiff(values, 2, planes=True)
    assert np.array_equal(decode_image(data), PICTURE)
    assert deep_values(data) is None
    (tmp_path / "a.tif").write_bytes(data)
    for levels in ("used", (0, 65535)):
        with pytest.raises(BadImageError, match=r"a\.tif: .*PlanarConfiguration 2.*full alone"):
            read_image(tmp_path / "a.tif", decoding=Decoding(levels=levels))
        with pytest.raises(BadImageError, match="full alone"):
            require_decodable(read_header(tmp_path / "a.tif"), Decoding(levels=levels))


JPEG = cv2.imencode(".jpg", PICTURE)[1].tobytes()
#: What a phone puts behind a moving photo: a clip, in whose bytes any marker may stand.
CLIP = b"\0\0\0\x18ftypmp42" + b"\xff\xda\0\x0c\x03" + bytes(range(256)) * 40 + b"\xff\xda\0\x08"


@pytest.mark.parametrize("trailer", [CLIP, JPEG[:300], b"\xff\xda", b"\xff" * 9, b"\r\n"])
def test_what_follows_the_end_of_a_jpeg_does_not_matter(trailer: bytes) -> None:
    assert np.array_equal(decode_image(JPEG + trailer), decode_image(JPEG))


def test_a_jpeg_cut_inside_its_scan_is_not_saved_by_what_follows() -> None:
    cut = JPEG[: len(JPEG) * 3 // 4]
    for trailer in (JPEG, b"\0" * 4096, b""):
        with pytest.raises(BadImageError, match="truncated JPEG"):
            decode_image(cut + trailer)


def test_the_first_of_several_pictures_in_a_file() -> None:
    buffer = io.BytesIO()
    frames = [Image.fromarray(PICTURE), Image.fromarray(255 - PICTURE)]
    frames[0].save(buffer, "MPO", save_all=True, append_images=frames[1:], quality=95)
    data = buffer.getvalue()
    assert header_in(data).kind == "JPEG"
    assert np.abs(decode_image(data).astype(int) - PICTURE).mean() < 6
    scan = data.index(b"\xff\xda")
    with pytest.raises(BadImageError, match="truncated JPEG"):
        decode_image(data[: scan + 200] + data[data.rindex(b"\xff\xd8") :])


def test_a_jpeg_of_very_many_scans_is_refused_before_it_is_decoded() -> None:
    buffer = io.BytesIO()
    Image.fromarray(PICTURE).save(buffer, "JPEG", progressive=True)
    data = buffer.getvalue()
    start = data.rindex(b"\xff\xda")
    scan = data[start:-2]
    scans = data.count(b"\xff\xda")
    assert decode_image(data).shape == (40, 60, 3)
    allowed = data[:start] + scan * (MAX_SCANS - scans + 1) + b"\xff\xd9"
    assert require_sound(allowed).kind == "JPEG"
    with pytest.raises(BadImageError, match="more than 64 scans over 2400 pixels"):
        require_sound(data[:start] + scan * 3000 + b"\xff\xd9")


@pytest.mark.skipif(not features.check("avif"), reason="Pillow was built without AVIF")
def test_an_avif_whose_header_lies_is_refused_before_it_is_decoded() -> None:
    for mode in ("RGB", "RGBA", "L"):
        buffer = io.BytesIO()
        Image.fromarray(PICTURE).convert(mode).save(buffer, "AVIF")
        assert decode_image(buffer.getvalue()).shape == (40, 60, 3)
    buffer = io.BytesIO()
    Image.new("RGB", (3000, 2000)).save(buffer, "AVIF")
    data = buffer.getvalue()
    assert require_sound(data).width == 3000
    at = data.index(b"ispe") + 8
    lying = data[:at] + struct.pack(">II", 64, 64) + data[at + 8 :]
    with pytest.raises(BadImageError, match="64x64 pixels, but a frame inside has 3000x2000"):
        require_sound(lying, decoding=STORED)
    nothing = data.replace(b"av01", b"av02")
    with pytest.raises(BadImageError):
        decode_image(nothing)
