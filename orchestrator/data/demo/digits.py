"""Builds a small detection data set out of what is installed: handwritten digits in scenes.

``python -m orchestrator.data.demo.digits OUT`` writes a folder in COCO layout (``images/*.jpg``,
``annotations/instances_{train,val}.json``) with scikit-learn's handwritten digits (UCI, 8x8),
enlarged, rotated, coloured and partly overlapping, over textures and over scikit-learn's two
photographs. Training and validation scenes use different digits. Everything is a function of the
seed: the same call writes the same bytes, and a second one finds the finished set and does nothing.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import shutil
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from sklearn.datasets import load_digits, load_sample_image

from orchestrator.data.demo.scenes import SceneSource, render_scene
from orchestrator.errors import OrchestratorError, StorageError

#: Raised whenever the same recipe would write other bytes.
FORMAT = 2
_RECIPE_FILE = "digits.json"
_JPEG_QUALITY = 92
#: Every so many digits one is set aside for validation scenes.
_VAL_EVERY = 5
_LICENCES = [
    {
        "id": 1,
        "name": "CC BY 4.0: Optical Recognition of Handwritten Digits (E. Alpaydin, C. Kaynak)",
        "url": "https://archive.ics.uci.edu/dataset/80",
    },
    {
        "id": 2,
        "name": "CC BY 2.0: china.jpg and flower.jpg of scikit-learn (danielbuechele, vultilion)",
        "url": "https://creativecommons.org/licenses/by/2.0/",
    },
]


@dataclass(frozen=True)
class Recipe:
    """What a digits data set is a function of.

    Attributes:
        train: number of training scenes.
        val: number of validation scenes.
        seed: of everything random in them.
    """

    train: int = 800
    val: int = 100
    seed: int = 1


def build_digits(out: Path, recipe: Recipe) -> bool:
    """Write the data set, unless it is there already.

    It is written beside ``out`` and moved there when complete, so that nobody sees half of it.

    Args:
        out: folder of the data set.
        recipe: what to build.

    Returns:
        Whether anything was written.

    Raises:
        StorageError: ``out`` holds something else.
    """
    if is_complete(out, recipe):
        return False
    if out.exists() and not (out / _RECIPE_FILE).exists() and any(out.iterdir()):
        raise StorageError(
            f"{out} is not empty and not a digits data set; choose another folder or empty it"
        )
    out.parent.mkdir(parents=True, exist_ok=True)
    building = Path(tempfile.mkdtemp(prefix=f".{out.name}-", dir=out.parent))
    try:
        _write(building, recipe)
        if out.exists():
            shutil.rmtree(out)
        building.chmod(0o755)
        building.rename(out)
    finally:
        shutil.rmtree(building, ignore_errors=True)
    return True


def is_complete(out: Path, recipe: Recipe) -> bool:
    """Whether ``out`` holds exactly the data set of ``recipe``, checked byte by byte."""
    try:
        note = json.loads((out / _RECIPE_FILE).read_text())
    except (FileNotFoundError, NotADirectoryError, ValueError):
        return False
    return bool(note == _note(out, recipe))


def _note(folder: Path, recipe: Recipe) -> dict[str, Any]:
    """Recipe and digest of all files, as ``digits.json`` records them."""
    sha = hashlib.sha256()
    for path in sorted(folder.glob("*/*")):
        sha.update(f"{path.relative_to(folder).as_posix()}\0".encode())
        sha.update(hashlib.sha256(path.read_bytes()).digest())
    return {"format": FORMAT, **asdict(recipe), "sha256": sha.hexdigest()}


def _write(folder: Path, recipe: Recipe) -> None:
    (folder / "images").mkdir()
    (folder / "annotations").mkdir()
    photographs = [_photograph(name) for name in ("china.jpg", "flower.jpg")]
    digits = load_digits()
    held_out = np.arange(len(digits.target)) % _VAL_EVERY == 0
    for number, (split, count) in enumerate((("train", recipe.train), ("val", recipe.val))):
        pool = held_out if split == "val" else ~held_out
        source = SceneSource(
            glyphs=digits.images[pool],
            labels=digits.target[pool].astype(np.int64),
            photographs=photographs,
        )
        tree = _write_split(folder, split, number, count, source, recipe.seed)
        text = json.dumps(tree, separators=(",", ":"))
        (folder / "annotations" / f"instances_{split}.json").write_text(text)
    (folder / _RECIPE_FILE).write_text(json.dumps(_note(folder, recipe), indent=2) + "\n")


def _photograph(name: str) -> NDArray[np.uint8]:
    image: NDArray[np.uint8] = load_sample_image(name)
    return image


def _write_split(
    folder: Path, split: str, number: int, count: int, source: SceneSource, seed: int
) -> dict[str, Any]:
    """Write the scenes of one split; returns its COCO tree."""
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for index in range(count):
        scene = render_scene(source, seed=seed, split=number, index=index)
        name = f"{split}_{index + 1:05d}.jpg"
        done, data = cv2.imencode(
            ".jpg",
            cv2.cvtColor(scene.image, cv2.COLOR_RGB2BGR),
            [cv2.IMWRITE_JPEG_QUALITY, _JPEG_QUALITY],
        )
        assert done, "OpenCV encodes any 8-bit image as JPEG"
        (folder / "images" / name).write_bytes(data.tobytes())
        image_id = number * 1_000_000 + index + 1
        height, width = scene.image.shape[:2]
        images.append(
            {"id": image_id, "file_name": name, "width": width, "height": height, "license": 1}
        )
        annotations += [
            {
                "id": number * 100_000_000 + len(annotations) + offset + 1,
                "image_id": image_id,
                "category_id": placed.label + 1,
                "bbox": list(placed.box),
                "area": placed.area,
                "iscrowd": 0,
            }
            for offset, placed in enumerate(scene.placed)
        ]
    return {
        "info": {"description": "Handwritten digits in scenes", "version": str(FORMAT)},
        "licenses": _LICENCES,
        "images": images,
        "annotations": annotations,
        "categories": [{"id": digit + 1, "name": str(digit)} for digit in range(10)],
    }


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line; returns the exit code."""
    defaults = Recipe()
    parser = argparse.ArgumentParser(
        prog="python -m orchestrator.data.demo.digits", description="Build the digits data set."
    )
    parser.add_argument("out", type=Path, help="folder to write")
    parser.add_argument("--train", type=int, default=defaults.train, help="training scenes")
    parser.add_argument("--val", type=int, default=defaults.val, help="validation scenes")
    parser.add_argument("--seed", type=int, default=defaults.seed)
    options = parser.parse_args(arguments)
    recipe = Recipe(train=options.train, val=options.val, seed=options.seed)
    try:
        written = build_digits(options.out, recipe)
    except OrchestratorError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    state = "written" if written else "already complete"
    print(f"{options.out}: {recipe.train} training and {recipe.val} validation scenes, {state}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
