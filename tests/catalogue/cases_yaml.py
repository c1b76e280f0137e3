"""Experiment files and overrides: no YAML, more than a file may hold, values no field takes."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from catalogue_case import Case, Verdict

from orchestrator.config.resolve import load_experiment

FILE = "experiment.yaml"
YAML = """\
name: digits
seed: 1
detector:
  name: ssd
  variant: ssd300_mobilenet_v2
  width: 0.35
data:
  format: coco
  root: data/digits
  train: {images: images, annotations: train.json}
  val: {images: images, annotations: val.json}
  max_bad_fraction: 0.01
train:
  epochs: 11
  batch_size: 8
  optimizer: {name: adamw, lr: 2.0e-3, weight_decay: 0.05}
  evaluate_every_epochs: 11
storage: runs
"""
_BOMB = "a: &a [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{new}: &{new} [{', '.join([f'*{old}'] * 9)}]\n"
    for old, new in zip("abcde", "bcdef", strict=True)
)
#: Whole files: bytes, line, and what is said.
FILES: dict[str, tuple[bytes, str, str]] = {
    "empty": (b"", ":1", "found nothing"),
    "comment alone": (b"# later\n", ":1", "found nothing"),
    "null": (b"null\n", ":1", "found nothing"),
    "text": (b"digits\n", ":1", "a list or a single value"),
    "list": (b"- name: digits\n", ":1", "a list or a single value"),
    "two documents": (b"name: a\n---\nname: b\n", ":2", "second document"),
    "directive": (b"%YAML 1.1\n---\nname: a\n", ":1", "directive"),
    "tab": (b"data:\n\tformat: coco\n", ":2:1", "found a tab"),
    "null byte": (b"name: a\0b\n", ":1:8", "U+0000"),
    "bell": (b"name: a\nseed: \x07\n", ":2:7", "U+0007"),
    "next line": ("name: a\x85b\n".encode(), ":1:8", "U+0085"),
    "byte order mark": (b"\xef\xbb\xbfname: a\n", ":1:1", "byte-order mark"),
    "utf-16": ("name: a\n".encode("utf-16"), ":1:1", "byte-order mark"),
    "latin-1": (b"seed: 1\nname: Stra\xdfe\n", ":2:11", "0xdf, which is not UTF-8"),
    "half a character": (b"name: \xe2\x82", ":1:7", "not UTF-8"),
    "2 megabytes": (b"# " + b"a" * (2 << 20), ":1:1", "more than 1,048,576 bytes"),
    "json cut off": (b'{"name": "digits", "seed"', ":", "this is not YAML"),
    "bracket left open": (b"name: [1, 2\nseed: 1\n", ":2", "this is not YAML"),
    "bracket too many": (b"name: 1]\nseed: ]\n", ":2", "this is not YAML"),
    "quote left open": (b'name: "digits\nseed: 1\n', ":", "this is not YAML"),
    "colon without space": (b"name: a\nseed:1\n", ":", "this is not YAML"),
    "colon inside text": (b"name: digits: two\n", ":1", "this is not YAML"),
    "indented too little": (b"data:\n    format: coco\n  root: a\n", ":3", "this is not YAML"),
    "indented too much": (b"name: a\n  seed: 1\n", ":2", "this is not YAML"),
    "at sign": (b"name: @digits\n", ":1", "this is not YAML"),
    "percent sign": (b"name: %digits\n", ":1", "this is not YAML"),
    "backtick": (b"name: `digits`\n", ":1", "this is not YAML"),
    "unknown escape": (b'name: "\\q"\n', ":1", "this is not YAML"),
    "half a surrogate pair": (b'name: "\\ud800"\n', ":1", ""),
    "tag of a class": (b"name: !!python/object/apply:os.system [ls]\n", ":1", "tags are not"),
    "tag of a number": (b"seed: !!int 1\n", ":1", "tags are not"),
    "tag without handle": (b"seed: !a!b 1\n", ":1", "this is not YAML"),
    "alias without anchor": (b"name: *digits\n", ":1", "has no anchor"),
    "alias inside its anchor": (b"data: &a\n  root: *a\n", ":2", "inside its own anchor"),
    "anchor twice": (b"name: &a x\nstorage: &a y\n", ":2", "already set at"),
    "merge key": (b"data: &a {root: x}\ntrain:\n  <<: *a\n", ":3", "merge keys"),
    "list as key": (b"? [a, b]\n: 1\n", ":1", "a key must be plain text"),
    "mapping as key": (b"? {a: b}\n: 1\n", ":1", "a key must be plain text"),
    "number as key": (b"1: one\n", ":1", "a key must be text"),
    "null as key": (b"~: none\n", ":1", "a key must be text"),
    "alias bomb": (_BOMB.encode(), ":", "values after alias expansion"),
    "101 aliases": (
        b"a: &a 1\nb: [" + b", ".join([b"*a"] * 101) + b"]\n",
        ":2",
        "more than 100 aliases",
    ),
    "lists 10,000 deep": (b"a: " + b"[" * 10_000, ":1", "deeper than 32 levels"),
    "mappings 10,000 deep": (b"a: " + b"{a: " * 10_000, ":1", "deeper than 32 levels"),
    "dashes 10,000 deep": (b"- " * 10_000 + b"a\n", ":1", "deeper than 32 levels"),
    "20,000 values": (b"a: [" + b"1, " * 20_000 + b"1]\n", ":1", "more than 10,000 values"),
}
#: A line of the file, its replacement, the key it is about and what is said.
LINES: dict[str, tuple[str, str, str, str]] = {
    "unknown key": ("seed: 1", "sed: 1", "sed", "did you mean"),
    "unknown key in a section": ("  epochs: 11", "  epoch: 11", "train.epoch", "did you mean"),
    "key twice": ("seed: 1", "name: other", "name", "duplicate key"),
    "key twice in a section": ("  format: coco", "  root: b", "data.root", "duplicate key"),
    "section as text": (
        "  train: {images: images, annotations: train.json}",
        "  train: all",
        "data.train",
        "",
    ),
    "section as list": (
        "  optimizer: {name: adamw, lr: 2.0e-3, weight_decay: 0.05}",
        "  optimizer: [adamw]",
        "train.optimizer",
        "",
    ),
    "section null": (
        "  val: {images: images, annotations: val.json}",
        "  val: null",
        "data.val",
        "",
    ),
    "key of a section missing": (
        "  val: {images: images, annotations: val.json}",
        "  val: {images: images}",
        "data.val.annotations",
        "",
    ),
    "number as text": ("  epochs: 11", '  epochs: "11"', "train.epochs", ""),
    "number in words": ("  epochs: 11", "  epochs: eleven", "train.epochs", ""),
    "number null": ("  batch_size: 8", "  batch_size: null", "train.batch_size", ""),
    "number as list": ("  epochs: 11", "  epochs: [11]", "train.epochs", ""),
    "number true": ("  epochs: 11", "  epochs: true", "train.epochs", ""),
    "whole number with a fraction": ("  epochs: 11", "  epochs: 1.5", "train.epochs", ""),
    "zero epochs": ("  epochs: 11", "  epochs: 0", "train.epochs", ""),
    "negative epochs": ("  epochs: 11", "  epochs: -1", "train.epochs", ""),
    "zero batch": ("  batch_size: 8", "  batch_size: 0", "train.batch_size", ""),
    "beyond 64 bits": ("seed: 1", f"seed: {1 << 63}", "seed", "does not fit 64 bits"),
    "30,000 digits": ("seed: 1", f"seed: {'9' * 30_000}", "seed", "does not fit 64 bits"),
    "negative seed": ("seed: 1", "seed: -1", "seed", ""),
    "leading zero": ("  epochs: 11", "  epochs: 011", "train.epochs", "leading zero"),
    "infinite": ("  width: 0.35", "  width: .inf", "detector.width", "must be finite"),
    "nan": ("  width: 0.35", "  width: .nan", "detector.width", "must be finite"),
    "nan in words": ("  width: 0.35", "  width: nan", "detector.width", ""),
    "too large for a float": ("  width: 0.35", "  width: 1e999", "detector.width", "too large"),
    "negative width": ("  width: 0.35", "  width: -0.35", "detector.width", ""),
    "fraction above one": (
        "  max_bad_fraction: 0.01",
        "  max_bad_fraction: 1.5",
        "data.max_bad_fraction",
        "",
    ),
    "fraction in per cent": (
        "  max_bad_fraction: 0.01",
        "  max_bad_fraction: 1%",
        "data.max_bad_fraction",
        "",
    ),
    "unknown format": ("  format: coco", "  format: cocoa", "data.format", "coco"),
    "no format of old YAML": ("  format: coco", "  format: no", "data.format", ""),
    "unknown detector": ("  name: ssd", "  name: sdd", "detector.name", "ssd"),
    "unknown variant": (
        "  variant: ssd300_mobilenet_v2",
        "  variant: ssd300_mobilnet_v2",
        "detector.variant",
        "",
    ),
    "unknown optimizer": (
        "  optimizer: {name: adamw, lr: 2.0e-3, weight_decay: 0.05}",
        "  optimizer: {name: adamv, lr: 1}",
        "train.optimizer.name",
        "adamw",
    ),
    "rate of zero": (
        "  optimizer: {name: adamw, lr: 2.0e-3, weight_decay: 0.05}",
        "  optimizer: {name: adamw, lr: -1}",
        "train.optimizer.lr",
        "",
    ),
    "variable": ("storage: runs", "storage: ${HOME}/runs", "storage", "nothing expands"),
    "null byte escaped": ("  root: data/digits", '  root: "a\\0b"', "data.root", "no text (NUL"),
    "name of nothing": ("name: digits", 'name: ""', "name", ""),
    "name that is a path": ("name: digits", "name: ../digits", "name", ""),
    "name that is a number": ("name: digits", "name: 5", "name", ""),
    "name that is null": ("name: digits", "name: ~", "name", ""),
}
#: Overrides, each with what is said.
OVERRIDES = {
    "without value": ("train.epochs", "an override is key.path=value"),
    "without key": ("=3", "an override is key.path=value"),
    "with nothing after the equals sign": ("train.epochs=", "found no value"),
    "with dashes": ("--train.epochs=3", "no dashes"),
    "with an empty part": ("train..epochs=3", "an override is key.path=value"),
    "of an unknown key": ("train.epoch=3", "train.epoch"),
    "below a value": ("train.epochs.first=3", "train.epochs"),
    "of a list without it": ("data.augmentation.min_ious.99=0.5", "99"),
    "bracket left open": ("train.epochs=[1", "this is not YAML"),
    "quote left open": ("name='digits", "this is not YAML"),
    "with a tag": ("name=[!!python/name:os.system x]", "tags are not"),
    "with an alias": ("name=[*a]", "has no anchor"),
    "1,000 deep": ("name=" + "[" * 1000, "deeper than 32 levels"),
    "not finite": ("detector.width=.nan", "must be finite"),
    "of the wrong kind": ("train.epochs=many", "train.epochs"),
    "with a tab": ("name=[a\tb]", "found a tab"),
    "10,000 parts": ("a." * 10_000 + "b=1", "a"),
    "with a variable": ("storage=${HOME}", "nothing expands"),
}


def build_yaml(data: bytes, overrides: tuple[str, ...], folder: Path) -> partial[Any]:
    """An experiment file with overrides."""
    (folder / FILE).write_bytes(data)
    return partial(load_experiment, folder / FILE, overrides)


def cases() -> Iterator[Case]:
    """All entries of these kinds."""
    verdict = Verdict.CONFIG
    for name, (data, line, says) in FILES.items():
        yield Case("yaml", name, partial(build_yaml, data, ()), verdict, FILE + line, says)
    for name, (old, new, key, says) in LINES.items():
        assert YAML.count(old + "\n") == 1
        text = YAML.replace(old + "\n", new + "\n")
        build = partial(build_yaml, text.encode(), ())
        yield Case("yaml", name, build, verdict, f" {key}: ", says)
    for part, kept in (("a quarter", 0.25), ("half", 0.5), ("three quarters", 0.75)):
        data = YAML[: int(len(YAML) * kept)].encode()
        yield Case("yaml", f"{part} of the file", partial(build_yaml, data, ()), verdict, FILE, "")
    for name, (override, says) in OVERRIDES.items():
        build = partial(build_yaml, YAML.encode(), (override,))
        yield Case("override", name, build, verdict, f"override '{override[:6]}", says)
