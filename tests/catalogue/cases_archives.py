"""Archives and other containers given where a file of annotations or an experiment is wanted."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import tarfile
import zipfile
from collections.abc import Iterator
from functools import partial

from cases_coco import TEXT, build_coco
from cases_images import PNG, build_image
from cases_lines import build_classes, build_labels, build_list, build_txt
from cases_voc import XML, build_voc
from cases_yaml import build_yaml
from catalogue_case import Case, Verdict


def _zip() -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr(zipfile.ZipInfo("instances.json"), TEXT)
    return buffer.getvalue()


def _tar() -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        member = tarfile.TarInfo("instances.json")
        member.size = len(TEXT)
        archive.addfile(member, io.BytesIO(TEXT.encode()))
    return buffer.getvalue()


ARCHIVES = {
    "zip": _zip(),
    "tar": _tar(),
    "gzip": gzip.compress(TEXT.encode(), mtime=0),
    "bzip2": bz2.compress(TEXT.encode()),
    "xz": lzma.compress(TEXT.encode()),
    "parquet": b"PAR1\x15\x04\x15\0\x15\0\x4c\x15\0\x15\0\0\0\xfe\xffPAR1",
    "png": PNG,
}


def cases() -> Iterator[Case]:
    """All entries of this kind."""
    for name, data in ARCHIVES.items():
        for kind, build, where in (
            ("coco", partial(build_coco, data), "instances.json"),
            ("txt", partial(build_txt, data), "train.txt:"),
            ("yolo", partial(build_labels, data), "a.txt:"),
            ("yolo list", partial(build_list, data), "train.txt:"),
            ("voc", partial(build_voc, data, b"a\n"), "a.xml:1: "),
            ("voc set", partial(build_voc, XML.encode(), data), "train.txt:"),
            ("classes", partial(build_classes, data), "classes.txt:"),
        ):
            yield Case("archive", f"{name} as {kind}", build, Verdict.DATA, where, "")
        build = partial(build_yaml, data, ())
        yield Case("archive", f"{name} as yaml", build, Verdict.CONFIG, "experiment.yaml:1:", "")
        if name != "png":
            build = partial(build_image, data, "a.jpg")
            yield Case(
                "archive", f"{name} as image", build, Verdict.QUARANTINED, "a.jpg", "not an image"
            )
