"""``orchestrator models``: the detectors there are, and whether they are what was published."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from orchestrator.cli._shared.parser import COUNT, Parser
from orchestrator.errors import ConfigError, did_you_mean

if TYPE_CHECKING:
    from detectors.published import Comparison

_DIFFERS = 1


def main(argv: Sequence[str]) -> int:
    """Print all variants, or check them; 1 when one differs from a published figure."""
    parser = Parser(
        prog="orchestrator models",
        description="variants of all detectors, with what can be counted of each",
    )
    parser.add_argument("variants", nargs="*", metavar="VARIANT", help="only these")
    parser.add_argument(
        "--check", action="store_true", help="compare with the published figures instead"
    )
    parser.add_argument(
        "--classes", type=COUNT, default=80, metavar="K", help="foreground classes (default: 80)"
    )
    parser.add_argument("--json", action="store_true", help="for programs")
    arguments = parser.parse_args(argv)
    chosen = _chosen(arguments.variants)
    if arguments.check:
        return _check(chosen, as_json=arguments.json)
    _list(chosen, classes=arguments.classes, as_json=arguments.json)
    return 0


def _chosen(names: Sequence[str]) -> list[str]:
    from detectors.registry import variants

    known = variants()
    for name in names:
        if name not in known:
            hint = did_you_mean(name, known)
            raise ConfigError(f"no variant '{name}'; allowed are {', '.join(known)}{hint}")
    return [name for name in known if not names or name in names]


def _list(chosen: Sequence[str], *, classes: int, as_json: bool) -> None:
    from detectors.backbones.config import backbones
    from detectors.counted import count
    from detectors.registry import broken_detectors, variant_config

    rows: list[dict[str, Any]] = []
    for variant in chosen:
        config = variant_config(variant)
        counted = count(variant, num_classes=classes)
        rows.append({"variant": variant, "detector": config.name, "classes": classes})
        rows[-1] |= counted._asdict()
    if as_json:
        print(json.dumps(rows, indent=2))
        return
    head = ("variant", "input", "parameters", "multiply-adds", "priors")
    table: list[Sequence[str]] = [
        (
            row["variant"],
            f"{row['height']} x {row['width']}",
            f"{row['parameters']:,}",
            f"{row['multiply_adds'] / 1e9:.2f} G",
            f"{row['priors']:,}",
        )
        for row in rows
    ]
    print(_aligned([head, *table], right={2, 3, 4}))
    print(f"({classes} foreground classes; multiply-adds of convolutions and products, one image)")
    for reason in (*broken_detectors().values(), *backbones().broken.values()):
        print(f"not usable: {reason}")


def _check(chosen: Sequence[str], *, as_json: bool) -> int:
    from detectors.published import compare_with_published, published_networks
    from detectors.registry import DETECTORS

    networks = [n for name in DETECTORS for n in published_networks(name) if n.variant in chosen]
    compared = list(compare_with_published(networks))
    if as_json:
        print(json.dumps([_plain(one) for one in compared], indent=2))
    else:
        head = ("network", "figure", "published", "built", "verdict", "source")
        table = [
            (
                one.network,
                one.figure.name.replace("_", " "),
                _number(one.figure.value),
                _number(one.built),
                "same" if one.agrees else "DIFFERS",
                one.figure.source,
            )
            for one in compared
        ]
        print(_aligned([head, *table], right={2, 3}))
        wrong = sum(not one.agrees for one in compared)
        print(f"{len(compared)} figures of {len(networks)} networks, {wrong} of them differ")
    return 0 if all(one.agrees for one in compared) else _DIFFERS


def _plain(one: Comparison) -> dict[str, Any]:
    return {
        "network": one.network,
        "figure": one.figure.name,
        "published": one.figure.value,
        "within": one.figure.within,
        "source": one.figure.source,
        "built": one.built,
        "agrees": one.agrees,
    }


def _number(value: float) -> str:
    return f"{value:,.0f}"


def _aligned(rows: Sequence[Sequence[str]], *, right: set[int]) -> str:
    """Columns side by side; those in ``right`` end at the right, as numbers do."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [
        "  ".join(
            cell.rjust(width) if index in right else cell.ljust(width)
            for index, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]
    return "\n".join(lines)
