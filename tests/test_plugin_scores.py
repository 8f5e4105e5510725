"""Scores of the plug-in: the model's own CLIP, a guide, the tokens alone; and bad input."""

from __future__ import annotations

import copy

import numpy as np
import open_clip
import pytest
import torch
import transformers
from tiny_vlm import CLIP, KINDS, clip_of, fresh, logits, picture, prompt, tiny, tokenizer

import litelvlm
from litelvlm.errors import InputError, ModelError
from litelvlm.methods import METHODS
from litelvlm.plugin.families import REFUSED

ASK = "where is the red apple"
BEFORE = [name for name, method in METHODS.items() if method.where == "before"]


@pytest.fixture(scope="module")
def pair():
    return clip_of(tiny("llava")[0])


@pytest.fixture(scope="module")
def guide():
    torch.manual_seed(2)
    return open_clip.CLIP(
        embed_dim=12,
        vision_cfg=dict(image_size=48, layers=4, width=16, head_width=8, patch_size=8),
        text_cfg=dict(context_length=77, vocab_size=49408, width=16, heads=2, layers=1),
    ).eval()


def test_llava_keeps_what_the_rule_keeps_of_its_own_clip(pair):
    """The same patches as pruning.py chooses from the CLIP run apart from the plug-in."""
    model, processor = tiny("llava")
    clip, words = pair
    inputs = litelvlm.Pruner(model, processor, clip=pair).prepare(
        picture(), prompt("llava"), 7, question=ASK
    )
    (record,), (piece,) = inputs.record, inputs.record[0].pieces
    pixels = processor.image_processor(picture(), return_tensors="pt")["pixel_values"]
    with torch.no_grad():
        states = clip.vision_model(pixels, output_hidden_states=True).hidden_states[-2]
        projected = clip.visual_projection(clip.vision_model.post_layernorm(states[:, 1:]))
        text = clip.get_text_features(**words([ASK], return_tensors="pt")).pooler_output
        block = clip.vision_model.encoder.layers[-1]
        states = block.layer_norm1(states)
        saliency = litelvlm.context_saliency(
            block.self_attn.q_proj(states[:, 0]),
            block.self_attn.k_proj(states[:, 1:]),
            block.self_attn.v_proj(states[:, 1:]),
        )
    similarity = litelvlm.text_similarity(projected, text[None])
    wanted = litelvlm.select_tokens(similarity, saliency, 7)
    assert piece.indices.tolist() == wanted.indices[0].tolist()
    assert piece.reason.tolist() == wanted.reason[0].tolist()
    np.testing.assert_allclose(piece.similarity, similarity[0, 0], rtol=1e-5)
    assert record.text == ASK
    assert "text half" in record.score
    features = torch.cat(inputs["mm_encoder_outputs"]["image"].pooler_output)
    full = litelvlm.Pruner(model, processor, clip=pair).prepare(picture(), prompt("llava"))
    every = torch.cat(full["mm_encoder_outputs"]["image"].pooler_output)
    assert torch.equal(features, litelvlm.gather_tokens(every[None], wanted.indices)[0])
    assert full.record[0].score == "none"


@pytest.mark.parametrize("method", BEFORE)
@pytest.mark.parametrize("side", [False, True], ids=["own", "guide"])
def test_every_rule_before_the_language_model_runs_on_llava(method, side, pair, guide):
    model, processor = tiny("llava")
    more = {"guide": guide} if side else {"clip": pair}
    prune = litelvlm.Pruner(model, processor, method, **more)
    inputs = prune.prepare([picture(), picture(seed=1)], [prompt("llava")] * 2, 6)
    assert logits(model, inputs).isfinite().all()
    assert [r.tokens_kept for r in inputs.record] == [6, 6]


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "llava"])
def test_a_guide_scores_every_kind_of_model(kind, guide):
    model, processor = tiny(kind)
    prune = litelvlm.Pruner(model, processor, "litelvlm", guide)
    inputs = prune.prepare(picture(), prompt(kind), 0.5, question=ASK)
    assert logits(model, inputs).isfinite().all()
    assert inputs.record[0].score.startswith("guide")
    other = prune.prepare(picture(), prompt(kind), 0.5, question="user assistant of a photo")
    assert any(
        not np.allclose(a.similarity, b.similarity)
        for a, b in zip(inputs.record[0].pieces, other.record[0].pieces, strict=True)
        if a.similarity is not None
    )


