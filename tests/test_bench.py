"""Fair timing: turns, warm-up, medians, ratios, and the table."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from litelvlm.bench import Spread, bench, compare
from litelvlm.errors import InputError


@pytest.fixture(scope="module")
def report(pipe):
    return bench(pipe, [64, 16, 32], repeats=2, random_weights=True)


def order_of(pipe, scene, monkeypatch, run):
    """(budget, profile) of every call of `ground` that `run` makes."""
    calls = []
    ground = type(pipe).ground

    def spy(self, scene, phrases, budget=None, *, profile="time", **options):
        calls.append((budget, profile))
        return ground(self, scene, phrases, budget, profile=profile, **options)

    monkeypatch.setattr(type(pipe), "ground", spy)
    run()
    return calls


def test_a_spread_is_median_and_range():
    assert Spread.of([5.0, 1.0, 9.0]) == Spread(5.0, 1.0, 9.0)
    assert str(Spread(1234.4, 0.5, 2.0)) == "1,234 (0.50..2.0)"


def test_the_variants_take_turns_after_a_warm_up_and_the_order_turns_round(
    pipe, scene, monkeypatch
):
    calls = order_of(
        pipe, scene, monkeypatch, lambda: compare(pipe, scene, "a disc", 16, repeats=3)
    )
    assert calls[:2] == [(16, "full"), (None, "full")]
    assert [budget for budget, _ in calls[2:]] == [16, None, None, 16, 16, None]
    assert {profile for _, profile in calls[2:]} == {"time"}


def test_a_comparison_holds_both_answers_and_every_stage(pipe, scene):
    result = compare(pipe, scene, ["a disc", "the noise"], 16, repeats=2)
    assert result.pruned.costs.tokens_kept == 16
    assert result.unpruned.costs.tokens_kept == 64
    assert len(result.pruned) == len(result.unpruned) == 2
    assert result.stages["select"][1] is None  # the unpruned model selects nothing
    for ours, theirs in (result.stages[name] for name in ("llm_prefill", "mask_decode")):
        assert ours.low <= ours.median <= ours.high
        assert theirs.low <= theirs.median <= theirs.high
    assert result.pruned.costs.stage("llm_prefill").ms == result.stages["llm_prefill"][0].median


def test_pruning_takes_less_work_memory_and_cache(pipe, scene):
    result = compare(pipe, scene, "a disc", 16, repeats=1)
    ours, theirs = result.pruned.costs, result.unpruned.costs
    assert ours.stage("llm_prefill").flops < theirs.stage("llm_prefill").flops
    assert result.memory_ratio > 1
    tokens = theirs.llm_tokens / ours.llm_tokens
    assert result.to_json()["kv_cache_bytes_ratio"] == pytest.approx(tokens)
    assert theirs.llm_tokens - ours.llm_tokens == 64 - 16


def test_the_answers_of_a_comparison_are_those_of_single_calls(pipe, scene):
    result = compare(pipe, scene, "a disc", 16, repeats=1, method="grid")
    alone = pipe.ground(scene, "a disc", 16, method="grid")
    assert (result.pruned[0].mask == alone[0].mask).all()
    assert result.pruned.settings["method"] == "grid"


def test_counting_can_be_left_out(pipe, scene):
    result = compare(pipe, scene, "a disc", 16, repeats=1, count=False)
    assert result.memory_ratio is None
    (line,) = [line for line in str(result).splitlines() if line.startswith("LLM activations")]
    assert line.split()[-3:] == ["-", "-", "-"]  # not measured, so no number


def test_a_generated_answer_can_be_compared(pipe, scene):
    result = compare(pipe, scene, "a disc", 16, repeats=1, mode="generate", max_new_tokens=3)
    assert None not in result.stages["llm_decode"]


@pytest.mark.parametrize("budget", [0, 65, 1.5, "many", None])
def test_a_bad_budget_is_refused(pipe, scene, budget):
    with pytest.raises(InputError, match="budget"):
        compare(pipe, scene, "a disc", budget)


def test_no_repeats_are_refused(pipe, scene):
    with pytest.raises(InputError, match="repeats"):
        compare(pipe, scene, "a disc", 16, repeats=0)


def test_a_benchmark_has_the_unpruned_row_first_and_each_budget_once(report):
    assert [row.tokens for row in report.rows] == [64, 32, 16]
    assert report.rows[0].select is None
    assert all(row.select for row in report.rows[1:])


def test_a_benchmark_adds_the_unpruned_model_unasked(pipe):
    assert [row.tokens for row in bench(pipe, [8], repeats=1, sam=False).rows] == [64, 8]


def test_the_first_answer_includes_both_encoders(report):
    parts = [spread.median for spread in report.encode.values()]
    assert set(report.encode) == {"clip_image", "sam_image"}
    for row in report.rows:
        assert report.first_ms(row) == pytest.approx(sum(parts) + row.answer.median)


def test_the_sam_encoder_agrees_with_the_library_s(report):
    assert report.sam.logit_difference < 1e-4
    assert report.sam.our_error < 1e-4
    assert report.sam.their_error < 1e-4
    assert report.sam.logit_scale > 1e-2  # so the differences mean something
    assert report.sam.mask_agreement > 0.999


def test_the_markdown_table_is_rectangular(report):
    lines = [line for line in report.markdown().splitlines() if line.startswith("|")]
    assert len(lines) == 2 + 3
    assert len({line.count("|") for line in lines}) == 1


def test_text_names_the_machine_the_dtype_and_the_versions(report):
    for words in (report.text(), report.markdown()):
        assert report.machine in words
        assert "float32" in words
        assert "torch" in words
        assert "random weights" in words


def test_written_answers_are_timed_where_there_are_any(pipe, report):
    assert all(row.decode is None for row in report.rows)
    asked = {"mode": "generate", "max_new_tokens": 3}
    rows = bench(pipe, [8], repeats=1, sam=False, **asked).rows
    assert all(row.decode and row.decode.median < row.answer.median for row in rows)


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="Linux alone tells")
def test_the_memory_of_the_process_is_told(report):
    assert report.weight_bytes < report.loaded_bytes <= report.peak_bytes
    assert f"{report.peak_bytes / 2**30:.1f} to run" in report.text()


def test_the_report_becomes_json(report):
    held = json.loads(json.dumps(report.to_json()))
    assert held["rows"][1]["tokens"] == 32
    assert held["sam"]["ours"]["median"] > 0
