"""Annotation formats that other installed packages bring: an entry point names each reader."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Callable
from pathlib import Path
from typing import TypeAlias

from orchestrator.config.formats import READERS
from orchestrator.data.findings import ReadResult
from orchestrator.data.label_map import LabelMap
from orchestrator.data.readers.paths import ReadRules
from orchestrator.errors import ConfigError, DataError, OrchestratorError

#: Image folder, annotations, the classes where ``data.classes`` names a file of them, and what
#: files are read by.
Reader: TypeAlias = Callable[[Path, Path, LabelMap | None, ReadRules], ReadResult]


def load_reader(name: str) -> Reader:
    """The reader of a format.

    Args:
        name: of the format, as ``data.format`` gives it.

    Raises:
        ConfigError: no installed package brings it, several do, or it cannot be loaded. What the
            reader raises that is no error of ours becomes a DataError.
    """
    points = list(importlib.metadata.entry_points(group=READERS, name=name))
    if not points:
        raise ConfigError(
            f"data.format: no installed package brings the format {name!r} on this machine. Next: "
            "install the package here, too"
        )
    if len(points) > 1:
        packages = " and ".join(point.dist.name if point.dist else point.value for point in points)
        raise ConfigError(
            f"data.format: {packages} both bring the format {name!r}. Next: uninstall all but one"
        )
    point = points[0]
    package = f"{point.dist.name} {point.dist.version}" if point.dist else "an unnamed package"
    where = f"entry point '{point.name} = {point.value}' of {package}, group {READERS}"
    try:
        reader: Reader = point.load()
    # Whatever a foreign module raises at import is that module's fault, and has to say so.
    except (Exception, SystemExit) as error:
        raise ConfigError(
            f"data.format: {where}, cannot be loaded: {type(error).__name__}: {error}. Next: mend "
            f"or uninstall {package}"
        ) from error

    def read(
        images: Path, annotations: Path, classes: LabelMap | None, rules: ReadRules
    ) -> ReadResult:
        try:
            result = reader(images, annotations, classes, rules)
        except (OrchestratorError, OSError, MemoryError):
            raise
        except Exception as error:
            raise DataError(
                f"{annotations}: cannot be read by {where}: {type(error).__name__}: {error}. Next: "
                f"correct the file, or tell the authors of {package}"
            ) from error
        if not isinstance(result, ReadResult):
            raise DataError(
                f"{where}: returned a {type(result).__name__}, and has to return a ReadResult"
            )
        return result

    return read