@pytest.mark.parametrize("kind", ["llava_next", "internvl", "qwen2_5_vl"])
def test_rules_that_merge_tokens_work_on_tiles_and_grids(kind, guide):
    model, processor = tiny(kind)
    for method in ("visionzip", "trim", "prumerge+", "vscan"):
        inputs = litelvlm.Pruner(model, processor, method, guide).prepare(
            picture(32, 120), prompt(kind), 0.5
        )
        assert logits(model, inputs).isfinite().all()


def test_a_guide_is_laid_over_the_grid_by_geometry(guide):
    """A guide value that grows with x and y grows so over the model's own, other grid."""
    y, x = torch.meshgrid(torch.arange(6.0), torch.arange(6.0), indexing="ij")
    values = torch.stack([x, y], -1).reshape(1, 36, 2)
    from litelvlm.models.guide import centres, sample

    # The picture is 96 x 48; the guide sees a letterboxed 96 x 96 square round it.
    points = centres((3, 6), np.array([0, 0, 96, 48]), (0, -24, 96, 72))
    found = sample(values, (6, 6), points)[0].view(3, 6, 2)
    assert torch.allclose(found[..., 0], torch.arange(6.0).expand(3, 6), atol=1e-4)
    assert torch.allclose(found[:, 0, 1], torch.tensor([1.5, 2.5, 3.5]), atol=1e-4)


def test_rules_get_what_they_need_or_are_refused_with_those_that_work():
    model, processor = tiny("qwen2_5_vl")
    with pytest.raises(InputError, match=r"needs last, similarity.*Qwen2\.5-VL.*guide=") as told:
        litelvlm.Pruner(model, processor)
    for name in str(told.value).partition("methods that work: ")[2].split(", "):
        inputs = litelvlm.Pruner(model, processor, name).prepare(
            picture(), prompt("qwen2_5_vl"), 0.5
        )
        assert inputs.record[0].text is None
    assert "divprune" in str(told.value)


@pytest.mark.parametrize("method", ["fastv", "pyramiddrop", "sparsevlm"])
def test_rules_inside_the_language_model_are_refused(method):
    with pytest.raises(InputError, match="inside the language model"):
        litelvlm.Pruner(*tiny("llava"), method)


def test_a_text_half_of_another_clip_is_refused(pair):
    clip, words = copy.deepcopy(pair[0]), pair[1]
    with torch.no_grad():
        clip.vision_model.encoder.layers[0].mlp.fc1.weight[0, 0] += 0.1
    with pytest.raises(ModelError, match="trained further"):
        litelvlm.Pruner(*tiny("llava"), clip=(clip, words))
    vision = dict(**CLIP | dict(hidden_size=32), image_size=32)
    wide = transformers.CLIPModel(transformers.CLIPConfig(vision_config=vision))
    with pytest.raises(ModelError, match="another architecture"):
        litelvlm.Pruner(*tiny("llava"), clip=(wide, words))


def test_rounding_to_half_precision_is_the_same_clip(pair):
    model, processor = fresh("llava")
    model.to(torch.bfloat16)
    inputs = litelvlm.Pruner(model, processor, clip=pair).prepare(picture(), prompt("llava"), 5)
    assert logits(model, inputs).isfinite().all()


def test_no_published_clip_fits_says_so():
    with pytest.raises(ModelError, match="give clip= or guide="):
        litelvlm.Pruner(*tiny("llava"))


def test_the_question_is_read_out_of_the_chat_frame(pair):
    model, processor = tiny("llava")
    framed = copy.copy(processor)
    framed.chat_template = (
        "{% for m in messages %}user {% for c in m['content'] %}{% if c['type'] == 'image' %}"
        "<image> {% else %}{{ c['text'] }}{% endif %}{% endfor %} assistant{% endfor %}"
    )
    read = {}
    for name, one in {"bare": processor, "framed": framed}.items():
        prune = litelvlm.Pruner(model, one, clip=pair)
        read[name] = prune.prepare(picture(), prompt("llava", ASK), 5).record[0].text
    assert read == {"bare": f"user {ASK} assistant", "framed": ASK}


