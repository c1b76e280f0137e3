"""Checking the files that describe clusters, and whether an experiment fits what they describe."""

from __future__ import annotations

import copy
import json
import re
import shlex
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from orchestrator.cluster_files.fit import misfit
from orchestrator.cluster_files.models.compose import Compose
from orchestrator.cluster_files.models.launcher import (
    LAUNCHERS,
    AwsLauncher,
    GcpLauncher,
    LocalLauncher,
)
from orchestrator.cluster_files.models.ray import KINDS
from orchestrator.cluster_files.models.sky import SkyTask
from orchestrator.cluster_files.project import Project
from orchestrator.cluster_files.rules import batch, compose, launcher, manifests, scripts
from orchestrator.cluster_files.rules.bundle import Bundle
from orchestrator.cluster_files.sheet import Nodes, Sheet, texts_of
from orchestrator.config.explain import explain
from orchestrator.config.problems import KeyPath, Place, Problem, dotted
from orchestrator.config.resolve import ResolvedExperiment, load_experiment
from orchestrator.config.scalars import Json
from orchestrator.config.shape import Shape
from orchestrator.config.yaml_loader import Document, UnreadableError, compose_all, read_text
from orchestrator.credentials import secret_in
from orchestrator.errors import did_you_mean

#: Keys that experiments have and files of clusters do not.
_OF_EXPERIMENTS = frozenset({"detector", "train", "extends"})


@dataclass(frozen=True)
class FileReport:
    """What was found in one file.

    Attributes:
        source: the file, as it was named.
        kinds: of its documents.
        nodes: that it describes.
        problems: in the order of the file.
        fits: what was said of each experiment, by its file; None where it fits.
        notes: what was not examined.
    """

    source: str
    kinds: tuple[str, ...]
    nodes: tuple[Nodes, ...]
    problems: tuple[Problem, ...]
    fits: dict[str, str | None]
    notes: tuple[Problem, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """The report as plain values."""
        return {
            "file": self.source,
            "kinds": list(self.kinds),
            "nodes": [
                {
                    "name": each.name,
                    "count": each.count,
                    "most": each.most,
                    "resources": each.resources,
                }
                for each in self.nodes
            ],
            "experiments": dict(self.fits),
            "problems": [_plain(problem) for problem in self.problems],
            "notes": [_plain(note) for note in self.notes],
        }


def _plain(problem: Problem) -> dict[str, Any]:
    return {
        "line": problem.place.line,
        "column": problem.place.column,
        "key": dotted(problem.path),
        "message": problem.message,
    }


@dataclass
class _Read:
    """A file as it was read.

    Attributes:
        source: as it was named.
        kinds: of its documents.
        sheets: with the model of each document; None where it is none.
        problems: that kept it from being read.
    """

    source: str
    kinds: list[str] = field(default_factory=list)
    sheets: list[tuple[Sheet, BaseModel | str | None]] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)


def check_files(
    files: Sequence[Path],
    *,
    experiments: Sequence[Path] = (),
    verbs: frozenset[str] = frozenset(),
) -> list[FileReport]:
    """Check files that belong together.

    Args:
        files: of launchers, manifests, Compose, SkyPilot, Slurm, or Dockerfiles.
        experiments: that have to fit the nodes of every file that describes any.
        verbs: of the console script.

    Raises:
        ConfigError: a file does not exist, or an experiment is not valid.
    """
    # Where the data lies does not matter here.
    wanted = [
        (str(path), load_experiment(path, tolerate_missing_data=True)) for path in experiments
    ]
    bundle = Bundle()
    read = [_read(path, Project.around(path, verbs), bundle) for path in files]
    for file in read:
        for sheet, model in file.sheets:
            _check(sheet, model, bundle)
        _namespaces(file)
    return [_report(file, wanted) for file in read]


