from __future__ import annotations

import pytest
import torch
from torchvision.ops import box_convert, box_iou

from detectors.boxes import (
    clip_boxes,
    map_to_original,
    pairwise_iou,
    swap_axes,
    to_centers,
    to_corners,
)


def random_boxes(*shape: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    low = torch.rand(*shape, 2, generator=generator) * 80
    return torch.cat([low, low + torch.rand(*shape, 2, generator=generator) * 60], dim=-1)


def test_conversions_agree_with_torchvision_and_invert_each_other() -> None:
    boxes = random_boxes(50)
    torch.testing.assert_close(to_centers(boxes), box_convert(boxes, "xyxy", "cxcywh"))
    torch.testing.assert_close(to_corners(to_centers(boxes)), boxes)


def test_swapping_axes_exchanges_x_and_y_in_both_forms() -> None:
    assert swap_axes(torch.tensor([1.0, 2.0, 3.0, 4.0])).tolist() == [2.0, 1.0, 4.0, 3.0]
    boxes = random_boxes(5)
    torch.testing.assert_close(to_centers(swap_axes(boxes)), swap_axes(to_centers(boxes)))


def test_iou_by_hand() -> None:
    # 4x4 and 4x2 squares that share 2x2: 4 / (16 + 8 - 4); with one more pixel a side they
    # are 5x5 and 5x3 and share 3x3: 9 / (25 + 15 - 9).
    first = torch.tensor([[0.0, 0.0, 4.0, 4.0]])
    second = torch.tensor([[2.0, 2.0, 6.0, 4.0], [4.0, 0.0, 8.0, 4.0], [0.0, 0.0, 4.0, 4.0]])
    plain = pairwise_iou(first, second)
    torch.testing.assert_close(plain, torch.tensor([[4 / 20, 0.0, 1.0]]))
    pixels = pairwise_iou(first, second, plus_one=True)
    torch.testing.assert_close(pixels, torch.tensor([[9 / 31, 5 / 45, 1.0]]))


def test_iou_agrees_with_torchvision_and_broadcasts() -> None:
    first, second = random_boxes(3, 7), random_boxes(3, 11, seed=1)
    iou = pairwise_iou(first, second)
    assert iou.shape == (3, 7, 11)
    for image in range(3):
        torch.testing.assert_close(iou[image], box_iou(first[image], second[image]))
    shared = pairwise_iou(first, second[0])
    torch.testing.assert_close(shared[2], box_iou(first[2], second[0]))


def test_iou_of_boxes_without_area_is_zero_not_nan() -> None:
    empty = torch.zeros(2, 4)
    assert pairwise_iou(empty, empty).tolist() == [[0.0, 0.0], [0.0, 0.0]]


def test_clip_keeps_x_to_the_width_and_y_to_the_height() -> None:
    boxes = torch.tensor([[-5.0, -6.0, 500.0, 600.0]])
    assert clip_boxes(boxes, (30, 20)).tolist() == [[0.0, 0.0, 20.0, 30.0]]


@pytest.mark.parametrize("per_class", [False, True])
def test_mapping_back_inverts_the_transform_of_each_image(per_class: bool) -> None:
    original = random_boxes(2, 6)
    transforms = torch.tensor([[2.0, 3.0, 0.0, 0.0], [0.5, 0.5, 10.0, -4.0]], dtype=torch.float64)
    scale, offset = transforms[:, :2].float(), transforms[:, 2:].float()
    network = original * scale.repeat(1, 2)[:, None] + offset.repeat(1, 2)[:, None]
    if per_class:
        network = network[:, :, None].expand(-1, -1, 3, -1)
        original = original[:, :, None].expand(-1, -1, 3, -1)
    back = map_to_original(network, transforms, torch.tensor([[200, 200], [200, 200]]))
    assert back.dtype == torch.float32
    torch.testing.assert_close(back, original, rtol=1e-5, atol=1e-4)


def test_mapping_back_cuts_to_the_original_image() -> None:
    boxes = torch.tensor([[[-10.0, -10.0, 300.0, 300.0]]])
    back = map_to_original(
        boxes, torch.tensor([[1.0, 1.0, 5.0, 0.0]]), torch.tensor([[100, 200]], dtype=torch.int32)
    )
    assert back.tolist() == [[[0.0, 0.0, 200.0, 100.0]]]
