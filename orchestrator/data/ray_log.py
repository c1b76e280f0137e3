"""What Ray Data says of itself, kept out of the log of a run."""

from __future__ import annotations

import logging


def hush_ray_data() -> None:
    """Keep what every execution of Ray Data says of itself out of the log of the run."""
    logging.getLogger("ray.data").setLevel(logging.WARNING)
    logging.getLogger("ray.data._internal.progress").setLevel(logging.ERROR)
