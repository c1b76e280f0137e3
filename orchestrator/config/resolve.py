"""An experiment file and overrides to one resolved, frozen, identified configuration."""

from __future__ import annotations

import copy
import enum
import hashlib
import json
import shlex
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final, Literal, NamedTuple, TypeAlias

from pydantic import ValidationError

from orchestrator.config import environment, short_forms
from orchestrator.config import overrides as command_line
from orchestrator.config.explain import explain, place_of
from orchestrator.config.extends import load_extended
from orchestrator.config.problems import KeyPath, Place, Problem, dotted, error_of
from orchestrator.config.scalars import Json, Scalar
from orchestrator.config.schema import Experiment
from orchestrator.config.yaml_loader import Document, load_file
from orchestrator.credentials import secret_in
from orchestrator.errors import ConfigError, DataError
from orchestrator.layouts.data_yaml import is_data_yaml
from orchestrator.layouts.files import is_folder
from orchestrator.layouts.layout import Layout
from orchestrator.layouts.recognise import find_layout
from orchestrator.storage.run_files import RESOLVED

#: Before the origin of a seed that nobody chose.
_DRAWN = "drawn, "


@dataclass(frozen=True)
class ResolvedExperiment:
    """An experiment with every value in place.

    Attributes:
        experiment: typed and frozen.
        tree: the same as plain values; lists for tuples.
        origins: of every value, by the dotted path :func:`flatten` gives it: ``file:line``,
            ``override``, ``environment VARIABLE`` or ``default``; a seed that was drawn says so
            before the place that asks for it.
        digest: SHA-256 of the values, in hex: equal for equal experiments however they are
            written down.
        source: the file, as it was named.
    """

    experiment: Experiment
    tree: dict[str, Json]
    origins: dict[str, str]
    digest: str
    source: Path

    @property
    def seed_is_drawn(self) -> bool:
        """Whether the experiment left its seed to chance."""
        return self.origins["seed"].startswith(_DRAWN)

    def with_seed(self, seed: int) -> ResolvedExperiment:
        """The same experiment with another seed."""
        tree = {**self.tree, "seed": seed}
        experiment = self.experiment.model_copy(update={"seed": seed})
        return replace(self, experiment=experiment, tree=tree, digest=digest(tree))


@dataclass(frozen=True)
class Template:
    """An experiment as it is written, whose values can still be replaced.

    Attributes:
        document: the file with its overrides; never changed.
        source: the file, as it was named.
        files: that file and those it extends.
        sweep: the file that gives the ``sweep`` section in place of these.
    """

    document: Document
    source: Path
    files: tuple[Path, ...] = ()
    sweep: Path | None = None

    def error_of(self, problems: Iterable[Problem]) -> ConfigError:
        """One error that lists all ``problems`` of the experiment, and how to look again."""
        check = _check(self.source, self.sweep)
        return error_of(problems, str(self.source), check=check)

    def resolve(
        self, values: Mapping[str, Json] | None = None, *, tolerate_missing_data: bool = False
    ) -> ResolvedExperiment:
        """Validate and resolve the experiment with other values.

        Args:
            values: by dotted key, set in order; whole sections are allowed.
            tolerate_missing_data: whether something may stand in for splits that are not found in
                ``data.root``; for questions whose answer does not depend on them.

        Raises:
            ConfigError: with everything that is wrong with the file, the overrides and the values.
            DataError: they are sound, but no layout is known in ``data.root``.
        """
        document = copy.deepcopy(self.document)
        command_line.apply_values(values or {}, document)
        short_forms.spread_workers(document)
        not_found = fill_in(document)
        problems = document.problems
        experiment = None
        try:
            experiment = Experiment.model_validate_json(json.dumps(document.tree))
        except ValidationError as error:
            problems += explain(error, document.tree, document.places, document.refused)
        problems += _secrets(document, {problem.path for problem in problems})
        if problems or experiment is None:
            raise self.error_of(problems)
        if not_found is not None and not tolerate_missing_data:
            raise DataError(f"data.root: {not_found}")
        tree: dict[str, Json] = experiment.model_dump(mode="json", by_alias=True)
        origins = _origins(tree, document.places)
        if isinstance(document.tree, dict) and document.tree.get("seed", experiment.seed) is None:
            origins["seed"] = f"{_DRAWN}{origins['seed']}"
        return ResolvedExperiment(
            experiment=experiment,
            tree=tree,
            origins=origins,
            digest=digest(tree),
            source=self.source,
        )


