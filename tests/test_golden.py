"""The engine against numbers recorded from the reference implementation, case by case.

Ids, orders and masks must be equal; floats within the tolerances recommended in golden/README.md.
"""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from golden_files import GROUNDING, SELECTION, manifest, tensors, write_glamm_layout

from litelvlm.loading import open_folder
from litelvlm.models.bundle import GroundingModel
from litelvlm.models.dual_encoder import DualEncoder
from litelvlm.models.filling import load_into
from litelvlm.models.language import LanguageModel
from litelvlm.models.prompt import PromptIds
from litelvlm.models.segmenter import Segmenter
from litelvlm.pruning import context_saliency, gather_tokens, select_tokens, text_similarity

SELECTION_CASES = manifest(SELECTION)["cases"]
GROUNDING_CASES = manifest(GROUNDING)["cases"]


def close(actual, expected, atol, rtol=0.0):
    torch.testing.assert_close(actual, expected, atol=atol, rtol=rtol, check_dtype=False)


@pytest.fixture(scope="module")
def engine(tmp_path_factory):
    """The recorded model, loaded from a checkpoint in GLaMM's original layout."""
    source = open_folder(write_glamm_layout(tmp_path_factory.mktemp("glamm")))
    with torch.device("meta"):
        model = GroundingModel(source.config)
    load_into(model, source)
    model.requires_grad_(False).eval()
    tokens = source.config.tokens
    return SimpleNamespace(
        model=model,
        encoder=DualEncoder(model.dual_encoder),
        language=LanguageModel(model.language, tokens["seg"], tokens["eos"]),
        segmenter=Segmenter(model.segmenter),
        tokens=tokens,
    )


def encode(engine, image):
    return engine.encoder.encode_image(engine.encoder.pixels(image.numpy()))


def scores(engine, tokens, questions):
    """Similarity (1, T, N) and context (1, N) of one picture."""
    text = engine.encoder.encode_text(questions)
    last = engine.encoder.block(tokens)
    return (
        text_similarity(engine.encoder.project(tokens), text),
        context_saliency(last.query, last.keys, last.values),
    )


@pytest.mark.parametrize("name", ["noise", "gradient", "disc"])
def test_the_image_tower_gives_the_recorded_states(engine, name):
    want = tensors(SELECTION / f"image_{name}.safetensors")
    image = want["image_uint8"]
    close(engine.encoder.pixels(image.numpy()), want["pixel_values"], 1e-5)
    tokens = encode(engine, image)
    close(tokens.inputs[-1], want["hidden_states_m2"], 1e-4, 1e-4)
    last = engine.encoder.block(tokens)
    close(last.query, want["last_layer_q"][:, 0], 1e-4, 1e-4)
    close(last.keys, want["last_layer_k"][:, 1:], 1e-4, 1e-4)
    close(last.values, want["last_layer_v"][:, 1:], 1e-4, 1e-4)
    close(engine.encoder.project(tokens), want["projected_patches"], 1e-4, 1e-4)
    context = context_saliency(last.query, last.keys, last.values)
    close(context[0], want["context_scores"], 1e-5)
    order = context[0].argsort(descending=True, stable=True)
    assert torch.equal(order, want["context_order"])


@pytest.mark.parametrize("name", sorted(manifest(SELECTION)["question_sets"]))
def test_the_text_tower_gives_the_recorded_embeddings(engine, name):
    want = tensors(SELECTION / "text.safetensors")
    if f"{name}.text_embeds" not in want:
        pytest.skip("no embeddings recorded for this set")
    questions = manifest(SELECTION)["question_sets"][name]
    close(engine.encoder.encode_text(questions), want[f"{name}.text_embeds"], 1e-4, 1e-4)


@pytest.mark.parametrize(
    "case", SELECTION_CASES, ids=[f"{c['image']}.{c['prefix']}" for c in SELECTION_CASES]
)
def test_the_released_selection_is_reproduced(engine, case):
    want = tensors(SELECTION / case["file"])
    prefix = case["prefix"]
    image = tensors(SELECTION / f"image_{case['image']}.safetensors")["image_uint8"]
    questions = manifest(SELECTION)["question_sets"][case["questions"]]
    tokens = encode(engine, image)
    similarity, context = scores(engine, tokens, questions)
    recorded = want.get(f"{prefix.rsplit('.', 1)[0]}.similarities")
    if recorded is not None:
        close(similarity[0], recorded, 2e-4)
    kept = select_tokens(similarity, context, case["retain"], split="released", order="released")
    assert torch.equal(kept.indices, want[f"{prefix}.retained_indices"])
    alike = kept.indices[kept.reason == 0]
    assert alike.tolist() == want[f"{prefix}.similarity_indices"].flatten().tolist()
    features = gather_tokens(tokens.hidden, kept.indices)
    close(features, want[f"{prefix}.retained_features"], 1e-4, 1e-4)