class TestBadInput:
    """One clear sentence each."""

    def told(self, *given, kind="llava", method="grid", error=InputError, **more):
        with pytest.raises(error) as told:
            litelvlm.Pruner(*tiny(kind), method).prepare(*given, **more)
        assert "\n" not in str(told.value)
        return str(told.value)

    def test_pictures_and_placeholders(self):
        two = prompt("llava", pictures=2)
        assert "1 pictures for 2" in self.told(picture(), two, 4)
        assert "2 pictures for 1" in self.told([picture()] * 2, prompt("llava"), 4)
        nested = [[picture()], [picture(), picture()]]
        assert "[1, 2]" in self.told(nested, [two, prompt("llava")], 4)
        assert "no image placeholder" in self.told(picture(), "what is the apple", 4)
        assert "no such file" in self.told("nowhere.jpg", prompt("llava"), 4)
        for text in (None, 3, [], [3]):
            assert "text must be" in self.told(picture(), text, 4)

    def test_an_answer_with_the_placeholder_is_seen_in_the_second_turn(self):
        turn = prompt("llava") + " <image> " + ASK  # the model wrote its own placeholder
        assert "1 pictures for 2 image placeholders" in self.told(picture(), turn, 4)

    @pytest.mark.parametrize("budget", [0, -1, 17, 1.5, 0.0, "many", True, float("nan")])
    def test_budgets(self, budget):
        assert "budget must be a whole number from 1 to 16" in self.told(
            picture(), prompt("llava"), budget
        )

    def test_budgets_of_several_pictures(self):
        assert "2 budgets for 1 pictures" in self.told(picture(), prompt("llava"), [3, 4])
        pictures = [picture(80, 80), picture(16, 16)]
        both = [prompt("qwen2_vl")] * 2
        assert "(picture 1)" in self.told(pictures, both, 9, kind="qwen2_vl")

    def test_options(self):
        assert "positions" in self.told(picture(), prompt("llava"), 4, positions="absolute")
        for option, value in {"split": 2, "order": "best", "seed": -1, "speed": 3}.items():
            with pytest.raises(InputError, match=option):
                litelvlm.Pruner(*tiny("llava"), "grid", **{option: value})
        with pytest.raises(InputError, match="unknown method"):
            litelvlm.Pruner(*tiny("llava"), "best")

    def test_video(self):
        for kind in ("qwen2_5_vl", "llava_onevision"):
            video = prompt(kind) + " <video>"
            assert "not videos" in self.told(picture(), video, 4, kind=kind)

    def test_pictures_side_by_side_under_mrope(self):
        side = "user <image><image> what"
        assert "between them" in self.told([picture()] * 2, side, 4, kind="qwen2_vl")

    def test_florence_places_its_own_placeholder(self):
        assert "leave <image> out" in self.told(picture(), "<image> what", kind="florence2")

    def test_questions(self, pair):
        prune = litelvlm.Pruner(*tiny("llava"), clip=pair)
        with pytest.raises(InputError, match="2 questions for 1 prompts"):
            prune.prepare(picture(), prompt("llava"), 4, question=["a", "b"])
        with pytest.raises(InputError, match="nothing to read"):
            prune.prepare(picture(), "<image>", 4)

    def test_a_transformers_that_takes_no_features(self):
        model, processor = fresh("llava")
        model.forward = lambda input_ids, attention_mask=None: None
        with pytest.raises(ModelError, match=r"takes no features from outside; 5\.18 or newer"):
            litelvlm.Pruner(model, processor, "grid")

    def test_models_that_are_not_ready(self):
        model, processor = fresh("llava")
        model.train()
        with pytest.raises(InputError, match=r"training mode; call model\.eval"):
            litelvlm.Pruner(model, processor, "grid")
        with torch.device("meta"):
            empty = type(model)(model.config).eval()
        with pytest.raises(ModelError, match="meta device"):
            litelvlm.Pruner(empty, processor, "grid")
        with pytest.raises(InputError, match="AutoModelForImageTextToText"):
            litelvlm.Pruner("llava-hf/llava-1.5-7b-hf", processor)
        with pytest.raises(InputError, match="AutoProcessor"):
            litelvlm.Pruner(*[fresh("llava")[0]], tokenizer(), "grid")

    def test_training_mode_entered_later(self):
        model, processor = fresh("llava")
        prune = litelvlm.Pruner(model, processor, "grid")
        model.train()
        with pytest.raises(InputError, match="training mode"):
            prune.prepare(picture(), prompt("llava"), 4)

    def test_remote_code(self):
        model, processor = fresh("llava")
        other = type("Llava", (type(model),), {"__module__": "transformers_modules.some.llava"})
        with pytest.raises(ModelError, match="without trust_remote_code"):
            litelvlm.Pruner(other(model.config).eval(), processor, "grid")

    @pytest.mark.parametrize("model_type", [*REFUSED, "qwen9_vl"])
    def test_models_that_cannot_be_pruned(self, model_type):
        model, processor = fresh("llava")
        model.config.model_type = model_type
        with pytest.raises(ModelError, match=f"{model_type} cannot be pruned: ") as told:
            litelvlm.Pruner(model, processor, "grid")
        assert "models that can: LLaVA-1.5" in str(told.value)

    def test_a_layout_that_is_not_known(self):
        model, processor = fresh("llava")
        model.config.vision_config.model_type = "pixtral"
        with pytest.raises(ModelError, match="pixtral tower has no tested token layout"):
            litelvlm.Pruner(model, processor, "grid").prepare(picture(), prompt("llava"), 4)

    def test_other_guides(self):
        model, processor = tiny("gemma3")
        with pytest.raises(InputError, match="guide must be an open_clip model"):
            litelvlm.Pruner(model, processor, guide="ViT-B-16")
        with pytest.raises(InputError, match="clip must be"):
            litelvlm.Pruner(*tiny("llava"), clip=3)
        resnet = dict(image_size=64, layers=[1, 1, 1, 1], width=8, head_width=8)
        text = dict(width=16, heads=2, layers=1)
        with pytest.raises(ModelError, match="ModifiedResNet, expected a plain ViT"):
            litelvlm.Pruner(model, processor, guide=open_clip.CLIP(12, resnet, text))


