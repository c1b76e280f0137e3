"""One document of a cluster file, and what is found wrong with it, line by line."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from orchestrator.cluster_files.project import Project
from orchestrator.config.explain import place_of
from orchestrator.config.problems import KeyPath, Place, Problem
from orchestrator.config.scalars import Json


@dataclass(frozen=True)
class Nodes:
    """Nodes of one kind.

    Attributes:
        name: of the kind.
        count: how many are always there.
        resources: of each, by the names that Ray gives them; None where the file does not say.
        most: how many an autoscaler may make of them; None for no more.
        accelerator_type: as Ray names it; None where the file does not say.
        labels: that Ray is given for them.
    """

    name: str
    count: int
    resources: dict[str, float] | None
    most: int | None = None
    accelerator_type: str | None = None
    labels: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Run:
    """An experiment that a file starts.

    Attributes:
        path: of the command.
        experiment: file that it names.
        overrides: of it; those with a variable of the shell are left out.
        nodes: kinds of node that are there for it.
    """

    path: KeyPath
    experiment: str
    overrides: tuple[str, ...]
    nodes: tuple[Nodes, ...]


@dataclass
class Sheet:
    """A document under examination.

    Attributes:
        project: what it has to agree with.
        source: file, as the user named it.
        lines: of the file.
        tree: plain values.
        places: of everything in it.
        problems: found so far.
        notes: what was not examined, which makes the file no worse.
        nodes: that the document describes.
        runs: experiments that it starts.
        is_yaml: whether indentation says where a value ends.
    """

    project: Project
    source: str
    lines: list[str]
    tree: Json
    places: dict[KeyPath, Place]
    problems: list[Problem] = field(default_factory=list)
    notes: list[Problem] = field(default_factory=list)
    nodes: list[Nodes] = field(default_factory=list)
    runs: list[Run] = field(default_factory=list)
    is_yaml: bool = True

    def report(self, path: KeyPath, message: str, needle: str = "") -> None:
        """Note a problem.

        Args:
            path: of the value; where there is none, of the section that lacks it.
            message: what was found, what is allowed, and the next step.
            needle: text within the value, which may go over many lines.
        """
        self.problems.append(Problem(self._refined(path, needle), path, message))

    def note(self, path: KeyPath, message: str, needle: str = "") -> None:
        """Note what was not examined; arguments as of :meth:`report`."""
        self.notes.append(Problem(self._refined(path, needle), path, message))

    def _refined(self, path: KeyPath, needle: str) -> Place:
        place = place_of(path, self.places)
        if not needle or place.line is None or path not in self.places:
            return place
        first = self.lines[place.line - 1]
        depth = _depth(first)
        for number in range(place.line, len(self.lines) + 1):
            line = self.lines[number - 1]
            inner = number == place.line or not line.strip() or _depth(line) > depth
            if self.is_yaml and not inner:
                break
            if needle in line:
                return Place(place.source, number, line.index(needle) + 1)
        return place


def _depth(line: str) -> int:
    return len(line) - len(line.lstrip(" "))


def texts_of(tree: Json, path: KeyPath = ()) -> Iterator[tuple[KeyPath, str]]:
    """Every text of a document or a part of it, with its place."""
    if isinstance(tree, dict):
        for key, value in tree.items():
            yield from texts_of(value, (*path, key))
    elif isinstance(tree, list):
        for index, value in enumerate(tree):
            yield from texts_of(value, (*path, index))
    elif isinstance(tree, str):
        yield path, tree
