"""Costs are measured, not guessed."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from litelvlm.profiling import Profiler, StageCost, count


def test_flops_of_a_matrix_product_are_two_per_multiply_add():
    a, b = torch.ones(3, 5), torch.ones(5, 7)
    assert count(torch.matmul, a, b)[0] == 2 * 3 * 5 * 7


def test_the_peak_is_what_is_alive_at_once_not_what_was_ever_made():
    start = torch.zeros(1000)  # made outside: does not count

    def chain():
        value = start
        for _ in range(10):
            value = value + 1  # the old one is freed once the new one is there
        return value

    assert count(chain)[1] == 2 * 4000


def test_views_and_in_place_operations_take_no_memory():
    start = torch.zeros(1000)
    assert count(lambda: start.view(10, 100).t().add_(1).flatten(0)[0:5])[1] in (0, 4000)
    assert count(lambda: start.view(10, 100).mul_(2))[1] == 0


@pytest.mark.parametrize("fast", [True, False])
def test_flops_of_attention_do_not_depend_on_the_fused_path(fast):
    """`nn.MultiheadAttention` fuses everything into one operator when gradients are off."""
    torch.manual_seed(0)
    layer = nn.MultiheadAttention(16, 4, batch_first=True).eval()
    tokens = torch.randn(2, 9, 16)
    with torch.set_grad_enabled(not fast):
        flops, _ = count(lambda: layer(tokens, tokens, tokens, need_weights=False)[0])
    projections = 2 * 2 * 9 * 16 * 64
    attention = 2 * 2 * 2 * 9 * 9 * 16
    assert flops == projections + attention


def test_a_profile_of_time_leaves_the_rest_unmeasured():
    profiler = Profiler(torch.device("cpu"))
    assert profiler.run("add", lambda: 1 + 1) == 2
    (cost,) = profiler.costs
    assert cost.stage == "add"
    assert cost.ms >= 0
    assert cost.peak_bytes is None
    assert cost.flops is None


def test_a_full_profile_fills_everything_in():
    profiler = Profiler(torch.device("cpu"), "full")
    result = profiler.run("product", torch.mm, torch.ones(4, 4), torch.ones(4, 4))
    assert torch.equal(result, torch.full((4, 4), 4.0))
    assert profiler.costs[0].flops == 128
    assert profiler.costs[0].peak_bytes == 64


@pytest.mark.parametrize("kind", ["cuda", "mps"])
def test_the_clock_waits_for_the_device_before_and_after(kind, monkeypatch):
    steps = []
    monkeypatch.setattr(getattr(torch, kind), "synchronize", lambda *_: steps.append("wait"))
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda *_: None)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda *_: 0)
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda *_: 7)
    profiler = Profiler(torch.device(kind))
    profiler.run("work", steps.append, "work")
    assert steps == ["wait", "work", "wait"]
    assert profiler.costs[0].peak_bytes == (7 if kind == "cuda" else None)


def test_a_cost_reads_well_with_and_without_figures():
    assert str(StageCost("select", 1.25)).split() == ["select", "1.2", "ms"]
    assert "2.0 MiB" in str(StageCost("select", 1.25, 2**21, 10**9))
    assert "1.00 GFLOP" in str(StageCost("select", 1.25, 2**21, 10**9))


def test_an_unknown_profile_is_refused():
    with pytest.raises(ValueError, match="time, full"):
        Profiler(torch.device("cpu"), "fast")