def split_at_image(row: list[int]) -> PromptIds:
    cut = row.index(-200)
    return PromptIds(tuple(row[:cut]), tuple(row[cut + 1 :]))


@pytest.mark.parametrize(
    "case",
    GROUNDING_CASES,
    ids=[f"{c['inputs'][6:10]}.{c['prefix']}" for c in GROUNDING_CASES],
)
def test_the_whole_grounding_path_is_reproduced(engine, case):
    want, inputs = tensors(GROUNDING / case["file"]), tensors(GROUNDING / case["inputs"])
    prefix, image = case["prefix"], inputs["image_uint8"]

    close(engine.encoder.pixels(image.numpy()), inputs["global_enc_image"], 1e-5)
    tokens = encode(engine, image)
    questions = manifest(GROUNDING)["question_sets"][case["questions"]]
    similarity, context = scores(engine, tokens, questions)
    kept = select_tokens(similarity, context, case["retain"], split="released", order="released")
    assert torch.equal(kept.indices, want[f"{prefix}.retained_indices"])

    rows = tensors(GROUNDING / "prompts.safetensors")[case["input_ids"]].tolist()
    prompts = [split_at_image(row) for row in rows]
    projected = engine.model.projector(gather_tokens(tokens.hidden, kept.indices))
    sequences = engine.language.assemble(
        prompts, projected.expand(len(rows), -1, -1), None, tokens.hidden.shape[1]
    )
    states = engine.language.prefill(sequences)
    if case["prefix"].startswith("noseg"):  # nothing to segment: nothing but ids was recorded
        assert not any(p.seg_states(engine.tokens["seg"], case["retain"]) for p in prompts)
        return
    close(sequences.embeds, want[f"{prefix}.inputs_embeds"], 2e-4, 1e-4)
    real = want.get(f"{prefix}.expanded_attention_mask", torch.ones(states.shape[:2])).bool()
    close(states[real], want[f"{prefix}.last_hidden_state"][real], 2e-4, 1e-4)

    places = [
        (row, place)
        for row, prompt in enumerate(prompts)
        for place in prompt.seg_states(engine.tokens["seg"], case["retain"])
    ]
    assert places == [tuple(pair) for pair in want[f"{prefix}.seg_positions"].tolist()]
    pixels = engine.segmenter.pixels(image.numpy())
    close(pixels, inputs["grounding_enc_image"], 1e-5)
    embedding = engine.segmenter.encode(pixels)
    close(embedding, inputs["image_embedding"], 2e-4, 1e-4)
    seg = torch.stack([states[place] for place in places])
    close(seg, want[f"{prefix}.seg_hidden"], 2e-4, 1e-4)
    close(engine.language.llama.lm_head(seg), want[f"{prefix}.seg_logits"], 2e-4, 1e-4)
    embeds = engine.model.seg_head(seg)
    close(embeds, want[f"{prefix}.pred_embeddings"], 2e-4, 1e-4)
    low_res, quality = engine.segmenter.decode(embedding, embeds)
    close(low_res, want[f"{prefix}.low_res_logits"][:, 0], 1e-3)
    close(quality, want[f"{prefix}.iou_predictions"][:, 0], 2e-4, 1e-4)
    frame = engine.segmenter.frame((image.shape[0], image.shape[1]))
    assert list(frame.resized_hw) == inputs["resize_size"].tolist()
    logits, recorded = frame.upscale(low_res), want[f"{prefix}.mask_logits"]
    close(logits, recorded, 1e-3)
    sure = recorded.abs() > 1e-3
    assert torch.equal((logits > 0)[sure], (recorded > 0)[sure])


def test_the_positional_encoding_of_sam_is_reproduced(engine):
    want = tensors(GROUNDING / "image_wide.safetensors")["dense_pe"]
    close(engine.model.segmenter.get_image_wide_positional_embeddings(), want, 1e-5)
