"""Pictures together: the same answers as one by one, and no figures where none are wanted."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from litelvlm.errors import InputError
from litelvlm.profiling import Profiler
from litelvlm.pruning import Selection
from litelvlm.question import Question

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


@pytest.mark.parametrize("options", [{}, {"method": "random"}, {"method": "litelvlm"}])
@pytest.mark.parametrize("budget", [None, 5])
def test_what_phrases_share_runs_once_and_changes_no_answer(pipe, pictures, budget, options):
    phrases = ["a red disc", "the noise", "the big red disc on the left"]
    together = pipe.ground(
        pipe.encode(pictures), [phrases, phrases[:1], phrases], budget, **options
    )
    for image, results in zip(pictures, together, strict=True):
        scene = pipe.encode(image)
        for result in results:
            (alone,) = pipe.ground(scene, result.phrase, budget, **options)
            np.testing.assert_allclose(alone.low_res_logits, result.low_res_logits, atol=1e-4)
            np.testing.assert_array_equal(alone.selection.order, result.selection.order)


def test_phrases_that_share_their_tokens_share_the_prompt_before_them(pipe, scene):
    def shared(budget, method):
        question = Question(("a disc", "the noise"), budget=budget, method=method)
        asked = question.settle(scene.count, pipe.family.defaults)
        selection = None
        if budget:
            rows = torch.tensor([[1, 4, 7], [1, 4, 7 if method == "random" else 8]])
            selection = Selection(rows, torch.zeros(2, 3))
        batch = pipe.family.sequence(scene, asked, selection, Profiler(pipe.device, "off")).batch
        return max(0, batch.shared - batch.image_start)

    assert shared(None, "litelvlm") == scene.count
    assert shared(3, "random") == 3
    assert shared(3, "litelvlm") == 0
