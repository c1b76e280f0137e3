"""Image files that cannot be used: cut, damaged, of no known format, larger than they may be."""

from __future__ import annotations

import io
import os
import struct
import zlib
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from catalogue_case import Case, Verdict
from PIL import Image, features

from orchestrator.data.decode import read_image

HEIGHT, WIDTH = 30, 40


def encoded(mode: str, kind: str, **options: Any) -> bytes:
    """A picture with detail everywhere, so that no half of its file is idle."""
    noise = np.random.Generator(np.random.PCG64(4)).integers(0, 256, (HEIGHT, WIDTH, 3))
    buffer = io.BytesIO()
    Image.fromarray(noise.astype(np.uint8)).convert(mode).save(buffer, kind, **options)
    return buffer.getvalue()


SOUND = {
    "jpeg": encoded("RGB", "JPEG"),
    "progressive jpeg": encoded("RGB", "JPEG", progressive=True),
    "grey jpeg": encoded("L", "JPEG"),
    "cmyk jpeg": encoded("CMYK", "JPEG"),
    "png": encoded("RGB", "PNG"),
    "grey png": encoded("L", "PNG"),
    "alpha png": encoded("RGBA", "PNG"),
    "palette png": encoded("P", "PNG"),
    "16-bit png": encoded("I;16", "PNG"),
    "bmp": encoded("RGB", "BMP"),
    "tiff": encoded("RGB", "TIFF"),
    "lzw tiff": encoded("RGB", "TIFF", compression="tiff_lzw"),
    "deflate tiff": encoded("RGB", "TIFF", compression="tiff_adobe_deflate"),
    "gif": encoded("P", "GIF"),
    "webp": encoded("RGB", "WEBP"),
    "lossless webp": encoded("RGB", "WEBP", lossless=True),
    "ppm": encoded("RGB", "PPM"),
    "pgm": encoded("L", "PPM"),
}
JPEG, PNG, GIF, BMP = (SOUND[name] for name in ("jpeg", "png", "gif", "bmp"))

#: Starts of files that are no images, or of a kind that no decoder here may see.
FOREIGN = {
    "web page": b"<!DOCTYPE html><html><body>404 Not Found</body></html>",
    "json": b'{"error": "not found"}',
    "vector drawing": b'<svg xmlns="http://www.w3.org/2000/svg" width="40" height="30"/>',
    "postscript": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 40 30\n",
    "pdf": b"%PDF-1.7\n%\xe2\xe3\xcf\xd3\n",
    "photoshop": b"8BPS\0\x01" + b"\0" * 6 + struct.pack(">HIIHH", 3, HEIGHT, WIDTH, 8, 3),
    "icon": encoded("RGB", "ICO"),
    "targa": encoded("RGB", "TGA"),
    "pcx": encoded("RGB", "PCX"),
    "sgi": encoded("RGB", "SGI"),
    "spider": b"\0" * 1024,
    "x bitmap": b"#define im_width 8\n#define im_height 1\nstatic char im_bits[] = {0x00};\n",
    "x pixmap": b'/* XPM */\nstatic char *a[] = {"1 1 1 1", "a c #000000", "a"};\n',
    "mp4": b"\0\0\0\x18ftypmp42\0\0\0\0mp42isom",
    "matroska": b"\x1aE\xdf\xa3" + b"\0" * 60,
    "wave": b"RIFF\x24\0\0\0WAVEfmt ",
    "avi": b"RIFF\x24\0\0\0AVI LIST",
    "numpy": b"\x93NUMPY\x01\0v\0{'descr': '|u1', 'fortran_order': False, 'shape': (2, 2), }\n",
    "pickle": b"\x80\x04\x95\x05\0\0\0\0\0\0\0K\x01.",
    "program": b"\x7fELF\x02\x01\x01" + b"\0" * 57,
    "git lfs pointer": b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n",
    "text": b"a picture of a dog\n",
    "blanks": b" \n" * 100,
    "zeros": b"\0" * 4096,
    "ones": b"\xff" * 4096,
    "all bytes in turn": bytes(range(256)) * 4,
    "noise": np.random.Generator(np.random.PCG64(5)).bytes(2048),
}


def chunk(kind: bytes, body: bytes, *, crc: int | None = None) -> bytes:
    """One chunk of a PNG (ISO/IEC 15948, 5.3)."""
    checksum = zlib.crc32(kind + body) if crc is None else crc
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", checksum)


