"""Images, folders, patterns, lists, videos and objects in a store, as one list of pictures."""

from __future__ import annotations

import glob
import hashlib
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import cv2
import numpy as np
from numpy.typing import NDArray

from orchestrator.data.decode import BadImageError, Decoding, read_image
from orchestrator.data.readers.text_files import read_lines
from orchestrator.errors import DataError, StorageError, nearest_path
from orchestrator.layouts.files import IMAGE_SUFFIXES, exists, is_file, is_folder, is_hidden
from orchestrator.predict.remote import list_remote, read_remote, stamps
from orchestrator.storage.address import Place, is_remote

VIDEO_SUFFIXES: Final = (".mp4", ".avi", ".mov", ".mkv", ".webm", ".mpg", ".mpeg")
LIST_SUFFIX: Final = ".txt"
#: How pictures that belong to no data set become pixels: as everybody sees them.
UPRIGHT_PICTURES: Final = Decoding("displayed")


@dataclass(frozen=True)
class Picture:
    """One image file or object, or one frame of a video.

    Attributes:
        path: as it was given, or the URI of an object.
        frame: number from 0 in a video; None for an image.
    """

    path: str
    frame: int | None = None

    @property
    def key(self) -> str:
        """What the output calls it: the path, and for a frame its number.

        Of a URI it leaves account and options out.
        """
        if is_remote(self.path):
            return Place.of(self.path).plain
        return self.path if self.frame is None else f"{self.path}#{self.frame:06d}"


def list_pictures(words: Sequence[str]) -> list[Picture]:
    """Every picture that the arguments of a command name, each once, in their order.

    A word is an image, a video, a folder (its images, neither videos nor what is in folders in it),
    a pattern of images and videos such as ``data/*.jpg`` or ``data/**/*.png``, the URI of an image,
    a folder or a pattern in an object store, or a ``.txt`` file with one of these on each line: a
    path that is relative to the folder of that file or, where there is no such file, to the current
    folder. The pictures of a folder or pattern are sorted by name.

    Raises:
        DataError: a word that names nothing, or folders by a pattern, a video without a frame, or
            no picture in all.
        StorageError: an object store that cannot be asked.
    """
    pictures = dict.fromkeys(picture for word in words for picture in _of_word(word, lists=True))
    if not pictures:
        raise DataError(f"{' '.join(words)}: holds no image; known are {', '.join(IMAGE_SUFFIXES)}")
    return list(pictures)


def _of_word(word: str, *, lists: bool) -> Iterator[Picture]:
    if is_remote(word):
        yield from (Picture(uri) for uri in list_remote(word, IMAGE_SUFFIXES))
        return
    path = Path(word)
    suffix = path.suffix.lower()
    if is_folder(path):
        shown = (entry for entry in path.iterdir() if not is_hidden(entry.name))
        found = sorted(entry for entry in shown if entry.suffix.lower() in IMAGE_SUFFIXES)
        yield from (Picture(str(entry)) for entry in found)
    elif is_file(path) and suffix == LIST_SUFFIX and lists:
        for _, line in read_lines(path):
            yield from _of_word(_beside(path, line), lists=False)
    elif is_file(path):
        yield from _of_file(word)
    else:
        matches = sorted(glob.glob(word, recursive=True)) if glob.has_magic(word) else []  # noqa: PTH207
        if not matches:
            raise DataError(_nothing(path))
        files = [match for match in matches if is_file(Path(match))]
        if not files:
            raise DataError(
                f"{word}: fits {len(matches)} folders and no file. Next: to look at what is in "
                f"them, write {word.rstrip('/')}/*"
            )
        # Text files beside images are annotations more often than lists, so none is taken for one.
        yield from (picture for match in files for picture in _of_file(match))


def _of_file(word: str) -> Iterator[Picture]:
    """An image, or the frames of a video."""
    path = Path(word)
    if path.suffix.lower() in VIDEO_SUFFIXES:
        yield from (Picture(word, frame) for frame in range(_frame_count(path)))
    else:
        yield Picture(word)


def _beside(listed_in: Path, line: str) -> str:
    """A line of a list as a path from the current folder."""
    beside = listed_in.parent / line
    if is_remote(line) or str(listed_in.parent) == "." or not _names_something(str(beside)):
        return line
    return str(beside)


def _names_something(word: str) -> bool:
    return exists(Path(word)) or (glob.has_magic(word) and bool(glob.glob(word, recursive=True)))  # noqa: PTH207


