"""Detections in a camera's or video's frames as they come, shown in a window or drawn to files.

What ``orchestrator predict`` resumes has to lie somewhere; a camera has no past. So this runs in
one process, frame by frame, until the frames, the limit or the viewer's patience end.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import cv2
import numpy as np
import torch
from numpy.typing import NDArray

from orchestrator.errors import ConfigError, DataError
from orchestrator.pages.drawing import DISPLAY_LIMIT, DISPLAY_SCORE, draw
from orchestrator.predict.draw_predictions import (
    frame_name,
    plain_marks,
    shown_of,
    write_drawing,
)
from orchestrator.predict.inputs import open_video
from orchestrator.predict.loading import LoadedDetector
from orchestrator.predict.prediction import Prediction, kept, network_of
from orchestrator.predict.predictor import DetectOptions, detect

#: Keys that close the window: q and escape.
_CLOSING: Final = (ord("q"), 27)


@dataclass(frozen=True)
class Viewing:
    """What becomes of the frames beside their detections.

    Attributes:
        show: in a window; q or escape ends it.
        folder: for a JPEG of each frame with its detections; None for none.
        threshold: lowest score that is drawn.
        limit: of frames; None for all.
    """

    show: bool = False
    folder: Path | None = None
    threshold: float = DISPLAY_SCORE
    limit: int | None = None


def watch(
    loaded: LoadedDetector,
    how: DetectOptions,
    source: int | Path,
    viewing: Viewing,
    *,
    threads: int,
    on_progress: Callable[[int], None] = lambda _: None,
) -> list[Prediction]:
    """Detect in frames until they end, the limit is reached, the window is closed or Ctrl-C.

    Args:
        loaded: the detector.
        how: views and post-processing.
        source: number of a camera, or a video file.
        viewing: what else to do with the frames.
        threads: CPU threads.
        on_progress: told the number of frames that are done.

    Returns:
        One prediction a frame, named ``SOURCE#000000`` and so on as ``predict`` names them.

    Raises:
        ConfigError: a window was asked for where there can be none, or a file that is no drawing
            has the name of one.
        DataError: the source cannot be opened, or has no frame.
    """
    if viewing.show:
        _require_windows()
    torch.set_num_threads(threads)
    network = network_of(loaded)
    found: list[Prediction] = []
    try:
        with _frames(source) as frames:
            for pixels in frames:
                (one,) = detect(network, [pixels], how, prepare=loaded.prepare, batch_size=1)
                key = f"{_name(source)}#{len(found):06d}"
                found.append(kept(key, pixels.shape[0], pixels.shape[1], one))
                on_progress(len(found))
                if not _view(pixels, found[-1], loaded, viewing) or len(found) == viewing.limit:
                    break
    except KeyboardInterrupt:
        # The way to stop watching a camera; what was seen is kept.
        pass
    finally:
        if viewing.show:
            cv2.destroyAllWindows()
    if not found:
        raise DataError(f"{_name(source)}: not one frame could be read")
    return found


def _name(source: int | Path) -> str:
    return f"camera-{source}" if isinstance(source, int) else str(source)


@contextmanager
def _frames(source: int | Path) -> Iterator[Iterator[NDArray[np.uint8]]]:
    """Frames of a source, (h, w, 3) RGB."""
    capture = cv2.VideoCapture(source) if isinstance(source, int) else open_video(source)
    try:
        if not capture.isOpened():
            raise DataError(
                f"camera {source}: OpenCV cannot open it. Next: see which there are with "
                "`ls /dev/video*`, and that you may read them"
            )
        yield _decoded(capture)
    finally:
        capture.release()


def _decoded(capture: cv2.VideoCapture) -> Iterator[NDArray[np.uint8]]:
    while True:
        done, pixels = capture.read()
        if not done:
            return
        yield np.ascontiguousarray(pixels[..., ::-1]).astype(np.uint8, copy=False)


def _view(
    pixels: NDArray[np.uint8], one: Prediction, loaded: LoadedDetector, viewing: Viewing
) -> bool:
    """Show and keep a frame; False when its viewer has had enough."""
    if not viewing.show and viewing.folder is None:
        return True
    shown = shown_of(one, viewing.threshold, DISPLAY_LIMIT)
    drawn = draw(pixels, plain_marks(shown, loaded.label_map))
    if viewing.folder is not None:
        write_drawing(viewing.folder / frame_name(one.key), drawn)
    if not viewing.show:
        return True
    cv2.imshow(loaded.title, drawn[..., ::-1])
    return cv2.waitKey(1) & 0xFF not in _CLOSING


def _require_windows() -> None:
    """Refuse ``--show`` where OpenCV would end the process, or cannot draw windows at all."""
    if sys.platform == "linux" and not (
        os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")
    ):
        raise ConfigError(
            "--show: there is no screen here (DISPLAY is not set). Next: keep the frames as files "
            "with --draw FOLDER"
        )
    try:
        cv2.namedWindow("orchestrator")
        cv2.destroyWindow("orchestrator")
    except cv2.error as error:
        raise ConfigError(
            "--show: this build of OpenCV draws no windows. Next: pip install opencv-python in "
            "place of opencv-python-headless, or keep the frames as files with --draw FOLDER"
        ) from error
