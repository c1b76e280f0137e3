"""Looking through foreign files before anything opens them: which member would run code.

Nothing is unpickled here. The operations of a pickle are listed with :mod:`pickletools`, and the
names that it would call are compared with those that rebuild tensors and plain values. What decides
whether something runs is torch's own restricted unpickler, which reads the file afterwards; this
module tells a file with code in it from one that is only broken, and looks at the members that
torch would not look at.
"""

from __future__ import annotations

import errno
import pickletools
import re
import tarfile
import warnings
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Final

ZIP: Final = b"PK\x03\x04"
_NUMPY: Final = b"\x93NUMPY"
#: Archives within archives are opened so deep.
_DEPTH: Final = 3
#: A pickle of tensors holds their names and sizes. More than this is no such pickle.
_PICKLE_BYTES: Final = 64 * 2**20
#: Pickles that stand one behind the other in the older format of ``torch.save``.
_PICKLES: Final = 8
#: An archive may not unpack to so many times its size.
_RATIO: Final = 100

#: Members with the bytes of a tensor, in archives of ``torch.save`` and ``torch.export``: they are
#: never unpickled, and any bytes may be a tensor's.
_TENSOR: Final = re.compile(r"(.*/)?data/(\d+|weights/weight_\d+|constants/tensor_\d+)", re.DOTALL)
#: Header of a NumPy file whose values are pickled; of any other they are bytes of numbers.
_NUMPY_OBJECTS: Final = re.compile(rb"'descr':\s*[^,]*O")

#: What rebuilds tensors and plain values; torch's restricted unpickler allows the same or less.
_HARMLESS: Final = re.compile(
    r"""collections\.OrderedDict
    | torch(\.storage)?\.([A-Z]\w*)?Storage
    | torch(\._tensor|\._utils)\._rebuild_\w+
    | torch\.(Size|Tensor|device|nn\.parameter\.Parameter|nn\.Parameter|serialization\._get_layout)
    | torch\.q?[a-z]+\d+(_\w+)?                           # number types: torch.float32
    | torch\.(bool|double|float|half|int|long|short|per_\w+|strided|sparse_\w+)
    | _codecs\.encode
    | (builtins|__builtin__)\.(set|bytearray|complex)
    """,
    re.VERBOSE,
)
#: Values that torch does not read, but that run nothing either.
_NUMPY_VALUES: Final = re.compile(
    r"numpy\.(_?core\.)?(multiarray\.\w+|dtype|ndarray)|numpy\.dtypes\..*"
)
_TEXT_OPERATIONS: Final = ("STRING", "UNICODE")


class WeightsError(ValueError):
    """The file cannot be read as weights, or its weights are not those of the network."""


class UnsafeWeightsError(WeightsError):
    """The file asks for more than tensors: reading it would run code from it."""


def look_through(path: Path) -> None:
    """Raise if a file, or a file inside it, would run code once it was unpickled.

    Args:
        path: anything; archives (zip, tar) are looked through member by member.

    Raises:
        UnsafeWeightsError: it would; the message names the member and what it calls.
        WeightsError: an archive that is cut off, or that unpacks to far more than it is.
    """
    with path.open("rb") as file, warnings.catch_warnings():
        # Bytes that are no pickle have escape sequences that are none.
        warnings.simplefilter("ignore")
        _look(file, str(path), _DEPTH)


def _look(file: IO[bytes], where: str, depth: int, *, tensor: bool = False) -> None:
    head = file.read(len(_NUMPY))
    file.seek(0)
    if head.startswith(ZIP) and not (tensor and not _is_archive(file)):
        if depth:
            _look_in_zip(file, where, depth)
    elif head == _NUMPY:
        version = file.read(len(_NUMPY) + 2)[-2:]
        length = int.from_bytes(file.read(2 if version[:1] == b"\x01" else 4), "little")
        pickled = _NUMPY_OBJECTS.search(file.read(min(length, _PICKLE_BYTES))) is not None
        _look_at_pickles(file, where, whole=not pickled)
    elif not _look_in_tar(file, where, depth):
        file.seek(0)
        _look_at_pickles(file, where, whole=tensor)


def _is_archive(file: IO[bytes]) -> bool:
    """Whether bytes that begin like an archive end like one: those of a tensor may be any."""
    try:
        return zipfile.is_zipfile(file)
    except (zipfile.BadZipFile, OSError):
        return False
    finally:
        file.seek(0)


