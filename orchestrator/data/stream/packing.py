"""Batches as rows of Ray Data, one each, and back."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

from orchestrator.data.batch import Allocate, Batch
from orchestrator.data.ray_rows import Rows, require_rows

_ARRAYS = tuple(field.name for field in fields(Batch) if field.name not in ("step", "replaced"))


def pack(make: Callable[[int, Batch | None], Batch], numbers: Sequence[int]) -> Rows:
    """The batches of ``numbers``, one at least, as columns with one row each.

    All but the first, which tells the shapes, are made right where they belong. Images of another
    batch may be turned by 90 degrees; they have as many bytes.
    """
    packed: Rows = {}
    steps, replaced, shapes = [], [], []
    for row, number in enumerate(numbers):
        if row == 0:
            batch = make(number, None)
            for name in _ARRAYS:
                values = getattr(batch, name)
                packed[name] = np.empty((len(numbers), *values.shape), values.dtype)
                packed[name][0] = values
        else:
            batch = make(number, Batch(step=-1, **{name: packed[name][row] for name in _ARRAYS}))
        steps.append(batch.step)
        shapes.append(batch.images.shape)
        replaced.append(json.dumps(batch.replaced))
    columns = {"step": steps, "shape": shapes, "replaced": replaced}
    return packed | {name: np.array(values) for name, values in columns.items()}


def unpack(rows: Rows, allocate: Allocate) -> Iterator[Batch]:
    """Inverse of :func:`pack`.

    The arrays are copied out of shared memory, once: they become writable, as torch wants them, lie
    where a device can fetch them, and the object store can drop the block.

    Raises:
        OrchestratorError: what the map stage found wrong.
    """
    require_rows(rows)
    for row, step in enumerate(rows["step"].tolist()):
        arrays = {name: _copied(rows[name][row], allocate) for name in _ARRAYS}
        arrays["images"] = arrays["images"].reshape(rows["shape"][row])
        yield Batch(
            step=step,
            replaced=tuple((p, s, why) for p, s, why in json.loads(rows["replaced"][row])),
            **arrays,
        )


def _copied(array: NDArray[Any], allocate: Allocate) -> NDArray[Any]:
    copy = allocate(array.shape, array.dtype)
    np.copyto(copy, array)
    return copy