def _namespaces(file: _Read) -> None:
    """Objects that refer to each other are in one namespace."""
    named = [
        (sheet, metadata.get("namespace"))
        for sheet, _ in file.sheets
        if isinstance(sheet.tree, dict)
        and isinstance(metadata := sheet.tree.get("metadata"), dict)
        and sheet.tree.get("kind") not in ("PersistentVolume", "Namespace")
    ]
    usual = Counter(namespace for _, namespace in named).most_common(1)
    for sheet, namespace in named:
        if namespace != usual[0][0]:
            path: KeyPath = ("metadata", "namespace") if namespace else ("metadata",)
            sheet.report(path, f"namespace is {namespace}, of the other documents {usual[0][0]}")


def _read(path: Path, project: Project, bundle: Bundle) -> _Read:
    found = _Read(str(path))
    kind = _script_kind(path)
    try:
        text = read_text(path, "cluster file")
        documents = [] if kind is not None else compose_all(text, str(path))
    except UnreadableError as error:
        found.problems.append(error.problem)
        return found
    lines = text.splitlines()
    if kind is not None:
        places: dict[KeyPath, Place] = {(): Place(str(path), 1, 1)}
        sheet = Sheet(project, str(path), lines, None, places, is_yaml=False)
        found.kinds.append(kind)
        found.sheets.append((sheet, kind))
        return found
    bundle.add_comments(line.lstrip("# ") for line in lines if line.lstrip().startswith("#"))
    # One that holds nothing, as behind a last `---`, says nothing either.
    for document in [each for each in documents if not _is_empty(each)] or documents[:1]:
        sheet = Sheet(
            project, str(path), lines, document.tree, document.places, list(document.problems)
        )
        model = None
        if isinstance(document.tree, dict):
            model = _validated(sheet, document, found.kinds)
        else:
            sheet.report((), "found no mapping of keys; is this a file of a cluster?")
        bundle.add(model)
        found.sheets.append((sheet, model))
    return found


def _is_empty(document: Document) -> bool:
    return document.tree is None and not document.problems


def _script_kind(path: Path) -> str | None:
    if path.name.startswith("Dockerfile") or path.suffix == ".dockerfile":
        return "Dockerfile"
    return "sbatch" if path.suffix in (".sbatch", ".slurm") else None


def _validated(sheet: Sheet, document: Document, kinds: list[str]) -> BaseModel | None:
    """The document as its model; what is unknown is reported and left out."""
    tree = copy.deepcopy(document.tree)
    if not isinstance(tree, dict):
        return None
    model = _model_of(sheet, tree)
    if model is None:
        return None
    kinds.append(model.__name__)
    if model is Compose:
        # The specification's own place for what a file repeats.
        tree = {key: value for key, value in tree.items() if not key.startswith("x-")}
    shape = Shape.of(model)
    for _ in range(2):
        found = _model_or_error(model, tree)
        if isinstance(found, BaseModel):
            return found
        sheet.problems += explain(found, tree, document.places, document.refused, shape)
        # What is unknown hides nothing of the rest.
        for each in found.errors():
            if each["type"] == "extra_forbidden":
                _remove(tree, shape.key_path(each["loc"]))
    return None


def _model_or_error(model: type[BaseModel], tree: Json) -> BaseModel | ValidationError:
    try:
        return model.model_validate_json(json.dumps(tree))
    except ValidationError as error:
        return error


def _remove(tree: Json, path: KeyPath) -> None:
    *parents, last = path
    for part in parents:
        if isinstance(tree, dict) and isinstance(part, str):
            tree = tree.get(part)
        elif isinstance(tree, list) and isinstance(part, int):
            tree = tree[part]
    if isinstance(tree, dict):
        tree.pop(str(last), None)


