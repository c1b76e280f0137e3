"""What a cluster file has to agree with: versions, experiments, targets and verbs."""

from __future__ import annotations

import configparser
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from importlib import metadata
from pathlib import Path

from orchestrator.config.resolve import load_experiment
from orchestrator.config.schema import Experiment
from orchestrator.errors import ConfigError, nearest

#: Of the image that the Dockerfiles in ``clusters/docker`` make.
IMAGE = "detection-orchestrator"
#: Of the server that ``clusters/docker/Dockerfile.mlflow`` makes, and what the others are made for.
_SERVER, _VARIANTS = "detection-mlflow", ("cpu", "gpu", "npu")
#: Where that image holds the project.
FOLDER = "/app"


def is_there(path: Path) -> bool:
    """Whether there is something at a path, which may be longer than the system takes one."""
    try:
        return path.exists()
    except (OSError, ValueError):
        return False


@dataclass(frozen=True)
class Project:
    """The project a cluster file belongs to.

    Attributes:
        root: its folder; None where the program is installed as a package without one.
        verbs: of the console script.
    """

    root: Path | None
    verbs: frozenset[str] = field(default_factory=frozenset)
    _read: dict[tuple[str, ...], Experiment | ConfigError | None] = field(
        default_factory=dict, compare=False, repr=False
    )

    @classmethod
    def around(cls, file: Path, verbs: frozenset[str]) -> Project:
        """The project whose folder holds a file, or the current folder."""
        for folder in (*file.absolute().parents, Path.cwd(), *Path.cwd().parents):
            if (folder / "constraints.txt").is_file() and (folder / "setup.cfg").is_file():
                return cls(folder, verbs)
        return cls(None, verbs)

    @cached_property
    def pins(self) -> dict[str, str]:
        """Versions that ``constraints.txt`` names; else those that are installed."""
        if self.root is None:
            return {name: metadata.version(name) for name in ("ray", "torch", "mlflow", "numpy")}
        lines = (self.root / "constraints.txt").read_text(encoding="utf-8").splitlines()
        pairs = (line.partition("==") for line in lines if not line.startswith("#"))
        return {name.strip(): version.strip() for name, mark, version in pairs if mark}

    @cached_property
    def python(self) -> tuple[int, int]:
        """The Python that the pins are tested with."""
        if self.root is not None:
            text = (self.root / "constraints.txt").read_text(encoding="utf-8")
            found = re.search(r"on Python (\d+)\.(\d+)", text)
            if found:
                return int(found[1]), int(found[2])
        return 3, 11

    @cached_property
    def version(self) -> str:
        """Of the project."""
        if self.root is None:
            return metadata.version(IMAGE)
        parser = configparser.ConfigParser()
        parser.read(self.root / "setup.cfg", encoding="utf-8")
        return parser["metadata"]["version"]

    @cached_property
    def extras(self) -> frozenset[str]:
        """Sets of further packages by name; none where the project has no folder."""
        if self.root is None:
            return frozenset()
        parser = configparser.ConfigParser()
        parser.read(self.root / "setup.cfg", encoding="utf-8")
        found = "options.extras_require"
        return frozenset(parser[found]) if parser.has_section(found) else frozenset()

    @cached_property
    def targets(self) -> frozenset[str]:
        """Of the Makefile."""
        makefile = None if self.root is None else self.root / "Makefile"
        if makefile is None or not makefile.is_file():
            return frozenset()
        text = makefile.read_text(encoding="utf-8")
        return frozenset(re.findall(r"^([a-z][\w-]*):", text, flags=re.MULTILINE))

    def file(self, name: str) -> Path | None:
        """A file of the project that a command names from its folder; None outside a project."""
        return None if self.root is None else self.root / name.removeprefix(f"{FOLDER}/")

    def experiment(self, name: str, overrides: Sequence[str]) -> Experiment | None:
        """An experiment that a command names, wherever its data lies; None outside a project.

        Raises:
            ConfigError: it is not valid.
        """
        key = (name, *overrides)
        if key not in self._read:
            self._read[key] = self._experiment(name, overrides)
        found = self._read[key]
        if isinstance(found, ConfigError):
            raise found
        return found

    def _experiment(self, name: str, overrides: Sequence[str]) -> Experiment | ConfigError | None:
        file = self.file(name)
        try:
            if file is None:
                return None
            return load_experiment(file, overrides, tolerate_missing_data=True).experiment
        except ConfigError as error:
            return error

    def image_problem(self, image: str) -> str | None:
        """What is wrong with an image's name; None for nothing."""
        name, _, digest = image.partition("@")
        path, _, tag = name.rpartition(":") if ":" in name.rpartition("/")[2] else (name, "", "")
        base = path.rpartition("/")[2]
        if not tag and not digest:
            return f"image {image!r} has no version; write {image}:VERSION"
        if tag == "latest":
            return (
                f"image {image!r} is whatever was built last, and nodes that start at different "
                "times get different ones; write a version"
            )
        # A digest alone says exactly which one it is, and nothing of its version.
        return self._version_problem(image, path, base, tag) if tag else self._slip(image, base)

    def _version_problem(self, image: str, path: str, base: str, tag: str) -> str | None:
        if base == "ray" or base == "ray-ml":
            return self._ray_image_problem(image, tag)
        if base == "python":
            return self._python_problem(image, re.match(r"(\d+)\.(\d+)", tag))
        if base == _SERVER and tag.partition("-")[0] != self.pins["mlflow"]:
            return (
                f"image {image!r} has MLflow {tag.partition('-')[0]}, constraints.txt pins "
                f"{self.pins['mlflow']}"
            )
        variant = tag.rpartition("-")[2]
        slip = nearest(variant, _VARIANTS) if "-" in tag and base == IMAGE else None
        if slip is not None and variant not in _VARIANTS and abs(len(variant) - len(slip)) < 2:
            return f"there is no Dockerfile.{variant} for image {image!r}; did you mean {slip}?"
        if base == IMAGE and not (tag == self.version or tag.startswith(f"{self.version}-")):
            return (
                f"image {image!r} is of version {tag.partition('-')[0]}, the project of "
                f"{self.version}; write {path}:{self.version}{''.join(tag.partition('-')[1:])}"
            )
        return self._slip(image, base) or self._python_problem(
            image, re.search(r"(?<![a-z])py(3)\.(\d+)", tag)
        )

    @staticmethod
    def _slip(image: str, base: str) -> str | None:
        if base != IMAGE and nearest(base, [IMAGE]):
            return f"image {image!r} is none of this project's; did you mean {IMAGE}?"
        return None

    def _ray_image_problem(self, image: str, tag: str) -> str | None:
        version, *variants = tag.split("-")
        if version != self.pins["ray"]:
            return (
                f"image {image!r} has Ray {version}, constraints.txt pins {self.pins['ray']}; Ray "
                "refuses to mix its versions"
            )
        found = next((re.match(r"py(\d)(\d+)$", each) for each in variants if "py" in each), None)
        if found is None:
            return f"image {image!r} does not say which Python it has; write {tag}-py311 or newer"
        return self._python_problem(image, found)

    def _python_problem(self, image: str, found: re.Match[str] | None) -> str | None:
        if found is None or (int(found[1]), int(found[2])) >= self.python:
            return None
        return (
            f"image {image!r} has Python {found[1]}.{found[2]}, and constraints.txt serves "
            f"{self.python[0]}.{self.python[1]} and newer"
        )
