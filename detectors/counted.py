"""Figures of the published variants, counted once: building every network takes many seconds.

``counted.json`` holds them with a digest of the configuration that was built, so that a variant
whose configuration has changed since is counted anew. A test compares the file with the networks;
``python -m detectors.counted`` writes it.
"""

from __future__ import annotations

import hashlib
import json
from functools import cache
from pathlib import Path
from typing import Any, Final

from detectors.config import DetectorConfig
from detectors.figures import Measured
from detectors.registry import variant_config, variants

FILE: Final = Path(__file__).with_name("counted.json")
#: Foreground classes that the figures in the file are for: COCO's.
CLASSES: Final = 80


def count(config: DetectorConfig, *, num_classes: int) -> Measured:
    """Figures of a detector, from the file where it has them.

    Args:
        config: of the detector.
        num_classes: foreground classes.
    """
    known = _known().get(_digest(config)) if num_classes == CLASSES else None
    if known is not None:
        return Measured(**known)
    from detectors.measure import measure

    return measure(config, num_classes=num_classes)


def own_variants() -> list[str]:
    """Variants of this package, in order; what others bring is counted when it is asked for."""
    return [name for name, kind in variants().items() if kind.__module__.startswith("detectors.")]


@cache
def _known() -> dict[str, dict[str, int]]:
    rows: list[dict[str, Any]] = json.loads(FILE.read_bytes())
    return {row["config"]: row["figures"] for row in rows}


def _digest(config: DetectorConfig) -> str:
    values = config.model_dump(mode="json")
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


def main() -> None:
    """Count all variants and write the file."""
    from detectors.measure import measure

    rows = [
        {
            "variant": variant,
            "config": _digest(config),
            "figures": measure(config, num_classes=CLASSES)._asdict(),
        }
        for variant, config in ((variant, variant_config(variant)) for variant in own_variants())
    ]
    FILE.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