def png(
    width: int = WIDTH,
    height: int = HEIGHT,
    *,
    depth: int = 8,
    colour: int = 2,
    method: int = 0,
    interlace: int = 0,
    data: bytes | None = None,
    header_crc: int | None = None,
    before: bytes = b"",
) -> bytes:
    """A PNG with the given header; the data default to a few rows."""
    header = struct.pack(">IIBBBBB", width, height, depth, colour, method, 0, interlace)
    body = chunk(b"IDAT", zlib.compress(b"\0" * 640)) if data is None else data
    return (
        b"\x89PNG\r\n\x1a\n"
        + before
        + chunk(b"IHDR", header, crc=header_crc)
        + body
        + chunk(b"IEND", b"")
    )


def patched(data: bytes, position: int, new: bytes) -> bytes:
    """``data`` with the bytes at ``position`` replaced."""
    return data[:position] + new + data[position + len(new) :]


def without_segment(marker: int) -> bytes:
    """The JPEG without its segments of a kind (ITU-T T.81, B.1.1.3)."""
    data, position = JPEG, 2
    while data[position + 1] != 0xDA:
        (length,) = struct.unpack(">H", data[position + 2 : position + 4])
        if data[position + 1] == marker:
            data = data[:position] + data[position + 2 + length :]
        else:
            position += 2 + length
    return data


def ppm(width: str, height: str, levels: str, body: bytes = b"\0" * 12) -> bytes:
    return f"P6\n{width} {height}\n{levels}\n".encode() + body


def tiff(*entries: tuple[int, int, int, int], start: int = 8, following: int = 0) -> bytes:
    """A little-endian TIFF of the given directory entries: tag, type, count, value."""
    body = struct.pack("<H", len(entries))
    body += b"".join(struct.pack("<HHII", *entry) for entry in entries)
    return b"II*\0" + struct.pack("<I", start) + body + struct.pack("<I", following)


def tiff_of(width: int, height: int, *, offset: int = 1 << 20) -> bytes:
    """A TIFF without its pixels."""
    values = {256: width, 257: height, 258: 8, 259: 1, 262: 1, 273: offset, 277: 1, 278: height}
    return tiff(*((tag, 4, 1, value) for tag, value in values.items()), (279, 4, 1, 1200))


_SOF = JPEG.index(b"\xff\xc0")
_FRAME = GIF.index(b"\x2c")

