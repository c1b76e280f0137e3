"""What the ONNX exporter has to be told of this program's own operators.

Both become operators of ONNX that keep fixed shapes up to the suppression itself, as compilers for
accelerators want it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

# They define the operators that are translated.
import detectors.roi_align
import detectors.suppression  # noqa: F401

_FLOAT, _BOOL = 1, 9  # of TensorProto


def translations() -> dict[Callable[..., Any], Callable[..., Any]]:
    """``custom_translation_table`` of ``torch.onnx.export``; needs onnxscript."""
    from onnxscript import opset18 as op

    def suppress_sorted(boxes: Any, valid: Any, iou_threshold: float) -> Any:
        """``detectors::suppress_sorted`` by NonMaxSuppression, which keeps the same boxes.

        That one sorts by score: P, P - 1, ... 1 say that the boxes are sorted, and 0, which is not
        above the threshold, that a slot is not valid. Both take IoU as intersection over
        (area + area - intersection) in float32 and remove what is strictly above the threshold.
        """
        slots = op.Shape(valid, start=1, end=2)
        falling = op.Range(op.Squeeze(slots), op.Constant(value_int=0), op.Constant(value_int=-1))
        scores = op.Where(valid, op.Cast(falling, to=_FLOAT), op.Constant(value_float=0.0))
        selected = op.NonMaxSuppression(
            boxes,
            op.Unsqueeze(scores, op.Constant(value_ints=[1])),
            slots,
            op.Constant(value_floats=[iou_threshold]),
            op.Constant(value_floats=[0.0]),
        )
        # Rows are (image, class, slot), and there is one class.
        rows = op.Gather(selected, op.Constant(value_ints=[0, 2]), axis=1)
        zeros = op.Expand(op.Constant(value_int=0), op.Shape(valid))
        ones = op.Expand(op.Constant(value_int=1), op.Shape(rows, start=0, end=1))
        return op.Cast(op.ScatterND(zeros, rows, ones), to=_BOOL)

    def pyramid_roi_align(
        maps: Sequence[Any],
        boxes: Any,
        levels: Any,
        strides: Sequence[int],
        size: int,
        samples: int,
        aligned: bool,
        end_pixel: bool = False,
    ) -> Any:
        """``detectors::pyramid_roi_align``: RoiAlign of all boxes on each level, one is taken.

        Sorting boxes by level would pool each once, in shapes that depend on the image; pooling is
        little beside the convolutions.
        """
        images, rois = op.Shape(boxes, start=0, end=1), op.Shape(boxes, start=1, end=2)
        count = op.Range(op.Constant(value_int=0), op.Squeeze(images), op.Constant(value_int=1))
        column = op.Unsqueeze(count, op.Constant(value_ints=[1]))
        flat = op.Constant(value_ints=[-1])
        image = op.Reshape(op.Expand(column, op.Concat(images, rois, axis=0)), flat)
        corners = op.Reshape(boxes, op.Constant(value_ints=[-1, 4]))
        low, high = op.Split(corners, num_outputs=2, axis=1)
        if end_pixel:
            high = op.Add(high, op.Constant(value_float=1.0))
        own = op.Reshape(levels, op.Constant(value_ints=[-1, 1, 1, 1]))
        pooled = None
        for level, (features, stride) in enumerate(zip(maps, strides, strict=True)):
            if aligned:
                rois_of_level = op.Concat(low, high, axis=1)
            elif end_pixel:
                # Pixel centres at half coordinates, in boxes moved by half a cell: otherwise
                # runtimes make boxes at least a cell long.
                half = op.Constant(value_float=stride / 2)
                rois_of_level = op.Concat(op.Add(low, half), op.Add(high, half), axis=1)
            else:
                # Pixel centres at whole coordinates come with boxes of at least a cell, which
                # runtimes do not agree to see to themselves (onnxruntime pull request 27554).
                side = op.Constant(value_float=float(stride))
                rois_of_level = op.Concat(low, op.Max(high, op.Add(low, side)), axis=1)
            centres = "half_pixel" if aligned or end_pixel else "output_half_pixel"
            found = op.RoiAlign(
                features,
                rois_of_level,
                image,
                coordinate_transformation_mode=centres,
                mode="avg",
                output_height=size,
                output_width=size,
                sampling_ratio=samples,
                spatial_scale=1.0 / stride,
            )
            here = op.Equal(own, op.Constant(value_int=level))
            pooled = found if pooled is None else op.Where(here, found, pooled)
        channels_and_cells = op.Constant(value_ints=[-1, size, size])
        return op.Reshape(pooled, op.Concat(images, rois, channels_and_cells, axis=0))

    return {
        torch.ops.detectors.suppress_sorted.default: suppress_sorted,
        torch.ops.detectors.pyramid_roi_align.default: pyramid_roi_align,
    }
