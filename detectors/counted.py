"""Figures of the published variants, counted once: building every network takes many seconds.

``counted.json`` holds them. A test compares the file with the networks; ``python -m
detectors.counted`` writes it.
"""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any, Final

from detectors.figures import Measured
from detectors.registry import variant_config, variants

FILE: Final = Path(__file__).with_name("counted.json")
#: Foreground classes that the figures in the file are for: COCO's.
CLASSES: Final = 80


def count(variant: str, *, num_classes: int) -> Measured:
    """Figures of a variant as it was published, from the file where it has them.

    Args:
        variant: one of :func:`detectors.registry.variants`.
        num_classes: foreground classes.

    Raises:
        KeyError: there is no such variant.
    """
    known = _known().get(variant) if num_classes == CLASSES else None
    if known is not None:
        return Measured(**known)
    from detectors.measure import measure

    return measure(variant_config(variant), num_classes=num_classes)


def own_variants() -> list[str]:
    """Variants of this package, in order; what others bring is counted when it is asked for."""
    return [name for name, kind in variants().items() if kind.__module__.startswith("detectors.")]


@cache
def _known() -> dict[str, dict[str, int]]:
    rows: list[dict[str, Any]] = json.loads(FILE.read_bytes())
    return {row["variant"]: row["figures"] for row in rows}


def main() -> None:
    """Count all variants and write the file."""
    from detectors.measure import measure

    rows = [
        {
            "variant": variant,
            "figures": measure(variant_config(variant), num_classes=CLASSES)._asdict(),
        }
        for variant in own_variants()
    ]
    FILE.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
