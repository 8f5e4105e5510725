"""Pictures together: the same answers as one by one, and no figures where none are wanted."""

from __future__ import annotations

import numpy as np
import pytest

from litelvlm.errors import InputError

PHRASES = (["a red disc"], ["the noise", "the big red disc on the left"], ["a red disc"])


@pytest.fixture(scope="module")
def pictures(picture):
    turned = np.ascontiguousarray(picture.transpose(1, 0, 2))
    return [picture, turned, picture[:60, :61].copy()]


@pytest.mark.parametrize(
    ("budget", "options"),
    [
        (None, {}),
        (5, {}),
        (5, {"positions": "original", "method": "random"}),
        (5, {"joint": True}),
        (5, {"mode": "generate", "max_new_tokens": 4}),
        (5, {"method": "fastv"}),
    ],
)
def test_together_equals_one_by_one(pipe, pictures, budget, options):
    together = pipe.ground(pipe.encode(pictures), PHRASES, budget, **options)
    assert [len(results) for results in together] == [len(phrases) for phrases in PHRASES]
    for image, phrases, results in zip(pictures, PHRASES, together, strict=True):
        alone = pipe.ground(pipe.encode(image), phrases, budget, **options)
        assert results.costs.llm_tokens == alone.costs.llm_tokens
        assert results.settings == alone.settings
        for one, other in zip(alone, results, strict=True):
            assert one.text == other.text
            assert one.mask.shape == other.mask.shape == image.shape[:2]
            np.testing.assert_array_equal(one.token_map.order, other.token_map.order)
            if one.low_res_logits is None:
                assert other.low_res_logits is None
            else:
                np.testing.assert_allclose(one.low_res_logits, other.low_res_logits, atol=1e-4)


def test_profiling_can_be_off(pipe, pictures):
    scenes = pipe.encode(pictures, profile="off")
    assert all(scene.costs == () for scene in scenes)
    results = pipe.ground(scenes, PHRASES, 5, profile="off")
    assert all(each.costs.stages == () for each in results)
    timed = pipe.ground(scenes, PHRASES, 5)
    names = [cost.stage for cost in timed[0].costs.stages]
    assert names == ["clip_text", "select", "project", "llm_prefill", "mask_decode"]


def test_lists_that_do_not_fit_are_told(pipe, scene):
    with pytest.raises(InputError, match="2 scenes need as many lists of phrases"):
        pipe.ground([scene, scene], [["a disc"]])
    assert pipe.encode([]) == []
    assert pipe.ground([], []) == []


@pytest.mark.parametrize("method", ["litelvlm", "random"])
@pytest.mark.parametrize("budget", [None, 32])
def test_what_phrases_share_runs_once_and_changes_no_answer(pipe, pictures, budget, method):
    phrases = ["a red disc", "the noise", "the big red disc on the left"]
    asked = [phrases, phrases[:1], phrases[:2]]
    options = {"budget": budget, "method": method, "profile": "full"}
    scenes = pipe.encode(pictures)
    alone = pipe.ground(scenes, asked, **options)
    together = pipe.ground(scenes, asked, share=True, **options)
    for one, other in zip(alone, together, strict=True):
        for first, second in zip(one, other, strict=True):
            np.testing.assert_allclose(first.low_res_logits, second.low_res_logits, atol=1e-4)
            np.testing.assert_array_equal(first.selection.order, second.selection.order)
    work = [run[0].costs.stage("llm_prefill").flops for run in (alone, together)]
    shared = budget is None or method == "random"  # else each phrase keeps tokens of its own
    assert (work[1] < work[0]) == shared