#: Name to bytes and what is said of them.
DAMAGED = {
    "jpeg without quantisation tables": (without_segment(0xDB), "decoded"),
    "jpeg without frame header": (without_segment(0xC0), "not an image"),
    "jpeg without end marker": (JPEG[:-2], "truncated JPEG"),
    "jpeg padded with zeros": (JPEG[:-200] + b"\0" * 200, "truncated JPEG"),
    "jpeg without scan": (JPEG[: JPEG.index(b"\xff\xda")] + b"\xff\xd9", ""),
    "jpeg of no height": (patched(JPEG, _SOF + 5, b"\0\0"), ""),
    "jpeg of no width": (patched(JPEG, _SOF + 7, b"\0\0"), ""),
    "jpeg of 12 bits": (patched(JPEG, _SOF + 4, b"\x0c"), ""),
    "jpeg of two components": (patched(JPEG, _SOF + 9, b"\x02"), ""),
    "jpeg of no components": (patched(JPEG, _SOF + 9, b"\0"), ""),
    "jpeg with lossless frame": (patched(JPEG, _SOF + 1, b"\xc3"), ""),
    "jpeg that is hierarchical": (patched(JPEG, _SOF + 1, b"\xc5"), ""),
    "jpeg with segment beyond its end": (patched(JPEG, 4, b"\xff\xff"), ""),
    "jpeg after a line break": (b"\n" + JPEG, "not an image"),
    "jpeg in text mode": (JPEG.replace(b"\n", b"\r\n")[:400], ""),
    "jpeg as base64": (b"data:image/jpeg;base64,/9j/4AAQSkZJRg==", "not an image"),
    "png with header checksum wrong": (png(header_crc=1), ""),
    "png with data checksum wrong": (png(data=chunk(b"IDAT", b"x" * 40, crc=1)), "decoded"),
    "png with data that are no zlib": (png(data=chunk(b"IDAT", b"x" * 40)), "decoded"),
    "png without data": (png(data=b""), "decoded"),
    "png with too few rows": (png(), "decoded"),
    "png of no width": (png(0), ""),
    "png of no height": (png(height=0), ""),
    "png of negative width": (png(0x80000000), ""),
    "png of 3 bits": (png(depth=3), "not an image"),
    "png of unknown colour": (png(colour=5), "not an image"),
    "png of unknown compression": (png(method=7), "decoded"),
    "png of unknown interlacing": (png(interlace=9), "decoded"),
    "png palette missing": (png(colour=3), "decoded"),
    "png with data before header": (png(before=chunk(b"IDAT", b"")), ""),
    "png with endless chunk": (png(data=b"\xff\xff\xff\xffIDAT"), "truncated PNG"),
    "png after text mode": (PNG.replace(b"\r\n", b"\n"), "not an image"),
    "png garbled": (patched(PNG, len(PNG) // 2, b"\xaa" * 64), "decoded"),
    "png with zeros inside": (patched(PNG, 60, b"\0" * 2000), "decoded"),
    "gif of no size": (patched(GIF, 6, b"\0" * 4), ""),
    "gif without frame": (GIF[:_FRAME] + b";", ""),
    "gif with unknown code size": (patched(GIF, _FRAME + 10, b"\xff"), "decoded"),
    "gif with frame outside": (patched(GIF, _FRAME + 1, b"\xff\xff\xff\xff"), ""),
    "gif of another version": (b"GIF99a" + GIF[6:], "not an image"),
    "bmp of no width": (patched(BMP, 18, b"\0" * 4), ""),
    "bmp of negative width": (patched(BMP, 18, b"\xff\xff\xff\xff"), ""),
    "bmp of 7 bits": (patched(BMP, 28, b"\x07\0"), ""),
    "bmp of unknown compression": (patched(BMP, 30, b"\x63\0\0\0"), ""),
    "bmp with header of unknown size": (patched(BMP, 14, b"\x07\0\0\0"), ""),
    "tiff without entries": (tiff(), ""),
    "tiff with directory beyond its end": (tiff((256, 4, 1, 40), start=1 << 30), ""),
    "tiff with directory in its header": (tiff((256, 4, 1, 40), start=0), ""),
    "tiff with endless tag": (tiff((256, 4, 0xFFFFFFFF, 8)), ""),
    "tiff without height": (tiff((256, 4, 1, 40)), ""),
    "tiff with pixels beyond its end": (tiff_of(WIDTH, HEIGHT), "decoded"),
    "tiff of no size": (tiff_of(0, 0), ""),
    "webp with frame of no kind": (b"RIFF\x1c\0\0\0WEBPVP8?\x10\0\0\0" + b"\0" * 16, ""),
    "webp of zeros": (b"RIFF\x1c\0\0\0WEBPVP8 \x10\0\0\0" + b"\0" * 16, ""),
    "ppm of negative width": (ppm("-4", "1", "255"), "not an image"),
    "ppm of no levels": (ppm("4", "1", "0"), ""),
    "ppm of 70000 levels": (ppm("4", "1", "70000"), ""),
    "ppm of text": (ppm("wide", "high", "255"), "not an image"),
    "ppm without pixels": (ppm("40", "30", "255", b""), "decoded"),
    "jpeg 2000 without stream": (b"\0\0\0\x0cjP  \r\n\x87\n" + b"\0" * 32, ""),
    "avif without image": (b"\0\0\0\x1cftypavif\0\0\0\0avifmif1miaf", ""),
}

#: Headers that claim more than is decoded; none of the files has 4 kB.
BOMBS = {
    "png, 400 megapixels": png(20_000, 20_000),
    "png, 90 megapixels": png(9_000, 10_000),
    "png, as wide as the format allows": png(2**31 - 1, 1),
    "png, as large as the format allows": png(2**31 - 1, 2**31 - 1),
    "jpeg, as large as the format allows": patched(JPEG, _SOF + 5, b"\xff\xff\xff\xff"),
    "gif, as large as the format allows": patched(GIF, 6, b"\xff\xff\xff\xff"),
    "bmp, 2 thousand megapixels": patched(BMP, 18, struct.pack("<ii", 50_000, 50_000)),
    "tiff, 10 thousand megapixels": tiff_of(100_000, 100_000),
    "ppm, 10 thousand megapixels": ppm("100000", "100000", "255"),
    "ppm, width of thirty digits": ppm("9" * 30, "1", "255"),
}


def _scans(count: int) -> bytes:
    """A progressive JPEG whose last scan stands there again and again."""
    data = SOUND["progressive jpeg"]
    start = data.rindex(b"\xff\xda")
    return data[:start] + data[start:-2] * count + b"\xff\xd9"


def _lying_avif() -> bytes:
    """An AVIF of a kilobyte whose header says 64x64, and whose frame has nine megapixels."""
    buffer = io.BytesIO()
    Image.new("RGB", (3000, 3000)).save(buffer, "AVIF")
    data = buffer.getvalue()
    at = data.index(b"ispe") + 8
    return patched(data, at, struct.pack(">II", 64, 64))


#: Files that would cost far more than they say: what is said of each.
COSTLY = {
    "jpeg of 3,000 scans": (_scans(3000), "more than 64 scans"),
    **({"avif": (_lying_avif(), "a frame inside")} if features.check("avif") else {}),
}


def build_image(data: bytes, name: str, folder: Path) -> partial[Any]:
    (folder / name).write_bytes(data)
    return partial(read_image, folder / name)


def _sized(size: tuple[int, int], folder: Path) -> partial[Any]:
    (folder / "a.jpg").write_bytes(JPEG)
    return partial(read_image, folder / "a.jpg", size=size)


def _special(name: str, folder: Path) -> partial[Any]:
    path = folder / "a.jpg"
    match name:
        case "directory":
            path.mkdir()
        case "pipe":
            os.mkfifo(path)
        case "link to nothing":
            path.symlink_to("gone.jpg")
        case "link to itself":
            path.symlink_to("a.jpg")
        case "link to an endless device":
            path.symlink_to("/dev/zero")
        case "file on the way":
            path.write_bytes(JPEG)
            path = path / "b.jpg"
        case "name too long":
            path = folder / ("a" * 300 + ".jpg")
        case "null byte in its name":
            path = folder / "a\0.jpg"
        case "a terabyte of nothing":
            with path.open("wb") as file:
                file.truncate(1 << 40)
        case "64 megabytes of nothing":
            with path.open("wb") as file:
                file.truncate(1 << 26)
    return partial(read_image, path)


def cases() -> Iterator[Case]:
    """All entries of this kind."""

    def case(name: str, build: Any, says: str, where: str = "a.jpg") -> Case:
        return Case("image", name, build, Verdict.QUARANTINED, where, says)

    yield case("empty", partial(build_image, b"", "a.jpg"), "empty file")
    for kind, data in SOUND.items():
        file = f"a.{kind.split()[-1]}"
        for part, kept in (("half", 0.5), ("nine tenths", 0.9), ("a few bytes", 0.02)):
            cut = data[: max(3, int(len(data) * kept))]
            yield case(f"{part} of a {kind}", partial(build_image, cut, file), "", file)
    for name, data in FOREIGN.items():
        yield case(
            f"{name} called .jpg", partial(build_image, data, "a.jpg"), "not an image of a known"
        )
    for name, (data, says) in DAMAGED.items():
        yield case(name, partial(build_image, data, "a.jpg"), says)
    for name, data in BOMBS.items():
        yield case(f"bomb: {name}", partial(build_image, data, "a.jpg"), "")
    for name, (data, says) in COSTLY.items():
        yield case(f"bomb: {name}", partial(build_image, data, "a.jpg"), says)
    for name, size, says in (
        ("wider than annotated", (30, 39), "is 40x30 pixels, but annotated as 39x30"),
        ("lower than annotated", (31, 40), "is 40x30 pixels, but annotated as 40x31"),
        ("annotated the other way round", (40, 30), "width and height swapped?"),
        ("annotated without size", (0, 0), "annotated as 0x0"),
    ):
        yield case(name, partial(_sized, size), says)
    for name in ("directory", "pipe", "link to an endless device"):
        yield case(name, partial(_special, name), "cannot be read (not a file)")
    for name in ("link to nothing", "link to itself", "file on the way"):
        yield case(name, partial(_special, name), "cannot be read")
    null = "null byte in its name"
    yield case(null, partial(_special, null), "embedded null", "a\0.jpg")
    yield case("name too long", partial(_special, "name too long"), "cannot be read", "aaa.jpg")
    yield case("missing", partial(_special, "missing"), "cannot be read (No such file")
    for name in ("a terabyte of nothing", "64 megabytes of nothing"):
        yield case(name, partial(_special, name), "")