@contextmanager
def damaged_archives(where: str) -> Iterator[None]:
    """Say that an archive is damaged where the library that reads it stumbles over its bytes.

    Args:
        where: the archive, for the message.

    Raises:
        WeightsError: it is; or as it is raised inside.
    """
    try:
        yield
    except (WeightsError, MemoryError):
        raise
    # zipfile and tarfile raise their own classes, those of each compression, and ValueError,
    # struct.error or OSError without a number for fields that cannot be.
    except Exception as error:
        # EINVAL: of a place before the beginning of the file.
        if isinstance(error, OSError) and error.errno not in (None, errno.EINVAL):
            raise
        raise WeightsError(
            f"{where}: damaged archive ({error or type(error).__name__}). Next: see that the "
            "download is complete"
        ) from error


def _look_in_zip(file: IO[bytes], where: str, depth: int) -> None:
    with damaged_archives(where), zipfile.ZipFile(file) as archive:
        members = archive.infolist()
        # Members may lie over one another, and are not more than the file then.
        packed = min(sum(member.compress_size for member in members), file.seek(0, 2))
        if sum(member.file_size for member in members) > _RATIO * packed + 2**20:
            raise WeightsError(f"{where}: unpacks to more than {_RATIO} times its size")
        names = [member.filename for member in members]
        if any("/code/" in name and name.endswith(".py") for name in names):
            raise UnsafeWeightsError(_refusal(where, "it holds a TorchScript program"))
        for member in members:
            if not member.is_dir():
                with archive.open(member) as inner:
                    is_tensor = _TENSOR.fullmatch(member.filename) is not None
                    _look(inner, f"{where}: {member.filename}", depth - 1, tensor=is_tensor)


def _look_in_tar(file: IO[bytes], where: str, depth: int) -> bool:
    """Look through a tar archive; false if it is none."""
    file.seek(257)
    if not (depth and file.read(5) == b"ustar"):
        return False
    file.seek(0)
    with damaged_archives(where), tarfile.open(fileobj=file, mode="r:") as archive:
        for member in archive:
            inner = archive.extractfile(member) if member.isfile() else None
            if inner is not None:
                _look(inner, f"{where}: {member.name}", depth - 1)
    return True


def _look_at_pickles(file: IO[bytes], where: str, *, whole: bool = False) -> None:
    """Raise for pickles that call what they must not.

    Args:
        file: at their beginning.
        where: for the message.
        whole: pass over what is no pickle from beginning to end. One that breaks off has run what
            it calls by then, but numbers may begin like one.
    """
    content = file.read(_PICKLE_BYTES)
    start = 0
    for _ in range(_PICKLES):
        names, end = _called(content, start)
        # Text can begin like the oldest kind of pickle, but does not go on as one to its end.
        if end is not None or (content[start : start + 1] == b"\x80" and not whole):
            for name in names:
                if not (_HARMLESS.fullmatch(name) or _NUMPY_VALUES.fullmatch(name)):
                    raise UnsafeWeightsError(_refusal(where, f"it names {name}"))
        if end is None:
            return
        start = end


def _called(content: bytes, start: int) -> tuple[list[str], int | None]:
    """Names that a pickle calls, and where the next one begins; None if this is no whole one.

    What a name is made of is followed through the operations that push and remember text, which
    is how pickles are written. A name that is put together in another way is called ``?.?``.
    """
    names: list[str] = []
    texts: list[str] = []
    memo: dict[int, str] = {}
    last = ""
    position = 0
    try:
        for operation, argument, found in pickletools.genops(content[start:]):
            kind, position = operation.name, found or 0
            if isinstance(argument, str) and any(part in kind for part in _TEXT_OPERATIONS):
                last = argument
                texts.append(argument)
            elif kind == "MEMOIZE":
                memo[len(memo)] = last
            elif kind in ("PUT", "BINPUT", "LONG_BINPUT"):
                memo[int(argument or 0)] = last
            elif kind in ("GET", "BINGET", "LONG_BINGET"):
                last = memo.get(int(argument or 0), "")
                texts.append(last or "?")
            else:
                last = ""
            if kind in ("GLOBAL", "INST"):
                names.append(str(argument).replace(" ", "."))
            elif kind == "STACK_GLOBAL":
                names.append(".".join(texts[-2:] if len(texts) > 1 else "??"))
            elif kind.startswith("EXT"):
                names.append(f"copyreg.extension_{argument}")
    except Exception:
        # pickletools raises whatever it stumbles over: this is no pickle, or a part of one.
        return names, None
    return names, start + position + 1


def _refusal(where: str, why: str) -> str:
    return (
        f"{where}: holds more than tensors and plain values: {why}. Reading it would run code from "
        "it, which is not done. Next: ask its author for a safetensors file or a plain state dict"
    )
