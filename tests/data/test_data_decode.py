from __future__ import annotations

import io
import os
import zlib
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image, features

from orchestrator.data.decode import (
    MAX_PIXELS,
    BadImageError,
    decode_image,
    deep_values,
    read_header,
    read_image,
)
from tests.support.data_cases import textured

PICTURE = textured(64, 96, seed=7)


def encode(mode: str, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(PICTURE).convert(mode).save(buffer, kind, **options)
    return buffer.getvalue()


def pillow_rgb(data: bytes) -> np.ndarray:
    with Image.open(io.BytesIO(data)) as image:
        return np.asarray(image.convert("RGB")).astype(int)


def png_claiming(width: int, height: int) -> bytes:
    """A tiny PNG whose header claims a size its data do not have."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        checksum = zlib.crc32(kind + body).to_bytes(4, "big")
        return len(body).to_bytes(4, "big") + kind + body + checksum

    header = width.to_bytes(4, "big") + height.to_bytes(4, "big") + bytes([8, 2, 0, 0, 0])
    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 64)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


FORMATS = {
    "jpeg": encode("RGB", "JPEG"),
    "progressive jpeg": encode("RGB", "JPEG", progressive=True),
    "grey jpeg": encode("L", "JPEG"),
    "cmyk jpeg": encode("CMYK", "JPEG"),
    "png": encode("RGB", "PNG"),
    "alpha png": encode("RGBA", "PNG"),
    "grey alpha png": encode("LA", "PNG"),
    "palette png": encode("P", "PNG"),
    "one-bit png": encode("1", "PNG"),
    "bmp": encode("RGB", "BMP"),
    "tiff": encode("RGB", "TIFF"),
    "gif": encode("P", "GIF"),
    "webp": encode("RGB", "WEBP"),
    "ppm": encode("RGB", "PPM"),
}


@pytest.mark.parametrize("name", FORMATS)
def test_formats_agree_with_an_independent_decoder(name: str) -> None:
    image = decode_image(FORMATS[name])
    assert image.shape == (64, 96, 3)
    assert image.dtype == np.uint8
    # CMYK conversions differ by one level, everything else is equal.
    allowed = 1 if "cmyk" in name else 0
    assert np.abs(image - pillow_rgb(FORMATS[name])).max() <= allowed


def test_channels_are_red_green_blue() -> None:
    buffer = io.BytesIO()
    Image.new("RGB", (8, 4), (200, 100, 50)).save(buffer, "PNG")
    assert decode_image(buffer.getvalue())[0, 0].tolist() == [200, 100, 50]


WITH_ALPHA = {
    "PNG": {},
    "TIFF": {},
    "BMP": {},
    "JPEG2000": {},
    "WEBP": {"lossless": True, "exact": True},
    "AVIF": {"quality": 100},
}


@pytest.mark.parametrize("kind", WITH_ALPHA)
@pytest.mark.parametrize("alpha", [0, 60, 255])
@pytest.mark.parametrize("colour", [(200, 100, 50), (20, 180, 240)])
def test_alpha_is_dropped_without_blending(
    kind: str, alpha: int, colour: tuple[int, int, int]
) -> None:
    if kind == "AVIF" and not features.check("avif"):
        pytest.skip("Pillow was built without AVIF")
    buffer = io.BytesIO()
    Image.new("RGBA", (16, 8), (*colour, alpha)).save(buffer, kind, **WITH_ALPHA[kind])
    # AVIF is YUV; with red and blue exchanged a value would be off by 150.
    allowed = 3 if kind == "AVIF" else 0
    assert np.abs(decode_image(buffer.getvalue())[4, 8].astype(int) - colour).max() <= allowed


@pytest.mark.parametrize("kind", ["GIF", "PNG"])
def test_the_transparent_colour_of_a_palette_is_a_colour(kind: str) -> None:
    image = Image.new("P", (8, 4), 1)
    image.putpalette([0, 0, 0, 200, 100, 50, 20, 180, 240])
    image.paste(2, (0, 0, 4, 4))
    buffer = io.BytesIO()
    image.save(buffer, kind, transparency=0)
    found = decode_image(buffer.getvalue())
    assert found[0, [0, 7]].tolist() == [[20, 180, 240], [200, 100, 50]]


def tiff(values: np.ndarray) -> bytes:
    return cv2.imencode(".tiff", values)[1].tobytes()


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (tiff(np.full((4, 8), -1, np.int16)), "values below 0, down to -1"),
        (tiff(np.zeros((4, 8), np.int32)), "values of 32 bits, allowed are 8 and 16"),
        (tiff(np.zeros((4, 8, 3), np.float64)), "a TIFF of a form that is not read"),
        (b"version https://git-lfs.github.com/spec/v1\n", "`git lfs pull` fetches the image"),
        (b"\0\0\0\x18ftypheic" + b"\0" * 50, "HEIC, which is not read"),
    ],
)
def test_what_is_not_read_is_named(data: bytes, says: str) -> None:
    for read in (decode_image, deep_values):
        with pytest.raises(BadImageError, match=says):
            read(data)


def test_values_with_a_sign_and_none_below_zero_are_read() -> None:
    deep = np.array([[0, 256, 32767]], np.int16)
    assert decode_image(tiff(deep))[0, :, 0].tolist() == [0, 1, 127]


def test_white_of_a_ppm_is_white() -> None:
    assert decode_image(b"P5 3 1 100 " + bytes([0, 40, 100]))[0, :, 1].tolist() == [0, 102, 255]


@pytest.mark.parametrize("channels", [1, 3])
def test_sixteen_bits_are_scaled_to_eight(channels: int) -> None:
    deep = PICTURE[..., :channels].astype(np.uint16) * 257
    data = cv2.imencode(".png", deep)[1].tobytes()
    image = decode_image(data)
    assert np.array_equal(image[..., ::-1][..., :channels], PICTURE[..., :channels])


def test_first_frame_of_an_animation() -> None:
    frames = [Image.new("RGB", (8, 4), colour) for colour in ((255, 0, 0), (0, 0, 255))]
    buffer = io.BytesIO()
    frames[0].save(buffer, "GIF", save_all=True, append_images=frames[1:])
    assert decode_image(buffer.getvalue())[0, 0].tolist() == [255, 0, 0]


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_ignored_unless_asked_for(orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    assert np.array_equal(
        decode_image(encode("RGB", "JPEG", exif=exif)), decode_image(FORMATS["jpeg"])
    )


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("kept", [0.5, 0.9])
def test_truncated_file_is_refused(name: str, kept: float) -> None:
    data = FORMATS[name]
    with pytest.raises(BadImageError, match=r"truncated|damaged|cannot be decoded|not an image"):
        decode_image(data[: int(len(data) * kept)])


@pytest.mark.parametrize("padding", [b"", b"\0" * 4096, b"\0" * 3 + b"trailer"])
@pytest.mark.parametrize("lost", [1, 2, 10, 1000])
def test_jpeg_that_lost_its_end_is_refused(lost: int, padding: bytes) -> None:
    data = cv2.imencode(".jpg", textured(300, 400, 1))[1].tobytes()
    with pytest.raises(BadImageError, match="truncated JPEG"):
        decode_image(data[:-lost] + padding)


def test_bytes_after_the_end_of_a_jpeg_do_no_harm() -> None:
    data = FORMATS["jpeg"] + b"\r\nappended by a camera"
    assert np.array_equal(decode_image(data), decode_image(FORMATS["jpeg"]))


@pytest.mark.parametrize(
    ("data", "text"),
    [
        (b"", "empty file"),
        (b"<html><body>404</body></html>", "not an image of a known format; begins with '<html>"),
        (b"\xff\xd8\xff", "not an image"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n", "not an image of a known format"),
        (bytes(range(256)) * 4, "not an image"),
        (png_claiming(20_000, 20_000), "pixels"),
        (png_claiming(9_000, 10_000), f"10000 pixels, allowed are {MAX_PIXELS}"),
        (png_claiming(64, 64), "cannot be decoded"),
    ],
    ids=["empty", "html", "jpeg start", "eps", "noise", "bomb", "too large", "no pixels"],
)
@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_unusable_bytes_are_refused(data: bytes, text: str) -> None:
    with pytest.raises(BadImageError, match=text):
        decode_image(data)


def test_limit_on_pixels_can_be_lowered() -> None:
    assert decode_image(FORMATS["png"], max_pixels=64 * 96).shape == (64, 96, 3)
    with pytest.raises(BadImageError, match="96x64 pixels, allowed are 6143"):
        decode_image(FORMATS["png"], max_pixels=64 * 96 - 1)


def test_other_size_than_annotated_is_refused() -> None:
    assert decode_image(FORMATS["jpeg"], size=(64, 96)).shape == (64, 96, 3)
    with pytest.raises(BadImageError, match="is 96x64 pixels, but annotated as 100x64"):
        decode_image(FORMATS["jpeg"], size=(64, 100))
    with pytest.raises(BadImageError, match=r"annotated as 64x96 \(width and height swapped\?\)"):
        decode_image(FORMATS["jpeg"], size=(96, 64))


def test_message_names_the_file(tmp_path: Path) -> None:
    path = tmp_path / "a.jpg"
    with pytest.raises(BadImageError, match=r"a\.jpg: cannot be read \(No such file"):
        read_image(path)
    path.write_bytes(b"")
    with pytest.raises(BadImageError, match=r"a\.jpg: empty file"):
        read_image(path)
    with pytest.raises(BadImageError, match="cannot be read"):
        read_image(tmp_path)
    path.write_bytes(FORMATS["jpeg"])
    assert read_image(path, size=(64, 96)).shape == (64, 96, 3)


@pytest.mark.skipif(not features.check("avif"), reason="Pillow was built without AVIF")
def test_avif() -> None:
    data = encode("RGB", "AVIF")
    assert np.abs(decode_image(data) - pillow_rgb(data)).max() <= 2


def test_a_pipe_is_no_image_and_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.jpg")
    for read in (read_image, read_header):
        with pytest.raises(BadImageError, match=r"a\.jpg: cannot be read \(not a file\)"):
            read(tmp_path / "a.jpg")


@pytest.mark.parametrize(
    ("size", "message"), [(2**40, "bytes, allowed are"), (2**26, "not an image of a known format")]
)
def test_a_file_too_large_to_be_an_image_is_not_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: int, message: str
) -> None:
    with (tmp_path / "a.jpg").open("wb") as file:
        file.truncate(size)
    monkeypatch.setattr("orchestrator.data.decode.decode_image", None)
    with pytest.raises(BadImageError, match=message):
        read_image(tmp_path / "a.jpg")
