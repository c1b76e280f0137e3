"""Classes that other installed packages bring, found by the entry points of their metadata.

A package offers a detector in the group ``orchestrator.detectors`` and a backbone in
``orchestrator.backbones``; the entry point names a configuration class. What cannot be loaded is
kept with its reason, and raised where it is asked for: a broken package that an experiment does not
use must not stop it.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import sys
from collections.abc import Callable, Mapping
from functools import cache
from typing import Annotated, Any, Literal, NamedTuple, Union, get_args

from pydantic import Field, GetCoreSchemaHandler, create_model, model_validator
from pydantic_core import core_schema

from detectors.config import Settings


class PluginError(ValueError):
    """An entry point of an installed package that cannot be used."""


class ByName:
    """Annotation of a field that holds one of several sections, told apart by their ``name``.

    The classes are asked for when the field is first used and not when it is declared: a package
    that offers one of them may itself have fields of that kind.

    Args:
        table: gives the classes there are.
    """

    def __init__(self, table: Callable[[], Offered]) -> None:
        self._table = table

    def __get_pydantic_core_schema__(
        self, source: Any, handler: GetCoreSchemaHandler
    ) -> core_schema.CoreSchema:
        """A tagged union, with the reason where the tag is that of a broken package."""
        classes, broken = self._table()
        # Members like the others: a validator before the union would read lists of a JSON text as
        # Python's, which are no tuples. A name that was taken already has its member.
        refused = (name for name in broken if name not in classes)
        members = [*classes.values(), *(_refusing(name, broken[name]) for name in refused)]
        if len(members) == 1:
            return handler.generate_schema(members[0])
        choice: Any = Union[tuple(members)]  # noqa: UP007
        return handler.generate_schema(Annotated[choice, Field(discriminator="name")])


def _refusing(name: str, error: PluginError) -> type[Settings]:
    """A section of this name that says why there is none."""

    def refuse(cls: type[Settings], given: Any) -> Any:
        raise error

    before: Any = model_validator(mode="before")
    make: Any = create_model  # Its names are no static types.
    section: type[Settings] = make(
        f"Broken_{name}",
        __base__=Settings,
        __validators__={"refuse": before(classmethod(refuse))},
        name=(Literal[name], ...),
    )
    return section


class Offered(NamedTuple):
    """Classes that a field can name.

    Attributes:
        classes: usable configuration classes by name.
        broken: why those of a name cannot be used; of a name that this program has itself, why
            another package's cannot.
    """

    classes: dict[str, Any]
    broken: dict[str, PluginError]


@cache
def _installed(path: tuple[str, ...]) -> Any:  # Python 3.10 has a type of its own for it
    """Of all packages on ``path``, which is ``sys.path``: where it grows, there may be others."""
    return importlib.metadata.entry_points()


def entry_points(group: str) -> importlib.metadata.EntryPoints:
    """Those of one group.

    The metadata of all installed packages is read once: each search through it takes a tenth of the
    time in which an experiment file is read.
    """
    found: importlib.metadata.EntryPoints = _installed(tuple(sys.path)).select(group=group)
    return found


def offered(group: str, base: type[Settings], own: Mapping[str, type[Settings]]) -> Offered:
    """This program's configuration classes and those of a group of entry points.

    Args:
        group: of the entry points.
        base: what a class must derive from.
        own: classes of this program, whose names are not free.
    """
    found, taken = Offered(dict(own), {}), set(own)
    for point in sorted(entry_points(group), key=lambda p: p.name):
        config = _load(point, base)
        if point.name in taken and not isinstance(config, PluginError):
            config = PluginError(
                f"{_where(point)}: the name '{point.name}' is taken. Next: choose another"
            )
            if point.name not in own:
                # Two packages offer it, and neither is meant more than the other.
                found.classes.pop(point.name, None)
        if isinstance(config, PluginError):
            found.broken[point.name] = config
        else:
            found.classes[point.name] = config
            taken.add(point.name)
    return found


def _package(point: importlib.metadata.EntryPoint) -> str:
    return f"{point.dist.name} {point.dist.version}" if point.dist else "an unnamed package"


def _where(point: importlib.metadata.EntryPoint) -> str:
    return f"entry point '{point.name} = {point.value}' of {_package(point)}, group {point.group}"


def _load(
    point: importlib.metadata.EntryPoint, base: type[Settings]
) -> type[Settings] | PluginError:
    """The class, or what is wrong with it."""
    where = _where(point)
    try:
        config = point.load()
    # Whatever a foreign module raises at import is that module's fault, and has to say so.
    except (Exception, SystemExit) as error:
        return PluginError(
            f"{where}, cannot be loaded: {type(error).__name__}: {error}. "
            f"Next: mend or uninstall {_package(point)}"
        )
    if not (isinstance(config, type) and issubclass(config, base)):
        return PluginError(
            f"{where}, is no {base.__name__}, which is what this group takes. "
            f"Next: let it name the configuration class"
        )
    own = get_args(config.model_fields["name"].annotation)
    if own != (point.name,):
        return PluginError(
            f"{where}: the field 'name' of {config.__name__} must be Literal['{point.name}'], "
            f"found {', '.join(map(repr, own)) or 'no literal'}"
        )
    if not isinstance(getattr(config, "builder", None), str):
        return PluginError(
            f"{where}: {config.__name__} has no builder. Next: set "
            "builder: ClassVar[str] = 'module:callable'"
        )
    return config


def load_object(place: str) -> Any:
    """The object at ``module:attribute``, where the attribute may be dotted.

    Raises:
        ImportError: it is not there.
    """
    module, _, path = place.partition(":")
    found: Any = importlib.import_module(module)
    try:
        for part in path.split("."):
            found = getattr(found, part)
    except AttributeError as error:
        raise ImportError(f"{place} is not there: {error}", name=module) from error
    return found
