"""The schema as a tree that can be walked along a key path.

Built on the JSON Schema that pydantic derives from :class:`Experiment`, so it also knows the
detectors' sections without knowing any detector. Overrides, error messages and editors all ask
it the same questions: which keys may stand here, and what may a value be.
"""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel

from orchestrator.config.problems import KeyPath
from orchestrator.config.scalars import Json, shorten
from orchestrator.config.schema import Experiment

Node = dict[str, Any]

_BOUNDS = {
    "minimum": ">= {:g}",
    "exclusiveMinimum": "> {:g}",
    "maximum": "<= {:g}",
    "exclusiveMaximum": "< {:g}",
}
_MARKUP = re.compile(r"(?::\w+:)?`+([^`]+)`+")
_ENTRY = re.compile(r"^ {0,4}(\w+(?:, \w+)*): (.*)$")


@functools.cache
def json_schema() -> Node:
    """JSON Schema (draft 2020-12) of an experiment file, every field with its description."""
    schema: Node = {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        **Experiment.model_json_schema(),
    }
    # The others stand for plain values, such as any JSON.
    models = [model for model in (schema, *schema["$defs"].values()) if "properties" in model]
    for model in models:
        _describe_fields(model)
    _allow_span(schema["$defs"]["ClusterConfig"]["properties"]["workers"])
    # Where neither is given, both are looked for in data.root.
    data = schema["$defs"]["DataConfig"]
    data["required"] = [key for key in data["required"] if key not in ("train", "val")]
    for target in schema["properties"]["detector"]["discriminator"]["mapping"].values():
        _leave_to_variant(schema["$defs"], target)
    for field in (field for model in models for field in model["properties"].values()):
        # Pydantic needs the tag of a union even where the class has a default for it.
        tag = field.get("discriminator")
        for target in tag["mapping"].values() if tag else ():
            member = schema["$defs"][target.rpartition("/")[2]]
            required = member.setdefault("required", [])
            if tag["propertyName"] not in required:
                required.append(tag["propertyName"])
    return schema


def _allow_span(workers: Node) -> None:
    """Allow a least and a most number, which reading a file turns into two values."""
    count = {"type": workers.pop("type"), "minimum": workers.pop("minimum")}
    properties = {
        "min": {**count, "description": "Least workers that the run goes on with."},
        "max": {**count, "description": "Most workers, and parts of a batch."},
    }
    span = {
        "type": "object",
        "properties": properties,
        "required": list(properties),
        "additionalProperties": False,
    }
    workers["anyOf"] = [count, span]


def _leave_to_variant(models: Node, target: str) -> None:
    """Require nothing of a detector and its parts: its variant fills in what is not given."""
    model = models[target.rpartition("/")[2]]
    if model.pop("required", None) is not None or "variant" in model["properties"]:
        for reference in re.findall(r"#/\$defs/\w+", json.dumps(model["properties"])):
            _leave_to_variant(models, reference)


def _describe_fields(model: Node) -> None:
    """Move the entries of a docstring's ``Attributes`` section to the fields they describe."""
    summary, _, section = model.get("description", "").partition("\n\nAttributes:\n")
    model["description"] = " ".join(summary.split())
    texts: dict[str, list[str]] = {}
    lines: list[str] = []
    for line in section.splitlines():
        entry = _ENTRY.match(line)
        if entry:
            lines = [entry[2]]
            texts |= dict.fromkeys(entry[1].split(", "), lines)
        elif line.strip():
            lines.append(line.strip())
    for name, lines in texts.items():
        field = model.get("properties", {}).get(name)
        if field is not None:
            field["description"] = _MARKUP.sub(r"'\1'", " ".join(lines))


def published_schema() -> Node:
    """The schema for editors: :func:`json_schema` with ``extends``, and nothing required.

    What a file leaves out, the name that tells kinds of a section apart included, may stand in the
    file that it extends. And ``data.augmentation`` may be a list, which reading a file turns into
    the section that it stands for.
    """
    extends = {
        "type": "string",
        "minLength": 1,
        "description": "Experiment file that this one is laid over, relative to it.",
    }
    schema: Node = _partial(json_schema())
    chain = schema["$defs"]["ChainAugmentation"]["properties"]
    item = {"anyOf": [chain["steps"]["items"], chain["last"]]}
    augmentation = schema["$defs"]["DataConfig"]["properties"]["augmentation"]
    augmentation["anyOf"].append({"type": "array", "minItems": 1, "items": item})
    schema["properties"] = {"extends": extends, **schema["properties"]}
    return schema


