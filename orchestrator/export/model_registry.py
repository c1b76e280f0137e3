"""Exported detectors in MLflow's model registry: from an image to its detections, without PyTorch's
classes and without pickle.

MLflow imports this module to load such a model (its ``loader_module``), gives it the exported file,
and gets something that predicts.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import torch
from numpy.typing import NDArray

from detectors.boxes import map_to_original
from detectors.config import PostprocessConfig
from detectors.postprocess import postprocess
from detectors.structures import Candidates, ImageDetections
from orchestrator.errors import ConfigError, DataError, StorageError
from orchestrator.export.artifact import ExportedDetector

if TYPE_CHECKING:
    import pandas as pd

#: Columns of a prediction: which image of the input, xyxy in its pixels, score and class.
COLUMNS: Final = ("image", "x1", "y1", "x2", "y2", "score", "category_id", "category")
_EXAMPLE_SIDE = 32


class RegisteredDetector:
    """What ``mlflow.pyfunc.load_model`` returns inside its wrapper.

    Args:
        path: of the exported file.
    """

    def __init__(self, path: Path) -> None:
        self.exported = ExportedDetector(path)
        self.config = PostprocessConfig.model_validate(self.exported.metadata.postprocess)

    def detect(self, image: NDArray[np.uint8]) -> ImageDetections:
        """Detections of one (h, w, 3) RGB image in its pixels.

        Raises:
            DataError: the file has other classes than it states.
        """
        ready, transform = self.exported.prepare(image)
        boxes, scores = self.exported(ready[None])
        classes = len(self.exported.label_map)
        if scores.shape[2] != classes:
            raise DataError(
                f"the exported file has scores for {scores.shape[2]} classes, and its label map "
                f"has {classes}. Next: export again"
            )
        mapped = map_to_original(
            boxes,
            torch.tensor([transform], dtype=torch.float64),
            torch.tensor([image.shape[:2]]),
        )
        return postprocess(Candidates(mapped, scores), self.config)[0]

    def predict(self, model_input: Any, params: dict[str, Any] | None = None) -> pd.DataFrame:
        """Detections of (N, h, w, 3) uint8 RGB images, a row each with :data:`COLUMNS`.

        Raises:
            DataError: anything but such images.
        """
        import pandas as pd

        images = np.asarray(model_input)
        shaped = images.ndim == 4 and images.shape[3] == 3 and 0 not in images.shape[1:]
        if not shaped or images.dtype != np.uint8:
            raise DataError(
                f"found an input of shape {images.shape} and type {images.dtype}, expected "
                "(N, h, w, 3) uint8, RGB. Next: stack images of one size"
            )
        label_map = self.exported.label_map
        rows = [
            (number, *box, score, label_map.ids[label], label_map.names[label])
            for number, image in enumerate(images)
            for found in [self.detect(image)]
            for box, score, label in zip(
                found.boxes.double().tolist(),
                found.scores.double().tolist(),
                found.labels.tolist(),
                strict=True,
            )
        ]
        frame = pd.DataFrame(rows, columns=list(COLUMNS))
        whole = {"image": "int64", "category_id": "int64"}
        return frame.astype(whole | dict.fromkeys(COLUMNS[1:6], "float64"))


def _load_pyfunc(data_path: str) -> RegisteredDetector:
    """The name by which MLflow asks for a model."""
    return RegisteredDetector(Path(data_path))


@dataclass(frozen=True)
class Registered:
    """Where a model is now.

    Attributes:
        uri: to load it by: ``models:/NAME@ALIAS``.
        version: counted up by MLflow.
        run_id: the MLflow run it belongs to.
    """

    uri: str
    version: str
    run_id: str


def register(
    path: Path, name: str, *, alias: str, tracking_uri: str, experiment: str, run_id: str | None
) -> Registered:
    """Log an exported file as a model, register it and point an alias at the new version.

    Args:
        path: of a file that has passed the parity gate.
        name: in the registry; made when missing.
        alias: moves here from an older version.
        tracking_uri: of MLflow, absolute.
        experiment: of a new run, where there is none to log into.
        run_id: the MLflow run of the training; None makes one.

    Raises:
        ConfigError: MLflow does not take the name or the alias.
        StorageError: MLflow failed otherwise.
    """
    import mlflow
    from mlflow.exceptions import MlflowException
    from mlflow.models import ModelSignature
    from mlflow.types.schema import ColSpec, DataType, Schema, TensorSpec

    types = (DataType.long, *[DataType.double] * 5, DataType.long, DataType.string)
    signature = ModelSignature(
        inputs=Schema([TensorSpec(np.dtype(np.uint8), (-1, -1, -1, 3))]),
        outputs=Schema(
            [ColSpec(kind, column) for kind, column in zip(types, COLUMNS, strict=True)]
        ),
    )
    # Small, because MLflow keeps it as text.
    ramp = np.linspace(0, 255, _EXAMPLE_SIDE).astype(np.uint8)
    example = np.broadcast_to(ramp[None, None, :, None], (1, _EXAMPLE_SIDE, _EXAMPLE_SIDE, 3))
    metadata = ExportedDetector(path).metadata
    before = mlflow.get_tracking_uri()
    try:
        mlflow.set_tracking_uri(tracking_uri)
        if run_id is None:
            mlflow.set_experiment(experiment)
        with _logging_into(run_id, name) as logged_into:
            info = mlflow.pyfunc.log_model(
                name="detector",
                loader_module=__name__,
                data_path=str(path),
                signature=signature,
                input_example=np.ascontiguousarray(example),
                registered_model_name=name,
                # Guessing would import and run the model in a process of its own.
                pip_requirements=["detection-orchestrator[export]"],
                metadata={
                    "weights_sha256": metadata.weights_sha256,
                    "config_digest": metadata.config_digest,
                    "program": metadata.program,
                },
            )
        version = str(info.registered_model_version)
        mlflow.MlflowClient().set_registered_model_alias(name, alias, version)
    except MlflowException as error:
        if error.error_code == "INVALID_PARAMETER_VALUE":
            raise ConfigError(f"--register {name} --alias {alias}: {error.message}") from error
        raise StorageError(
            f"MLflow at {tracking_uri} did not take the model {name!r} ({error.message}). Next: "
            "export again once it is well; the exported file is complete"
        ) from error
    finally:
        mlflow.set_tracking_uri(before)
    return Registered(f"models:/{name}@{alias}", version, logged_into)


@contextmanager
def _logging_into(run_id: str | None, name: str) -> Iterator[str]:
    """Begin an MLflow run of this name, or one that is there, which stays as and when it ended."""
    import mlflow

    client = mlflow.MlflowClient()
    ended = None if run_id is None else client.get_run(run_id).info
    if ended is not None:
        # Otherwise a run of another experiment than the last that was named cannot be begun.
        mlflow.set_experiment(experiment_id=ended.experiment_id)
    try:
        with mlflow.start_run(run_id=run_id, run_name=None if run_id else name) as run:
            yield run.info.run_id
    finally:
        # MLflow has ended it once more, as finished and now.
        if ended is not None and ended.end_time is not None:
            client.set_terminated(ended.run_id, ended.status, ended.end_time)
        elif ended is not None:
            client.update_run(ended.run_id, status=ended.status)
