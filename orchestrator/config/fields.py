"""Types shared by the sections, and how a rule that spans several fields reports."""

from __future__ import annotations

import os
import re
import secrets
from collections.abc import Iterable
from typing import Annotated, NamedTuple, TypeAlias

from pydantic import AfterValidator, BeforeValidator, Field, WithJsonSchema
from pydantic_core import PydanticCustomError

from orchestrator.config.scalars import shorten
from orchestrator.credentials import holds_secret
from orchestrator.storage.address import SCHEMES

Count: TypeAlias = Annotated[int, Field(ge=1)]
NonNegativeInt: TypeAlias = Annotated[int, Field(ge=0)]
Positive: TypeAlias = Annotated[float, Field(gt=0.0)]
NonNegative: TypeAlias = Annotated[float, Field(ge=0.0)]
Fraction: TypeAlias = Annotated[float, Field(ge=0.0, le=1.0)]
#: A decay or momentum: at 1 nothing new would ever count.
Decay: TypeAlias = Annotated[float, Field(ge=0.0, lt=1.0)]
#: What a shell would expand, where a name of a path begins; elsewhere it is part of a name.
_VARIABLE = re.compile(
    r"(?<![^/])(\$[A-Za-z_][A-Za-z0-9_]*|\$\([^)]*\)|`[^`]*`|%[A-Za-z_][A-Za-z0-9_]*%|\{\{.*?\}\})"
)
#: How a path of Windows begins: a drive, or the name of a server.
_WINDOWS = re.compile(r"[A-Za-z]:[\\/]|\\\\\w")
#: A shell-style pattern of names.
Pattern: TypeAlias = Annotated[str, Field(min_length=1)]


def _no_home(path: str) -> str:
    if path.startswith("~"):
        raise PydanticCustomError(
            "home_folder",
            "a path that starts with '~' is not expanded, because a worker's home folder may be "
            "another one; write it in full",
        )
    return path


def _no_key(path: str) -> str:
    if holds_secret(path):
        raise PydanticCustomError(
            "key_in_uri",
            "the address holds a key, which would be stored with the run; take it out and set the "
            "environment variables of the store, such as AWS_ACCESS_KEY_ID and "
            "AWS_SECRET_ACCESS_KEY, instead",
        )
    return path


def no_variable(path: str) -> str:
    """The path or address itself.

    Raises:
        PydanticCustomError: a name in it begins like what a shell or a template expands.
    """
    found = _VARIABLE.search(path)
    if found is not None:
        raise PydanticCustomError(
            "variable",
            "found {path}, and nothing expands {name}; write the path itself, or give it as an "
            "override, where the shell expands it",
            {"path": repr(shorten(path)), "name": found[0]},
        )
    return path


def _named_here(path: str) -> str:
    """What a run would make, literally, where a mistake is likelier."""
    if path != path.strip():
        raise PydanticCustomError(
            "blank_at_the_end",
            "found {path}, which begins or ends with a blank; remove it",
            {"path": repr(shorten(path))},
        )
    if os.name == "posix" and _WINDOWS.match(path):
        raise PydanticCustomError(
            "windows_path",
            "found {path}, a path of Windows, where none of this machine's begins so; write the "
            "path that the machines which train have, such as /mnt/c/runs",
            {"path": repr(shorten(path))},
        )
    return path


def _no_scheme(path: str) -> str:
    if "://" in path:
        raise PydanticCustomError(
            "not_a_folder",
            "a run folder holds a lock and a log that is appended to, which {path} cannot; allowed "
            "is a path that all nodes share, such as /shared/runs",
            {"path": repr(path)},
        )
    return path


def _folder_or_bucket(path: str) -> str:
    scheme, mark, rest = path.partition("://")
    if not mark:
        return path
    bucket = rest.partition("?")[0].partition("/")[0]
    if scheme not in SCHEMES or not bucket:
        raise PydanticCustomError(
            "not_a_place",
            "found {path}, allowed is a path that all nodes share, such as /shared/runs, or {uris}",
            {
                "path": repr(path),
                "uris": " or ".join(f"{name}://bucket/prefix" for name in SCHEMES),
            },
        )
    return path


#: A path or URI, taken as it stands.
Location: TypeAlias = Annotated[
    str,
    Field(min_length=1),
    AfterValidator(_no_home),
    AfterValidator(_no_key),
    AfterValidator(no_variable),
]
#: A path of a file system, never a bucket.
Folder: TypeAlias = Annotated[Location, AfterValidator(_named_here), AfterValidator(_no_scheme)]
#: A path of a file system, or ``s3://`` and ``gs://``.
FolderOrBucket: TypeAlias = Annotated[
    Location, AfterValidator(_named_here), AfterValidator(_folder_or_bucket)
]


def _drawn(seed: object) -> object:
    return secrets.randbits(32) if seed is None else seed


#: A seed. Null draws one, so a validated experiment always has a number.
Seed: TypeAlias = Annotated[
    int,
    Field(ge=0),
    BeforeValidator(_drawn),
    WithJsonSchema({"anyOf": [{"type": "integer", "minimum": 0}, {"type": "null"}]}),
]


class Conflict(NamedTuple):
    """Two or more fields that are valid alone and impossible together.

    Attributes:
        key: dotted path, from the model that checks, of the field to point at.
        message: what contradicts what, naming every key in full, and what would be accepted.
    """

    key: str
    message: str


def refuse(conflicts: Iterable[Conflict]) -> None:
    """Raise all ``conflicts`` at once, in the form the error printer can locate one by one."""
    found = [tuple(conflict) for conflict in conflicts]
    if found:
        text = "; ".join(message for _, message in found)
        raise PydanticCustomError("conflict", "{text}", {"text": text, "conflicts": found})
