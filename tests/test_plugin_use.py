"""What the documents say of the plug-in, run as it stands there on tiny random models."""

from __future__ import annotations

import copy
import re
import sys
import types
from pathlib import Path

import pytest
import torch
from PIL import Image
from tiny_vlm import clip_of, fresh, picture, plain, prompt, tiny

import litelvlm
from litelvlm.errors import InputError
from litelvlm.plugin import PrunedProcessor

ROOT = Path(__file__).parents[1]


def code(file, mark):
    """The one Python block of a document that holds a word."""
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / file).read_text(encoding="utf-8"), re.S)
    (found,) = (block for block in blocks if mark in block)
    return found


@pytest.mark.parametrize(
    ("kind", "chosen"), [("llava", "clip=pair"), ("qwen2_5_vl", 'method="divprune"')]
)
def test_the_example_of_the_readme(kind, chosen, tmp_path):
    model, processor = fresh(kind)
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    lines = code("README.md", "litelvlm.Pruner")
    assert len(lines.splitlines()) <= 10
    lines = lines.replace('method="litelvlm", guide=None', chosen)
    Image.fromarray(picture()).save(tmp_path / "photo.png")
    seen = {"name": tmp_path, "images": tmp_path / "photo.png", "prompt": prompt(kind)}
    if kind == "llava":
        seen["pair"] = clip_of(model)
    exec(lines, seen, held := {})
    (record,) = held["inputs"].record
    assert record.tokens_kept == round(record.tokens_total * 0.33)
    assert held["out"].shape[1] == held["inputs"]["input_ids"].shape[1] + 64


class Harness:
    """Calls processor and model as the loops of lmms-eval and VLMEvalKit do."""

    def __init__(self, kind):
        self.kind = kind
        self.model, self.processor = tiny(kind)

    def generate_until(self, images, texts, videos=None):
        inputs = self.processor(
            text=texts, images=images, videos=videos, padding=True, return_tensors="pt"
        )
        inputs = inputs.to("cpu")
        out = self.model.generate(**inputs, do_sample=False, max_new_tokens=3, pad_token_id=0)
        answers = [row[len(ids) :] for ids, row in zip(inputs.input_ids, out, strict=True)]
        assert self.processor.batch_decode(answers, skip_special_tokens=True)
        return torch.stack(answers), inputs


@pytest.fixture
def pruned(monkeypatch):
    """The class of docs/plugin.md on top of `Harness`."""
    module = types.ModuleType("lmms_eval.models.simple.qwen2_5_vl")
    module.Qwen2_5_VL = Harness
    for name in ("lmms_eval", "lmms_eval.models", "lmms_eval.models.simple"):
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    monkeypatch.setitem(sys.modules, module.__name__, module)
    exec(code("docs/plugin.md", "PrunedProcessor"), held := {})
    return held["PrunedQwen"]


@pytest.mark.parametrize("kind", ["llava", "qwen2_5_vl"])
def test_a_harness_prunes_by_its_processor_alone(pruned, kind):
    pictures = [picture(), picture(56, 40, 1)]
    texts = [prompt(kind), prompt(kind, "where is the red apple on the left of the photo")]
    answers, inputs = pruned(kind, budget=0.5).generate_until(pictures, texts)
    by_hand = litelvlm.Pruner(*tiny(kind), "divprune").prepare(pictures, texts, 0.5)
    out = tiny(kind)[0].generate(**by_hand, do_sample=False, max_new_tokens=3)
    assert torch.equal(answers, out[:, -3:])
    assert [one.tokens_kept for one in inputs.record] == [
        round(one.tokens_total / 2) for one in inputs.record
    ]
    full, _ = pruned(kind, budget=None).generate_until(pictures, texts)
    untouched = plain(kind, [[one] for one in pictures], texts)
    out = tiny(kind)[0].generate(**untouched, do_sample=False, max_new_tokens=3)
    assert torch.equal(full, out[:, -3:])


def test_what_is_not_pruned_by_a_processor(pruned):
    harness = pruned("qwen2_5_vl")
    words = ["what is the red apple"]
    answers, _ = harness.generate_until(None, words)
    assert torch.equal(answers, Harness("qwen2_5_vl").generate_until(None, words)[0])
    with pytest.raises(InputError, match="not videos"):
        harness.generate_until(None, ["what"], videos=[picture()])
    with pytest.raises(InputError, match="processor option 'max_pixels'"):
        harness.processor(picture(), prompt("qwen2_5_vl"), max_pixels=64)
    with pytest.raises(AttributeError, match="no_such"):
        _ = harness.processor(picture(), prompt("qwen2_5_vl")).no_such


def test_a_pruned_processor_is_the_processor_otherwise():
    _, processor = tiny("qwen2_5_vl")
    stands = PrunedProcessor(litelvlm.Pruner(*tiny("qwen2_5_vl"), "grid"), 4)
    assert stands.tokenizer is processor.tokenizer
    assert copy.copy(stands).image_token == processor.image_token