def _partial(node: Any) -> Any:
    """A schema whose sections may be parts of sections; of several kinds more than one may fit."""
    if isinstance(node, list):
        return [_partial(item) for item in node]
    if not isinstance(node, dict):
        return node
    renamed = {"anyOf" if key == "oneOf" else key: item for key, item in node.items()}
    return {key: _partial(item) for key, item in renamed.items() if not _asks(key, item)}


def _asks(key: str, value: Any) -> bool:
    return key == "required" and isinstance(value, list)


class Shape:
    """What may stand at one place of an experiment file."""

    def __init__(self, node: Node, definitions: Mapping[str, Node]) -> None:
        self._definitions = definitions
        self._node = self._resolved(node)

    @classmethod
    def root(cls) -> Shape:
        """The whole file."""
        schema = json_schema()
        return cls(schema, schema["$defs"])

    @classmethod
    def of(cls, model: type[BaseModel]) -> Shape:
        """What a model takes."""
        schema = model.model_json_schema()
        return cls(schema, schema.get("$defs", {}))

    def _resolved(self, node: Node) -> Node:
        while "$ref" in node:
            siblings = {key: value for key, value in node.items() if key != "$ref"}
            node = {**self._definitions[node["$ref"].rpartition("/")[2]], **siblings}
        return node

    def _of(self, node: Node) -> Shape:
        return Shape(node, self._definitions)

    @property
    def alternatives(self) -> list[Shape]:
        """The kinds of value allowed here, null aside; itself where there is only one."""
        branches = [self._of(branch) for branch in self._node.get("anyOf", [])]
        return [branch for branch in branches if branch._node.get("type") != "null"] or [self]

    @property
    def nullable(self) -> bool:
        """Whether null is allowed here."""
        return any(branch.get("type") == "null" for branch in self._node.get("anyOf", []))

    @property
    def default(self) -> Json:
        """The value a field takes if it is not given; None if it has to be."""
        default: Json = self._node.get("default")
        return default

    @property
    def tag(self) -> str | None:
        """The key that selects among several kinds of section, such as ``name``."""
        (only, *_) = self.alternatives
        tag: str | None = only._node.get("discriminator", {}).get("propertyName")
        return tag

    @property
    def tags(self) -> list[str]:
        """The values of :attr:`tag`."""
        return list(self._members)

    @property
    def _members(self) -> dict[str, Shape]:
        (only, *_) = self.alternatives
        mapping = only._node.get("discriminator", {}).get("mapping", {})
        return {tag: self._of({"$ref": target}) for tag, target in mapping.items()}

    def _sections(self, value: Json) -> list[Shape]:
        """The kinds of section that ``value`` may be, judging by its tag."""
        if self.tag is None:
            return self.alternatives
        tag = value.get(self.tag) if isinstance(value, dict) else None
        chosen = self._members.get(tag) if isinstance(tag, str) else None
        return [chosen] if chosen is not None else list(self._members.values())

    def key_names(self, value: Json = None) -> list[str]:
        """Keys a section here may have; empty if no section may stand here.

        Args:
            value: what stands here now; its tag narrows the choice.
        """
        found: dict[str, None] = {}
        for section in self._sections(value):
            found.update(dict.fromkeys(section._node.get("properties", {})))
        return list(found)

    def child(self, part: str | int, value: Json = None) -> Shape | None:
        """What may stand at key or index ``part`` of ``value``; None if nothing may."""
        for section in self._sections(value):
            node = section._node
            if isinstance(part, str):
                found = node.get("properties", {}).get(part) or node.get("additionalProperties")
            else:
                fixed = node.get("prefixItems", [])
                found = fixed[part] if part < len(fixed) else node.get("items")
            if isinstance(found, dict):
                return self._of(found)
        return None

    @property
    def named(self) -> Shape | None:
        """What may stand at every key of a section whose keys are names; None of any other."""
        for section in self.alternatives:
            values = section._node.get("additionalProperties")
            if isinstance(values, dict):
                return self._of(values)
        return None

    @property
    def types(self) -> set[str]:
        """JSON types allowed here, null aside."""
        return {shape._node["type"] for shape in self.alternatives if "type" in shape._node}

    @property
    def choices(self) -> list[str]:
        """Text values allowed here, if they are a closed set."""
        values = [
            value
            for shape in self.alternatives
            for value in shape._node.get("enum", [shape._node.get("const")])
        ]
        return [value for value in values if isinstance(value, str)]

    def at(self, path: KeyPath, value: Json) -> Shape | None:
        """What may stand at ``path`` below ``value``, which stands here."""
        shape: Shape | None = self
        for part in path:
            if shape is None:
                return None
            shape, value = shape.child(part, value), step_into(value, part)
        return shape

    def key_path(self, location: tuple[str | int, ...]) -> KeyPath:
        """A pydantic error location without the tags and branches it names on the way."""
        path: list[str | int] = []
        shape: Shape | None = self
        for part in location:
            if shape is None:
                path.append(part)
            elif shape.tag is not None:
                shape = shape._members.get(str(part))
            elif len(shape.alternatives) > 1:
                break
            else:
                path.append(part)
                shape = shape.child(part)
        return tuple(path)

    def fields(self, path: KeyPath = ()) -> list[KeyPath]:
        """Paths of all fields below ``path``, which is this place, of every kind of section."""
        found: list[KeyPath] = []
        for section in self._sections(None):
            for name in section.key_names():
                inner = (*path, name)
                below = section.child(name)
                found += [inner, *(below.fields(inner) if below is not None else [])]
        return list(dict.fromkeys(found))

    def describe(self) -> str:
        """What may stand here, in words."""
        kinds = [shape._describe_one() for shape in self.alternatives]
        return " or ".join([*kinds, *(["null"] if self.nullable else [])])

    def _describe_one(self) -> str:
        node = self._node
        if self.choices:
            return one_of(self.choices)
        if self.tag is not None:
            return f"a section with {self.tag}: {one_of(self.tags)}"
        match node.get("type"):
            case "boolean":
                return "true or false"
            case "integer" | "number" as kind:
                noun = "a whole number" if kind == "integer" else "a number"
                bounds = [form.format(node[key]) for key, form in _BOUNDS.items() if key in node]
                return " ".join([noun, " and ".join(bounds)]).strip()
            case "string":
                pattern = f" that matches {node['pattern']}" if "pattern" in node else ""
                return f"text{pattern}" if pattern or "minLength" not in node else "text, not empty"
            case "array":
                return self._describe_list()
            case "object" if self.named is not None:
                return f"a section of NAME: {self.named.describe()}"
            case "object":
                return f"a section with the keys {', '.join(self.key_names())}"
        return "a value"

    def _describe_list(self) -> str:
        node = self._node
        if "prefixItems" in node:
            items = [self._of(item).describe() for item in node["prefixItems"]]
            if len(set(items)) == 1:
                return f"a list of {len(items)} values, each {items[0]}"
            return f"a list of {len(items)} values: {', '.join(items)}"
        each = self._of(node["items"]).describe() if "items" in node else "anything"
        least = f", at least {node['minItems']}" if "minItems" in node else ""
        return f"a list of values{least}, each {each}"


def step_into(value: Json, part: str | int) -> Json:
    """The value at key or index ``part``; None where there is none."""
    if isinstance(value, dict) and isinstance(part, str):
        return value.get(part)
    if isinstance(value, list) and isinstance(part, int) and part < len(value):
        return value[part]
    return None


def one_of(values: list[str]) -> str:
    """``'a', 'b' or 'c'``."""
    names = [f"'{shorten(value)}'" for value in values]
    return " or ".join([", ".join(names[:-1]), names[-1]]) if len(names) > 1 else names[0]
