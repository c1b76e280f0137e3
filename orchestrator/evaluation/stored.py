"""Whether the detections that a run stored are scored on the data they were found in."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from orchestrator.data.dataset import Dataset
from orchestrator.data.label_map import read_label_map
from orchestrator.errors import DataError
from orchestrator.storage.run_files import LABEL_MAP

#: AP of stored detections and AP in the event log are the same number, summed in another order.
_SAME_AP: Final = 1e-9


def require_classes_of(run_dir: Path, dataset: Dataset) -> None:
    """Raise unless a data set has the classes of a run; nothing is known of one without a map.

    Args:
        run_dir: of the run.
        dataset: its validation data, as it is now.

    Raises:
        DataError: the classes differ, or the run's cannot be read.
    """
    file = run_dir / LABEL_MAP
    if file.is_file():
        read_label_map(file).require_equal(dataset.label_map, here=str(file), there="the data now")


def require_logged_ap(name: str, ap: float, logged: float | None) -> None:
    """Raise unless stored detections score today what they scored in the run.

    Args:
        name: of the run.
        ap: of its stored detections.
        logged: of its last evaluation; None where its event log has none.

    Raises:
        DataError: they do not.
    """
    if logged is not None and abs(ap - logged) > _SAME_AP:
        raise DataError(
            f"the stored detections of {name} score AP {ap:.4f} on the validation data, and "
            f"scored {logged:.4f} in the run, so the data is not what it was. Next: name the data "
            "of the run, data.root=FOLDER; if the run was killed in an evaluation, let it go on"
        )