def _model_of(sheet: Sheet, tree: dict[str, Json]) -> type[BaseModel] | None:
    if "kind" in tree or "apiVersion" in tree:
        kind = tree.get("kind")
        if kind in KINDS:
            return KINDS[str(kind)]
        hint = did_you_mean(str(kind), KINDS)
        sheet.report(
            ("kind",), f"found kind {kind!r}, allowed are {', '.join(sorted(KINDS))}{hint}"
        )
        return None
    own = [key for key in tree if key in _OF_EXPERIMENTS]
    if own:
        sheet.report(
            (own[0],),
            f"this is an experiment; give it with --experiment {shlex.quote(sheet.source)}",
        )
        return None
    known: dict[type[BaseModel], int] = {}
    for model in (LocalLauncher, AwsLauncher, Compose, SkyTask):
        fields = {each.alias or name for name, each in model.model_fields.items()}
        known[model] = sum(key in fields for key in tree)
    best = max(known, key=lambda model: known[model])
    if known[best] == 0:
        sheet.report(
            (),
            "found the keys " + ", ".join(list(tree)[:6]) + ", and no cluster file has these; "
            "allowed are files of Ray's launcher, Kubernetes, Docker Compose and SkyPilot",
        )
        return None
    if best not in (LocalLauncher, AwsLauncher):
        return best
    provider = tree.get("provider")
    kind = provider.get("type") if isinstance(provider, dict) else None
    if not isinstance(kind, str):
        return AwsLauncher if "available_node_types" in tree else LocalLauncher
    if kind not in LAUNCHERS:
        hint = did_you_mean(kind, LAUNCHERS)
        sheet.report(
            ("provider", "type"), f"no rules for {kind!r}, allowed are local, aws and gcp{hint}"
        )
        return None
    return LAUNCHERS[kind]


def _check(sheet: Sheet, model: BaseModel | str | None, bundle: Bundle) -> None:
    texts: Iterable[tuple[KeyPath, str]] = texts_of(sheet.tree)
    if not sheet.is_yaml:
        texts = (((), line) for line in sheet.lines)
    for path, text in texts:
        found = secret_in(text)
        # One that a variable gives stands somewhere else.
        if found is not None and re.search(r"[:=]\$[\w{($]", found) is None:
            message = "a key, token or password stands here; take it from outside the file"
            sheet.report(path, message, found)
    if isinstance(model, LocalLauncher | AwsLauncher | GcpLauncher):
        launcher.check(sheet, model)
    elif isinstance(model, Compose):
        compose.check(sheet, model)
    elif isinstance(model, SkyTask):
        scripts.check_sky(sheet, model)
    elif isinstance(model, BaseModel):
        manifests.check(sheet, model, bundle)
    elif model == "sbatch":
        batch.check_batch(sheet)
    elif model == "Dockerfile":
        scripts.check_dockerfile(sheet)


def _report(file: _Read, wanted: Sequence[tuple[str, ResolvedExperiment]]) -> FileReport:
    nodes = tuple(each for sheet, _ in file.sheets for each in sheet.nodes)
    problems = list(file.problems)
    for sheet, _ in file.sheets:
        for run in sheet.runs:
            _fit_run(sheet, run.experiment, run.overrides, run.path, run.nodes)
        problems += sheet.problems
    fits: dict[str, str | None] = {}
    for name, resolved in wanted:
        if all(each.resources is None for each in nodes):
            said = "does not say what its nodes have" if nodes else "describes no nodes"
            fits[name] = f"not known: the file {said}"
            continue
        message = misfit(resolved.experiment, nodes)
        fits[name] = message
        if message is not None:
            place = Place(file.source, 1, 1)
            problems.append(Problem(place, (), f"{name} does not fit: {message}"))
    unique = sorted(
        set(problems), key=lambda each: (each.place.line or 0, each.place.column or 0, each.message)
    )
    notes = tuple(note for sheet, _ in file.sheets for note in sheet.notes)
    return FileReport(file.source, tuple(file.kinds), nodes, tuple(unique), fits, notes)


def _fit_run(
    sheet: Sheet, name: str, overrides: Sequence[str], path: KeyPath, nodes: Sequence[Nodes]
) -> None:
    experiment = sheet.project.experiment(name, overrides)
    if experiment is None or any(each.resources is None for each in nodes):
        return
    message = misfit(experiment, nodes)
    if message is not None:
        sheet.report(path, f"{name} does not fit: {message}", name)