class Int8Linear(torch.nn.Module):
    """A linear layer whose weights are held in 8 bits, as a quantiser puts it there."""

    def __init__(self, layer):
        super().__init__()
        scale = layer.weight.abs().amax(1, keepdim=True) / 127
        self.register_buffer("scale", scale)
        self.register_buffer("codes", (layer.weight / scale).round().to(torch.int8))
        self.bias = layer.bias

    def forward(self, x):
        return torch.nn.functional.linear(x, self.codes * self.scale, self.bias)


def test_a_quantised_model_works_and_its_tower_is_still_recognised(pair):
    model, processor = fresh("llava")
    for part in (model.model.language_model, model.model.vision_tower):
        for module in list(part.modules()):
            for name, child in list(module.named_children()):
                if isinstance(child, torch.nn.Linear):
                    setattr(module, name, Int8Linear(child).requires_grad_(False))
    prune = litelvlm.Pruner(model, processor, clip=pair)
    inputs = prune.prepare(picture(), prompt("llava"), 5)
    assert logits(model, inputs).isfinite().all()


@pytest.mark.parametrize("in_place", [True, False])
def test_a_compiled_model_works(in_place):
    model, processor = fresh("llava")
    plain = litelvlm.Pruner(model, processor, "grid").prepare(picture(), prompt("llava"), 5)
    expected = logits(model, plain)
    if in_place:
        model.compile(backend="eager")
    else:
        model = torch.compile(model, backend="eager")
    inputs = litelvlm.Pruner(model, processor, "grid").prepare(picture(), prompt("llava"), 5)
    torch.testing.assert_close(logits(model, inputs), expected, atol=2e-5, rtol=1e-4)


def test_load_of_a_wrong_type_says_what_it_takes():
    with pytest.raises(InputError, match=r"name, folder or hub id.*Pruner") as told:
        litelvlm.load(tiny("llava")[0])
    assert len(str(told.value)) < 200