def read_template(
    path: str | Path, overrides: Sequence[str] = (), *, sweep: str | Path | None = None
) -> Template:
    """Read an experiment and apply overrides, without validating it yet.

    Args:
        path: of the YAML file.
        overrides: ``key.path=value`` each, applied in order.
        sweep: a YAML file whose only key is ``sweep``, which takes the place of that section.

    Raises:
        ConfigError: a file cannot be read, or is a data set or a run.
    """
    path = Path(path)
    if is_folder(path):
        raise _folder(path)
    document, files = load_extended(path)
    if "names" in _keys(document) and is_data_yaml(path):
        raise ConfigError(
            f"{path}: describes a YOLO data set and is no experiment. Next: "
            f"{shlex.join(['orchestrator', 'init', str(path)])} writes one that trains on it"
        )
    if sweep is not None:
        sweep = Path(sweep)
        section = load_file(sweep, kind="sweep", check=_check(path, sweep))
        _put_sweep(section, document, sweep, path)
    command_line.apply(overrides, document)
    environment.apply(document)
    return Template(document, path, files, sweep)


def _folder(path: Path) -> ConfigError:
    """What to say of a folder in the place of an experiment file."""
    resolved = path / RESOLVED
    if resolved.is_file():
        return ConfigError(f"{path}: is a run folder. Next: its experiment is {resolved}")
    return ConfigError(
        f"{path}: is a folder, where an experiment file is expected. Next: "
        f"{shlex.join(['orchestrator', 'init', str(path)])} makes one of a folder of annotated "
        "images"
    )


def _keys(document: Document) -> Collection[str]:
    return document.tree if isinstance(document.tree, dict) else ()


def _check(experiment: Path, sweep: Path | None) -> list[str]:
    """What ``config show`` takes to look at an experiment."""
    return [str(experiment), *([] if sweep is None else ["--sweep", str(sweep)])]


def _secrets(document: Document, reported: Collection[KeyPath]) -> Iterator[Problem]:
    """Keys and passwords in any value, whichever field it belongs to.

    A resolved experiment is printed, stored in the run folder and sent to MLflow.
    """
    for path, value in _leaves(document.tree).items():
        if isinstance(value, str) and path not in reported and secret_in(value) is not None:
            message = (
                "the value holds a key, token or password, which would be stored with the run; "
                "take it out and give it by the environment"
            )
            yield Problem(place_of(path, document.places), path, message)


def _put_sweep(section: Document, document: Document, source: Path, experiment: Path) -> None:
    found = list(section.tree) if isinstance(section.tree, dict) else []
    if found != ["sweep"]:
        message = (
            f"the keys at the top are {', '.join(found) or 'none'}; allowed is sweep alone, with "
            "what its section holds below it"
        )
        problem = Problem(section.places[()], (), message)
        raise error_of([problem], str(source), check=_check(experiment, source))
    if not isinstance(document.tree, dict) or not isinstance(section.tree, dict):
        return  # What the experiment is instead is said when it is validated.
    document.tree["sweep"] = section.tree["sweep"]
    for known in [known for known in document.places if known[:1] == ("sweep",)]:
        del document.places[known]
        document.refused.discard(known)
    document.problems += section.problems
    document.places.update({place: at for place, at in section.places.items() if place})
    document.refused.update(section.refused)


def load_experiment(
    path: str | Path, overrides: Sequence[str] = (), *, tolerate_missing_data: bool = False
) -> ResolvedExperiment:
    """Read, override, validate and resolve an experiment.

    Args:
        path: of the YAML file.
        overrides: ``key.path=value`` each, applied in order.
        tolerate_missing_data: as in :meth:`Template.resolve`.

    Raises:
        ConfigError: with everything that is wrong with the file and the overrides.
        DataError: they are sound, but no layout is known in ``data.root``.
    """
    template = read_template(path, overrides)
    return template.resolve(tolerate_missing_data=tolerate_missing_data)


