"""What makes a family: a file and a line of the table, and nothing else knows it."""

from __future__ import annotations

import ast
from pathlib import Path

import numpy as np
import pytest
import torch

from litelvlm.config import SelectionConfig
from litelvlm.errors import InputError
from litelvlm.families.base import Answer, Capabilities, Family, Reply
from litelvlm.families.table import FAMILIES, PRESETS, family
from litelvlm.geometry import PatchFrame
from litelvlm.methods import METHODS, TokenView
from litelvlm.pipeline import Pipeline
from litelvlm.result import GroundingResult, TextResult
from litelvlm.scene import EncodedImage

PACKAGE = Path(__file__).parents[1] / "litelvlm"


class Reciter(Family):
    """A model of 3 x 4 patches that answers in text with the patches it was given."""

    name = "reciter"
    defaults = SelectionConfig(view="letterbox")
    capabilities = Capabilities(frozenset({"llm"}), modes=("generate",), masks=False, joint=False)
    tokens_total = 12
    wordings = (("{phrase}?",), ("",))
    device, dtype, kv_bytes_per_token = torch.device("cpu"), torch.float32, 4

    def __init__(self):
        self.model = torch.nn.Linear(2, 2)
        self.model.register_buffer("scale", torch.ones(3, dtype=torch.int8))

    def encode(self, images, view, profiler):
        found = []
        for image in images:
            frame = PatchFrame((3, 4), image.shape[:2], view)
            tokens = profiler.run("read", lambda: torch.arange(24.0).view(1, 12, 2))
            found.append(EncodedImage(image, tokens, None, frame, (), self.name))
        return found

    def text_embeddings(self, phrases, form, question=None):
        raise AssertionError("never asked for")

    def view(self, scene, needs, embeds, rows):
        hidden = scene.tokens.expand(rows, -1, -1)
        return TokenView(hidden, (3, 4), llm=hidden if "llm" in needs else None)

    def sequence(self, scene, question, selection, profiler):
        every = torch.arange(scene.count)[None].expand(len(question.phrases), -1)
        return every if selection is None else selection.indices

    def answer(self, scene, question, sequence, profiler):
        texts = profiler.run("llm_prefill", lambda: [str(row.tolist()) for row in sequence])
        return Reply(tuple(map(Answer, texts)), sequence.shape[1])


@pytest.fixture(scope="module")
def reciter():
    return Pipeline(Reciter())


@pytest.fixture(scope="module")
def read(reciter):
    return reciter.encode(np.zeros((30, 40, 3), np.uint8))


def test_a_family_without_masks_answers_in_text(reciter, read):
    (result,) = reciter.ground(read, "what", 5, method="grid", mode="generate")
    assert type(result) is TextResult
    assert result.text == str(result.token_map.indices.tolist())
    assert reciter.ask(read, "what", 5, method="grid").text == result.text
    assert len(reciter.ask(read, "what").token_map.indices) == 12


def test_a_method_that_needs_what_the_model_lacks_is_refused_with_those_that_work(reciter, read):
    with pytest.raises(InputError) as fault:
        reciter.ask(read, "what", 5)
    told = str(fault.value)
    assert "'litelvlm' needs last, similarity, which reciter does not offer" in told
    able = told.partition("methods that work: ")[2].split(", ")
    assert tuple(able) == reciter.methods
    for name in able:
        assert len(reciter.ask(read, "what", 5, method=name).token_map.order) == 5
    for name in set(METHODS) - set(able):
        with pytest.raises(InputError, match="methods that work"):
            reciter.ask(read, "what", 5, method=name)


def test_what_a_model_cannot_do_is_refused(reciter, read):
    with pytest.raises(InputError, match="works in mode generate, not 'forced'"):
        reciter.ground(read, "what")
    with pytest.raises(InputError, match="mode='forced'"):
        reciter.ground(read, "what", joint=True, mode="generate")


def test_the_budget_and_the_cost_follow_the_picture(reciter, read):
    costs = reciter.ground(read, ["a", "b"], 7, method="random", mode="generate").costs
    assert (costs.tokens_total, costs.tokens_kept, costs.llm_tokens) == (12, 7, 7)
    assert [cost.stage for cost in costs.stages] == ["select", "llm_prefill"]
    assert read.grid == (1, 3, 4)
    with pytest.raises(InputError, match="from 1 to 12, got 13"):
        reciter.ask(read, "what", 13, method="grid")


def test_memory_told_counts_buffers(reciter):
    assert reciter.weight_bytes == 4 * 6 + 3


def test_results_are_short_to_print(pipe, scene, reciter, read):
    found = pipe.ground(scene, "a disc", 16)
    assert isinstance(found[0], GroundingResult)
    for text in (repr(found), repr(found[0]), repr(reciter.ask(read, "what"))):
        assert len(text) < 150
        assert "\n" not in text


def test_every_family_keeps_the_promises_of_its_table():
    for name in FAMILIES:
        module = family(name)
        for part in (
            "recognises",
            "open_folder",
            "random_config",
            "build",
            "blocks",
            "tokens",
            "wrap",
        ):
            assert callable(getattr(module, part)), f"{name} lacks {part}"
    assert {preset.family for preset in PRESETS.values()} <= set(FAMILIES)


@pytest.mark.parametrize("name", list(FAMILIES))
def test_nothing_outside_the_families_names_one(name):
    for file in PACKAGE.rglob("*.py"):
        if file.parent.name == "families":
            continue
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom):
                assert node.module != f"litelvlm.families.{name}", file
            elif isinstance(node, ast.Constant):
                assert node.value != name, f"{file}: line {node.lineno}"
