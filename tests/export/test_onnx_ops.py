"""Operators of our own as ONNX has them, against the operators themselves, in onnxruntime."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from detectors.roi_align import pyramid_roi_align
from detectors.suppression import suppress_sorted
from orchestrator.export.export import OPSET
from orchestrator.export.onnx_ops import translations

_WHY = "not installed; it is in the extra `export`"
onnx = pytest.importorskip("onnx", reason=f"onnx is {_WHY}")
onnxruntime = pytest.importorskip("onnxruntime", reason=f"onnxruntime is {_WHY}")
pytest.importorskip("onnxscript", reason=f"onnxscript is {_WHY}")

_FREE = {0: torch.export.Dim.DYNAMIC}


def translated(module, *examples, shapes):
    """A module as a function of arrays, run by onnxruntime, and the operators in it."""
    with torch.no_grad():
        made = torch.onnx.export(
            module.eval(),
            examples,
            dynamo=True,
            dynamic_shapes=shapes,
            opset_version=OPSET,
            custom_translation_table=translations(),
            verbose=False,
        )
    onnx.checker.check_model(made.model_proto)
    session = onnxruntime.InferenceSession(made.model_proto.SerializeToString())
    names = [one.name for one in session.get_inputs()]

    def run(*arrays):
        return session.run(None, dict(zip(names, arrays, strict=True)))[0]

    return run, [node.op_type for node in made.model_proto.graph.node]


class Suppression(torch.nn.Module):
    def forward(self, boxes, valid):
        return suppress_sorted(boxes, valid, 0.5)


@pytest.fixture(scope="module")
def suppression():
    examples = torch.rand(2, 30, 4), torch.rand(2, 30) > 0.5
    run, kinds = translated(Suppression(), *examples, shapes=(_FREE, _FREE))
    assert kinds.count("NonMaxSuppression") == 1
    return run


@pytest.mark.parametrize("kind", ["whole numbers", "any numbers", "without area"])
def test_suppression_in_a_graph_keeps_the_same_boxes(suppression, kind):
    rng = np.random.default_rng(3)
    removed = 0
    for seed in range(60):
        images = 1 + seed % 3
        if kind == "any numbers":
            boxes = rng.uniform(0, 30, (images, 30, 4)).astype(np.float32)
        else:
            # Few different boxes: overlaps of exactly one half, and equal boxes.
            boxes = rng.integers(0, 6, (images, 30, 4)).astype(np.float32)
        boxes[..., 2:] += boxes[..., :2] + (kind == "whole numbers")
        if kind == "without area":
            boxes[:, ::3, 2] = boxes[:, ::3, 0]
        valid = rng.random((images, 30)) >= (0.0, 0.3, 1.0)[seed % 3]
        expected = suppress_sorted(torch.from_numpy(boxes), torch.from_numpy(valid), 0.5)
        assert np.array_equal(suppression(boxes, valid), expected.numpy()), seed
        removed += int((valid & ~expected.numpy()).sum())
    assert removed > 50


class Pooling(torch.nn.Module):
    def __init__(self, *, aligned, end_pixel):
        super().__init__()
        self.how = {"aligned": aligned, "end_pixel": end_pixel}

    def forward(self, fine, coarse, boxes, levels):
        return pyramid_roi_align(
            [fine, coarse], boxes, levels, strides=(4, 8), size=7, samples=2, **self.how
        )


@pytest.mark.parametrize(("aligned", "end_pixel"), [(False, False), (True, False), (False, True)])
def test_pooling_in_a_graph_gives_the_same_features(aligned, end_pixel):
    torch.manual_seed(4)

    def drawn(images):
        low = torch.rand(images, 20, 2) * torch.tensor([96.0, 64.0])
        boxes = torch.cat([low, low + torch.rand(images, 20, 2) * 70], dim=-1)
        # The whole image, without area, and beyond the edges.
        boxes[0, :3] = torch.tensor([[0, 0, 96, 64], [10, 10, 10, 10], [-30, -20, 5, 9]])
        maps = torch.randn(images, 5, 16, 24), torch.randn(images, 5, 8, 12)
        return *maps, boxes, torch.randint(0, 2, (images, 20))

    module = Pooling(aligned=aligned, end_pixel=end_pixel)
    run, kinds = translated(module, *drawn(2), shapes=(_FREE,) * 4)
    assert kinds.count("RoiAlign") == 2
    for images in (1, 2, 5):
        given = drawn(images)
        found = run(*(value.numpy() for value in given))
        torch.testing.assert_close(torch.from_numpy(found), module(*given), rtol=1e-5, atol=1e-5)