def _origins(tree: Json, places: Mapping[KeyPath, Place]) -> dict[str, str]:
    origins = {}
    for path in _leaves(tree):
        place = places.get(path)
        if place is None:
            origins[dotted(path)] = "default"
        else:
            chosen = place.is_override and not place.source.startswith(environment.PREFIX)
            origins[dotted(path)] = "override" if chosen else str(place)
    return origins


def digest(tree: Mapping[str, Json]) -> str:
    """SHA-256, in hex, of the values in a resolved tree."""
    canonical = json.dumps(tree, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(canonical.encode("ascii")).hexdigest()


def flatten(tree: Json) -> dict[str, Scalar]:
    """Every value of ``tree`` by its dotted path, list items by index.

    An empty list or section, which has no values, is given as ``[]`` or ``{}``.
    """
    return {dotted(path): value for path, value in _leaves(tree).items()}


def _leaves(tree: Json, path: KeyPath = ()) -> dict[KeyPath, Scalar]:
    if not isinstance(tree, dict | list):
        return {path: tree}
    if not tree:
        return {path: json.dumps(tree)}
    items = tree.items() if isinstance(tree, dict) else enumerate(tree)
    return {
        leaf: value
        for part, child in items
        for leaf, value in _leaves(child, (*path, part)).items()
    }


class Absent(enum.Enum):
    """Stands for a value that one of two configurations does not have."""

    ABSENT = "absent"

    def __str__(self) -> str:
        return self.value


ABSENT: Final = Absent.ABSENT
MaybeScalar: TypeAlias = Scalar | Literal[Absent.ABSENT]


class Difference(NamedTuple):
    """One value in which two configurations differ.

    Attributes:
        path: dotted.
        left: the first one's value.
        right: the second one's value.
    """

    path: str
    left: MaybeScalar
    right: MaybeScalar


def diff(left: Json, right: Json) -> list[Difference]:
    """Where two resolved trees differ, in the order of the first."""
    one, two = flatten(left), flatten(right)
    differences = [
        Difference(path, one.get(path, ABSENT), two.get(path, ABSENT)) for path in {**one, **two}
    ]
    return [found for found in differences if not _same(found.left, found.right)]


def _same(left: MaybeScalar, right: MaybeScalar) -> bool:
    # True == 1 and 1 == 1.0 to Python, but not to the digest.
    return type(left) is type(right) and left == right


def fill_in(document: Document) -> DataError | None:
    """Name the splits of ``data.root`` where the experiment names none.

    So a resolved experiment always names its splits, and a folder that changes later does not
    change what it says.

    Args:
        document: changed in place.

    Returns:
        Why they were not found. Then something else stands in for them, so that all the rest of
        the experiment can be examined.
    """
    data = document.tree.get("data") if isinstance(document.tree, dict) else None
    if not isinstance(data, dict) or "train" in data or "val" in data:
        return None
    root, kind = data.get("root"), data.get("format")
    if not isinstance(root, str) or root.startswith("~") or not isinstance(kind, str | None):
        return None  # Each of them is said when the experiment is validated.
    try:
        layout = find_layout(Path(root), kind)
        sections = _sections(layout, root, own_classes="classes" in data)
    except DataError as error:
        unknown: Json = {"images": ".", "annotations": "."}
        data |= {"train": unknown, "val": unknown}
        return error
    place = Place(f"found in {root}")
    for key, value in sections.items():
        data[key] = value
        document.places["data", key] = place
        if isinstance(value, dict):
            document.places.update(dict.fromkeys((("data", key, part) for part in value), place))
    return None


def _sections(layout: Layout, root: str, *, own_classes: bool) -> dict[str, Json]:
    """Keys of ``data`` and their values."""
    names = layout.require_pair()
    sections: dict[str, Json] = {"format": layout.kind}
    # A data.yaml stands for the folder it speaks of.
    if layout.root.resolve() != Path(root).resolve():
        sections["root"] = str(layout.root)
    if layout.classes is not None and not own_classes:
        sections["classes"] = layout.relative(layout.classes)
    for key, name in zip(("train", "val"), names, strict=True):
        split = layout.splits[name]
        sections[key] = {
            "images": layout.relative(split.images),
            "annotations": layout.relative(split.annotations),
        }
    return sections
