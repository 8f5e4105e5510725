"""Patches, crops and frames lie where they should."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from litelvlm.errors import InputError
from litelvlm.geometry import MaskFrame, PatchFrame, clip_square, sam_corner, sam_hw

SHAPES = [(60, 90), (90, 60), (64, 64), (1, 50), (301, 97)]


@pytest.mark.parametrize("image_hw", SHAPES)
@pytest.mark.parametrize("view", ["crop", "letterbox"])
def test_coverage_of_a_full_mask_is_the_seen_part_of_each_patch(image_hw, view):
    frame = PatchFrame((4, 4), image_hw, view)
    coverage = frame.coverage(np.ones(image_hw, bool))
    seen = frame.seen_box
    area = (seen[2] - seen[0]) * (seen[3] - seen[1])
    assert coverage.sum() * np.prod(frame.patch_hw) == pytest.approx(area)
    if view == "crop":
        np.testing.assert_allclose(coverage, 1.0)


def test_painting_and_coverage_are_inverse_on_whole_patches():
    frame = PatchFrame((4, 4), (64, 96))
    chosen = np.zeros(16, bool)
    chosen[[0, 5, 15]] = True
    painted = frame.paint(chosen.astype(float), fill=0.0) > 0.5
    np.testing.assert_allclose(frame.coverage(painted), chosen.astype(float))


def test_the_ends_of_a_wide_picture_are_not_seen():
    frame = PatchFrame((2, 2), (10, 30))
    assert frame.seen_box == (10.0, 0.0, 20.0, 10.0)
    painted = frame.paint(np.arange(4.0))
    assert np.isnan(painted[:, :10]).all()
    assert np.isnan(painted[:, 20:]).all()
    assert painted[0, 10] == 0
    assert painted[9, 19] == 3


def test_boxes_tile_the_square():
    frame = PatchFrame((3, 3), (31, 50))
    boxes = frame.boxes()
    assert boxes[0, :2] == pytest.approx((9.5, 0.0))
    assert boxes[-1, 2:] == pytest.approx((40.5, 31.0))
    assert boxes[4] == pytest.approx((9.5 + 31 / 3, 31 / 3, 9.5 + 62 / 3, 62 / 3))


def test_clip_sees_the_patch_that_the_frame_names():
    image = np.zeros((56, 112, 3), np.uint8)
    frame = PatchFrame((4, 4), (56, 112))
    x0, y0, x1, y1 = frame.boxes()[6].astype(int)
    image[y0:y1, x0:x1] = 255
    square = clip_square(image, 56)
    assert square.shape == (56, 56, 3)
    blocks = square[..., 0].reshape(4, 14, 4, 14).mean((1, 3)).reshape(-1)
    assert blocks.argmax() == 6
    assert blocks[6] == 255


def test_letterbox_keeps_everything():
    image = np.full((10, 40, 3), 200, np.uint8)
    square = clip_square(image, 40, "letterbox")
    assert (square[15:25] == 200).all()
    assert not (square[:15] == 200).any()


@pytest.mark.parametrize("image_hw", [(1, 20000), (20000, 1), (3, 5000)])
def test_a_very_long_picture_is_cut_before_it_is_resized(image_hw):
    image = np.zeros((*image_hw, 3), np.uint8)
    assert clip_square(image, 336).shape == (336, 336, 3)


def test_sides_are_rounded_half_up_and_never_vanish():
    assert sam_hw((110, 74), 256) == (256, 172)
    assert sam_hw((1, 20000), 1024) == (1, 1024)


def test_a_mask_comes_back_onto_its_picture():
    frame = MaskFrame(64, (32, 64), (50, 100))
    low = torch.full((1, 16, 16), -5.0)
    low[0, 2:6, 4:12] = 5.0  # inside the upper half, where the picture lies
    mask = frame.upscale(low)[0] > 0
    rows, columns = torch.where(mask)
    assert mask.shape == (50, 100)
    assert (rows.min().item(), rows.max().item()) == pytest.approx((12, 37), abs=1.5)
    assert (columns.min().item(), columns.max().item()) == pytest.approx((25, 74), abs=1.5)


def test_a_picture_in_the_middle_of_the_square_gets_its_own_mask_back():
    low = torch.full((1, 16, 16), -5.0)
    low[0, 4:12] = 5.0  # rows 16 to 48 of 64: just where the picture lies
    frame = MaskFrame(64, (32, 64), (50, 100), sam_corner((32, 64), 64, "middle"))
    assert frame.corner == (0, 16)
    assert (frame.upscale(low) > 0).float().mean() > 0.95
    assert (MaskFrame(64, (32, 64), (50, 100)).upscale(low) > 0).float().mean() < 0.6


def test_an_unknown_place_is_refused():
    with pytest.raises(InputError, match="corner, middle, got 'left'"):
        sam_corner((32, 64), 64, "left")


def test_a_mask_of_another_size_is_refused():
    with pytest.raises(InputError, match="the picture is"):
        PatchFrame((2, 2), (10, 10)).coverage(np.zeros((9, 10), bool))


def test_an_unknown_view_is_refused():
    with pytest.raises(InputError, match="crop, letterbox"):
        PatchFrame((2, 2), (10, 10), "stretch")
