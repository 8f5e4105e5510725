"""Pictures are made from hand-made records; every check reads pixels or text back."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from litelvlm import viz
from litelvlm.geometry import PatchFrame
from litelvlm.pruning import Reason, select_tokens
from litelvlm.result import GroundingResult, TokenMap


def make_result(hw=(60, 80), grid=(6, 6), budget=12, view="crop", similarity=True, phrase="a cup"):
    """A record as the pipeline makes it: a disc of low similarity in the middle of noise."""
    rng = np.random.default_rng(0)
    image = rng.integers(0, 255, (*hw, 3), np.uint8)
    frame = PatchFrame(grid, hw, view)
    down, across = np.mgrid[: hw[0], : hw[1]]
    mask = np.hypot(down - hw[0] / 2, across - hw[1] / 2) < min(hw) / 4
    scores = (rng.normal(1, 1, frame.count) - 6 * frame.coverage(mask)).astype(np.float32)
    context = rng.random(frame.count).astype(np.float32)
    chosen = select_tokens(torch.tensor(scores)[None, None], torch.tensor(context)[None], budget)
    order = chosen.indices[0].numpy()
    tokens = TokenMap(
        order, chosen.reason[0].numpy(), order, scores if similarity else None, context, frame
    )
    return GroundingResult(
        image=image,
        phrase=phrase,
        mask=mask,
        low_res_logits=None,
        mask_frame=None,
        text="It is [SEG].",
        found=True,
        token_map=tokens,
    )


def test_a_fully_transparent_layer_leaves_the_picture_unchanged_and_copies_it():
    image = make_result().image
    out = viz.compose(image, np.zeros((*image.shape[:2], 4), np.uint8))
    assert np.array_equal(out, image)
    assert out is not image
    assert not np.shares_memory(out, image)


def test_an_opaque_layer_replaces_the_picture():
    image = make_result().image
    layer = np.full((*image.shape[:2], 4), 255, np.uint8)
    layer[..., :3] = (10, 20, 30)
    assert (viz.compose(image, layer) == (10, 20, 30)).all()


def test_a_mask_layer_is_filled_inside_and_clear_away_from_the_mask():
    result = make_result()
    layer = viz.mask_layer([result.mask], fill=0.5)
    assert tuple(layer[30, 40]) == (*viz.PHRASE_COLOURS[0], 128)
    assert layer[2, 2, 3] == 0


def test_two_masks_get_two_colours():
    left, right = np.zeros((40, 40), bool), np.zeros((40, 40), bool)
    left[5:35, 2:15], right[5:35, 25:38] = True, True
    layer = viz.mask_layer([left, right])
    assert tuple(layer[20, 8, :3]) == viz.PHRASE_COLOURS[0]
    assert tuple(layer[20, 31, :3]) == viz.PHRASE_COLOURS[1]


def test_an_empty_mask_draws_nothing():
    assert not viz.mask_layer([np.zeros((20, 30), bool)]).any()


def test_a_mask_that_touches_the_edge_keeps_its_outline_there():
    layer = viz.mask_layer([np.ones((30, 30), bool)])
    assert (layer[0, :, 3] == 255).all()


def test_kept_patches_carry_the_colour_of_their_reason_and_dropped_ones_are_darkened():
    result = make_result()
    layer = viz.token_layer(result.token_map)
    boxes = np.rint(result.token_map.frame.boxes()).astype(int)
    reasons = dict(zip(result.token_map.indices, result.token_map.reason, strict=True))
    assert set(reasons.values()) == {Reason.SIMILARITY, Reason.CONTEXT}
    for patch, (x0, y0, *_) in enumerate(boxes):
        expected = viz.REASON_COLOURS[reasons[patch]] if patch in reasons else (13, 17, 27)
        assert tuple(layer[y0, x0, :3]) == expected


def test_the_two_kinds_of_kept_patches_differ_in_brightness_too():
    result = make_result(hw=(120, 120))
    layer = viz.token_layer(result.token_map)
    boxes = np.rint(result.token_map.frame.boxes()).astype(int)
    middles = {}
    for patch, reason in zip(result.token_map.indices, result.token_map.reason, strict=True):
        x0, y0, x1, y1 = boxes[patch]
        middles.setdefault(int(reason), set()).add(int(layer[(y0 + y1) // 2, (x0 + x1) // 2, 3]))
    assert middles[Reason.SIMILARITY] == {255}
    assert middles[Reason.CONTEXT] == {58}
    assert len(set(viz.REASON_COLOURS.values())) == len(Reason)


def test_the_part_that_the_patches_do_not_cover_is_marked_on_a_wide_picture_only():
    wide = viz.token_layer(make_result(hw=(60, 120)).token_map)
    square = viz.token_layer(make_result(hw=(60, 60)).token_map)
    assert (wide[:, :30, 3] >= 205).all()
    assert (wide[:, 90:, 3] >= 205).all()
    assert not (square[..., 3] == 205).any()


def test_letterboxed_patches_cover_the_whole_picture():
    layer = viz.token_layer(make_result(hw=(60, 120), view="letterbox").token_map)
    assert not (layer[..., 3] == 205).any()
    assert (layer[..., 3] > 0).all()


def test_patches_of_the_padding_do_not_stretch_the_colours():
    frame = PatchFrame((4, 4), (20, 40), "letterbox")
    assert viz.seen_patches(frame).reshape(4, 4).all(axis=1).tolist() == [False, True, True, False]
    values = np.where(viz.seen_patches(frame), np.tile([-1.0, 1.0], 8), 900.0)
    layer = viz.heat_layer(values, frame)
    blue, red = layer[5, 5, :3].astype(int), layer[5, 15, :3].astype(int)
    assert blue[2] > blue[0] + 50
    assert red[0] > red[2] + 50


@pytest.mark.parametrize("size", [(30, 40), (90, 120)])
def test_layers_can_be_drawn_at_another_size(size):
    result = make_result()
    tokens = result.token_map
    assert viz.mask_layer([result.mask], size).shape == (*size, 4)
    assert viz.token_layer(tokens, size).shape == (*size, 4)
    assert viz.heat_layer(tokens.similarity, tokens.frame, size).shape == (*size, 4)


@pytest.mark.parametrize("hw", [(1, 1), (1, 50), (50, 1), (2, 300)])
def test_the_smallest_and_longest_pictures_can_be_drawn(hw):
    tokens = make_result(hw=hw).token_map
    assert viz.token_layer(tokens).shape == (*hw, 4)
    assert viz.heat_layer(tokens.similarity, tokens.frame, threshold=0.0).shape == (*hw, 4)


def test_low_scores_are_blue_and_high_scores_red():
    scale = viz.colour_scale(np.array([-2.0, 0.0, 2.0]))
    low, middle, high = scale.rgb(np.array([-2.0, 0.0, 2.0])).astype(int)
    assert low[2] > low[0] + 50
    assert high[0] > high[2] + 50
    assert middle.min() > 230


def test_the_scale_is_centred_on_zero_when_both_signs_matter():
    scale = viz.colour_scale(np.array([-3.0, 10.0]))
    assert scale.signed
    assert scale.centre == 0.0
    assert scale.reach == 10.0


def test_the_scale_is_centred_on_the_middle_when_all_scores_have_one_sign():
    scale = viz.colour_scale(np.array([4.0, 6.0]))
    assert not scale.signed
    assert scale.centre == 5.0
    assert scale.reach == 1.0


def test_equal_and_missing_scores_do_not_break_the_scale():
    assert viz.colour_scale(np.zeros(4)).rgb(np.zeros(4)).shape == (4, 3)
    assert viz.colour_scale(np.array([np.nan, 1.0])).rgb(np.array([np.nan, 1.0])).shape == (2, 3)


def test_the_threshold_is_outlined_between_a_patch_below_and_a_patch_above():
    frame = PatchFrame((1, 2), (40, 80), "letterbox")
    tall = PatchFrame((2, 2), (40, 40))
    layer = viz.heat_layer(np.array([-1.0, 1.0, -1.0, 1.0]), tall, threshold=0.0)
    assert tuple(layer[10, 20]) == (16, 18, 26, 255)
    plain = viz.heat_layer(np.array([-1.0, 1.0]), frame)
    assert not (plain[..., :3] == (16, 18, 26)).all(axis=-1).any()


def test_show_writes_png_and_svg_files(tmp_path):
    results = [make_result(), make_result(hw=(80, 50), phrase="costs $5 and $6 \\frac")]
    viz.show(results, tmp_path / "figure.png")
    viz.show(results, tmp_path / "figure.svg")
    assert (tmp_path / "figure.png").read_bytes().startswith(b"\x89PNG")
    assert "<svg" in (tmp_path / "figure.svg").read_text()


def test_the_figure_has_a_row_a_phrase_and_names_the_score():
    picture = viz.figure([make_result(), make_result(phrase="a spoon")])
    labels = [axes.get_ylabel() for axes in picture.axes]
    titles = [axes.get_title() for axes in picture.axes]
    assert sum("dot product" in label for label in labels) == 2
    assert "“a spoon”" in titles
    assert "12 of 36 image tokens" in titles


def test_the_colour_bar_of_the_figure_marks_the_cut():
    result = make_result()
    bar = viz.figure(result).axes[-1]
    assert [line.get_ydata()[0] for line in bar.lines] == [result.token_map.threshold]


def test_a_figure_without_similarity_says_so():
    picture = viz.figure(make_result(similarity=False))
    texts = [text.get_text() for axes in picture.axes for text in axes.texts]
    assert texts == ["no similarity in this model"]


def test_nothing_to_show_is_an_error():
    with pytest.raises(ValueError, match="no results"):
        viz.figure([])


def test_curves_are_drawn_from_plain_numbers():
    curves = viz.curve_figure({"LiteLVLM": [(8, 0.5), (16, 0.75)], "Random": [(8, 0.4)]})
    assert [line.get_xydata().tolist() for line in curves.axes[0].lines] == [
        [[8, 0.5], [16, 0.75]],
        [[8, 0.4]],
    ]