def passed_over(words: Sequence[str]) -> dict[str, int]:
    """Files in the folders among ``words`` that are not taken for images, counted by suffix."""
    folders = [Path(word) for word in words if not is_remote(word) and is_folder(Path(word))]
    suffixes = Counter(
        entry.suffix.lower() or "no suffix"
        for folder in folders
        for entry in folder.iterdir()
        if entry.suffix.lower() not in IMAGE_SUFFIXES
        and not is_hidden(entry.name)
        and entry.is_file()
    )
    return dict(sorted(suffixes.items()))


def folders_without_images(words: Sequence[str]) -> list[str]:
    """The folders among ``words`` that add nothing, as they were given."""
    folders = (word for word in words if not is_remote(word) and is_folder(Path(word)))
    return [word for word in folders if not any(_of_word(word, lists=False))]


def _nothing(path: Path) -> str:
    return (
        f"{path}: there is no such image, folder, list or video, and no file fits it as a "
        f"pattern{nearest_path(path)}"
    )


def _frame_count(path: Path) -> int:
    """Frames that can be decoded: what containers claim is often wrong."""
    video = open_video(path)
    try:
        count = 0
        while video.grab():
            count += 1
    finally:
        video.release()
    if not count:
        raise DataError(f"{path}: not one frame can be decoded; convert it to H.264 in MP4")
    return count


def open_video(path: Path) -> cv2.VideoCapture:
    """Open a video file.

    Raises:
        DataError: OpenCV cannot.
    """
    video = cv2.VideoCapture(str(path))
    if not video.isOpened():
        raise DataError(f"{path}: OpenCV cannot open this video; convert it to H.264 in MP4")
    return video


def read_pictures(
    pictures: Sequence[Picture], decoding: Decoding = UPRIGHT_PICTURES
) -> Iterator[tuple[Picture, NDArray[np.uint8] | BadImageError]]:
    """Pixels of pictures, (h, w, 3) RGB, or why one cannot be used.

    Frames of a video that follow each other are decoded in one pass.

    Raises:
        StorageError: what they lie on has failed or is lost.
    """
    video: cv2.VideoCapture | None = None
    opened, upcoming = "", 0
    try:
        for picture in pictures:
            if picture.frame is None:
                yield picture, _image(picture, decoding)
                continue
            if video is None or opened != picture.path or upcoming > picture.frame:
                if video is not None:
                    video.release()
                _require_still_there(Path(picture.path))
                video, opened, upcoming = open_video(Path(picture.path)), picture.path, 0
            # Jumping lands on the wrong frame with many codecs; decoding past does not.
            while upcoming < picture.frame and video.grab():
                upcoming += 1
            done, pixels = video.read()
            upcoming += 1
            if done:
                yield picture, np.ascontiguousarray(pixels[..., ::-1]).astype(np.uint8, copy=False)
            else:
                _require_still_there(Path(picture.path))
                yield picture, BadImageError(f"{picture.key}: cannot be decoded")
    finally:
        if video is not None:
            video.release()


def _image(picture: Picture, decoding: Decoding) -> NDArray[np.uint8] | BadImageError:
    try:
        if is_remote(picture.path):
            return read_remote(picture.path, decoding)
        return read_image(Path(picture.path), decoding=decoding)
    except BadImageError as error:
        if not is_remote(picture.path):
            _require_still_there(Path(picture.path))
        return error


def _require_still_there(path: Path) -> None:
    """Tell a file that somebody has removed from a folder that is lost, for files listed before."""
    if exists(path):
        return
    folder = path.absolute().parent
    try:
        lost = not any(folder.iterdir())
    except PermissionError:
        return
    except OSError:
        lost = True
    if lost:
        raise StorageError(
            f"{folder}: is gone or empty, where images were listed at the start, such as "
            f"{path.name}. Next: see whether it is still there, and mounted, then run the same "
            "command again"
        )


def digest_of(pictures: Sequence[Picture]) -> str:
    """SHA-256 over names, sizes and times of change: the same list of the same files."""
    sha = hashlib.sha256()
    stats = stamps(list(dict.fromkeys(p.path for p in pictures if is_remote(p.path))))
    for picture in pictures:
        if picture.path not in stats:
            stats[picture.path] = _stamp(Path(picture.path))
        line = f"{picture.key}\0{stats[picture.path]}\n"
        sha.update(line.encode("utf-8", "surrogateescape"))
    return sha.hexdigest()


def _stamp(path: Path) -> str:
    try:
        stat = path.stat()
    except OSError:
        return "gone"  # It is skipped, and said, when its turn comes.
    return f"{stat.st_size} {stat.st_mtime_ns}"
