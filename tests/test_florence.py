"""Florence-2: a small checkpoint in transformers' own layout, read strictly and answered."""

from __future__ import annotations

import json

import cv2
import numpy as np
import pytest
import torch
import transformers
from PIL import Image
from safetensors.torch import load_file, save_file
from test_sa2va import write_guide
from tiny_vlm import WORDS
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

import litelvlm
from litelvlm.bench import bench
from litelvlm.cli import main
from litelvlm.errors import InputError, ModelError
from litelvlm.families.table import PRESETS, family
from litelvlm.loading import convert, open_folder

PLACES = [f"<loc_{number}>" for number in range(1000)]
MARKS = ["<s>", "<pad>", "</s>", "<unk>", "<image>", "<sep>", "<poly>", "</poly>"]
SENTENCE = ["locate", "Locate", "in", "the", "image", "with", "mask", "red", "disc", "a", "left"]
TASK = "<REFERRING_EXPRESSION_SEGMENTATION>"
SIDE = 96  # pixels: 3 x 3 tokens of 32


def tokenizer():
    ids = {word: i for i, word in enumerate(dict.fromkeys([*MARKS, *SENTENCE, *WORDS, *PLACES]))}
    raw = Tokenizer(models.WordLevel(ids, unk_token="<unk>"))
    raw.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    raw.decoder = decoders.Fuse()
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=raw,
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        unk_token="<unk>",
        extra_special_tokens={"image_token": "<image>"},
    )


def write_florence(folder):
    """A random checkpoint and a CLIP beside it, as transformers writes them."""
    torch.manual_seed(3)
    words = tokenizer()
    square = {"height": SIDE, "width": SIDE}
    images = transformers.CLIPImageProcessor(size=square, crop_size=square, do_center_crop=False)
    images.image_seq_length = 10
    transformers.Florence2Processor(
        images, words, post_processor_config={"polygons": {}}
    ).save_pretrained(folder)
    text = dict(
        model_type="bart", d_model=32, encoder_layers=2, decoder_layers=2, encoder_ffn_dim=64,
        encoder_attention_heads=4, decoder_attention_heads=4, decoder_ffn_dim=64,
        vocab_size=len(words), max_position_embeddings=256, bos_token_id=0, pad_token_id=1,
        eos_token_id=2, decoder_start_token_id=2,
    )  # fmt: skip
    vision = dict(
        embed_dim=(8, 8, 16, 16), num_heads=(2,) * 4, num_groups=(2,) * 4, depths=(1,) * 4,
        window_size=4, projection_dim=32, max_position_embeddings=16,
    )  # fmt: skip
    config = transformers.Florence2Config(text_config=text, vision_config=vision, image_token_id=4)
    model = transformers.Florence2ForConditionalGeneration(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.normal_(std=0.5)
    model.generation_config.update(num_beams=2, no_repeat_ngram_size=3, forced_bos_token_id=0)
    model.save_pretrained(folder)
    write_guide(folder)
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_florence(tmp_path_factory.mktemp("florence"))


@pytest.fixture(scope="module")
def florence(folder):
    torch.set_num_threads(1)
    return litelvlm.load(folder, device="cpu", tower="clip")


@pytest.fixture(scope="module")
def read(florence, picture):
    return florence.encode(picture)


@pytest.fixture(scope="module")
def theirs(folder):
    """Transformers' own model and processor."""
    model = transformers.Florence2ForConditionalGeneration.from_pretrained(folder).eval()
    return model, transformers.AutoProcessor.from_pretrained(folder)


def plain_mask(text, hw):
    """The published rule: bins of a thousandth of each side, their centres, polygons filled."""
    mask = np.zeros(hw, np.uint8)
    for outline in text.replace("</poly>", "<sep>").replace("<poly>", "<sep>").split("<sep>"):
        bins = [int(part[4:]) for part in outline.strip("<>").split("><") if part]
        points = [
            (int((x + 0.5) * hw[1] / 1000), int((y + 0.5) * hw[0] / 1000))
            for x, y in zip(bins[::2], bins[1::2], strict=False)
        ]
        if len(points) > 2:
            cv2.fillPoly(mask, [np.array(points, np.int32)], (1,))
    return mask.astype(bool)


@torch.inference_mode()
def test_the_unpruned_answer_is_transformers_own(florence, read, theirs, picture):
    model, processor = theirs
    inputs = processor(text=f"{TASK} the red disc", images=picture, return_tensors="pt")
    ids = model.generate(**inputs, do_sample=False, max_new_tokens=12)
    expected = processor.batch_decode(ids, skip_special_tokens=False)[0]
    result = florence.ask(read, "the red disc", max_new_tokens=12)
    assert result.text == expected.replace("<s>", "").replace("</s>", "")
    assert result.text
    assert len(result.token_map.indices) == florence.tokens_total == read.count == 9


@pytest.mark.parametrize("positions", ["compact", "original"])
@torch.inference_mode()
def test_a_pruned_encoder_reads_the_kept_tokens_by_a_plain_rewrite(
    florence, read, theirs, picture, positions
):
    model, processor = theirs
    options = {"method": "grid", "mode": "generate", "positions": positions, "max_new_tokens": 1}
    result = florence.ground(read, "a disc", 4, **options)[0]
    kept = torch.as_tensor(result.token_map.order)
    inputs = processor(text=f"{TASK} a disc", images=picture, return_tensors="pt")
    image = model.get_image_features(inputs.pixel_values).pooler_output
    ids = inputs.input_ids[0, 10:]
    words = model.get_input_embeddings()(ids)[None]
    embeds = torch.cat([image[:, :1], image[:, 1:][:, kept], words], 1)
    encoder = model.model.language_model.encoder
    if positions == "original":
        places = torch.cat([torch.tensor([0]), 1 + kept, 10 + torch.arange(len(ids))])
        table = encoder.embed_positions.weight[2:]
        embeds = embeds - table[: len(places)] + table[places]
    expected = encoder(inputs_embeds=embeds).last_hidden_state
    from litelvlm.pruning import Selection
    from litelvlm.question import Question

    asked = Question("a disc", 4, **options).settle(9, florence.family.defaults)
    blank = torch.zeros(1, 4)
    chosen = Selection(kept[None], blank.to(torch.uint8), None, None)
    sequence = florence.family.sequence(read, asked, chosen, None)
    torch.testing.assert_close(florence.family._read(sequence), expected, atol=1e-5, rtol=1e-4)


def test_forced_answers_are_outlines_filled_by_the_published_rule(florence, read):
    results = florence.ground(read, ["the red disc", "a disc in the image"], 5, method="grid")
    for result in results:
        assert set(result.text.strip("<>").split("><")) <= {t.strip("<>") for t in PLACES + MARKS}
        expected = plain_mask(result.text, result.mask.shape)
        np.testing.assert_array_equal(result.mask, expected)
        assert result.found == expected.any()
        np.testing.assert_array_equal(result.logits > 0, expected)
    assert any(result.found for result in results)


def test_phrases_together_answer_as_alone(florence, read):
    phrases = ["the red disc", "a disc in the image with a mask"]
    options = {"method": "litelvlm", "mode": "generate", "max_new_tokens": 8}
    together = florence.ground(read, phrases, 4, **options)
    for phrase, result in zip(phrases, together, strict=True):
        alone = florence.ground(read, phrase, 4, **options)[0]
        assert alone.text == result.text
        np.testing.assert_array_equal(alone.token_map.order, result.selection.order)


def test_the_record_says_what_scored(florence, read):
    asked = {"mode": "generate", "max_new_tokens": 2}
    assert florence.ground(read, "a disc", 4, **asked).settings["scores"] == "guide: clip"
    assert florence.ground(read, "a disc", 4, method="grid", **asked).settings["scores"] == "none"
    assert florence.ground(read, "a disc", **asked).settings["scores"] == "none"


def test_without_a_clip_only_rules_without_text_work(folder, picture):
    blind = litelvlm.load(folder, device="cpu", tower="none")
    scene = blind.encode(picture)
    with pytest.raises(InputError, match=r"'litelvlm' needs last, similarity.*divprune"):
        blind.ground(scene, "a disc", 4)
    found = blind.ground(scene, "a disc", 4, method="divprune", mode="generate")
    assert found.settings["scores"] == "tokens alone"
    assert len(found[0].token_map.indices) == 4


def test_a_missing_clip_is_never_replaced_in_silence(folder):
    with pytest.raises(ModelError, match=r"clip-vit-base-patch16.*tower='none'"):
        litelvlm.load(folder, device="cpu")


def test_it_sees_the_whole_picture(florence, read, picture):
    boxes = read.frame.boxes()
    assert boxes[0].tolist() == [0, 0, 40, 30]
    assert boxes[-1].tolist() == [80, 60, 120, 90]
    with pytest.raises(InputError, match="view must be whole, got crop"):
        florence.encode(picture, view="crop")


def test_a_partial_checkpoint_names_what_is_missing(folder, tmp_path):
    broken = write_florence(tmp_path)
    held = load_file(broken / "model.safetensors")
    del held["model.vision_tower.convs.0.conv.weight"]
    save_file(held, broken / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match=r"1 missing: florence\.model\.vision_tower\.convs\.0"):
        litelvlm.load(broken, device="cpu", tower="clip")


def test_the_authors_own_layout_is_refused_with_the_one_to_take(tmp_path):
    raw = {"model_type": "florence2", "vision_config": {"dim_embed": [128]}}
    (tmp_path / "config.json").write_text(json.dumps(raw))
    with pytest.raises(ModelError, match="florence-community/Florence-2-base-ft"):
        open_folder(tmp_path)


def test_a_converted_model_holds_its_clip(folder, florence, read, picture, tmp_path):
    source = convert(folder, tmp_path / "one", tower="clip")
    again = litelvlm.load(source, device="cpu")
    options = {"mode": "generate", "max_new_tokens": 4}
    ours = again(picture, "the red disc", 4, **options)
    assert ours[0].text == florence.ground(read, "the red disc", 4, **options)[0].text
    assert ours.settings["scores"] == "guide: clip"


def test_eight_bits_load_too(folder, florence):
    small = litelvlm.load(folder, device="cpu", tower="clip", bits=8)
    assert small.weight_bytes < florence.weight_bytes


@pytest.mark.parametrize("name", [n for n, p in PRESETS.items() if p.family == "florence"])
def test_published_sizes(name):
    kind = family("florence")
    config = kind.random_config(name)
    with torch.device("meta"):
        model = kind.build(config)
    count = sum(parameter.numel() for parameter in model.florence.parameters())
    assert count == pytest.approx(0.23e9 if "base" in name else 0.77e9, rel=0.08)
    assert kind.tokens(config) == 576


def test_weights_under_the_wrong_config_name_the_family_they_look_like(folder, tmp_path):
    raw = json.loads((folder / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(raw | {"model_type": "unheard"}))
    (tmp_path / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes())
    with pytest.raises(ModelError, match=r"'unheard' is the layout.*weights are those of florence"):
        open_folder(tmp_path)
    from golden_files import GROUNDING

    wrong = write_florence(tmp_path / "wrong")
    held = load_file(GROUNDING / "state_dict.safetensors")
    save_file(held, wrong / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match=r"missing: florence\.model.*weights are those of glamm"):
        litelvlm.load(wrong, device="cpu", tower="clip")


def test_the_command_takes_a_tower(folder, picture, tmp_path, capsys):
    Image.fromarray(picture).save(tmp_path / "x.png")
    command = ["ground", str(tmp_path / "x.png"), "a disc", "--budget", "4", "--device", "cpu"]
    command += ["--model", str(folder), "--json", "--tower"]
    assert main([*command, "clip"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["settings"]["scores"] == "guide: clip"
    assert told["tokens_kept"] == 4
    assert main([*command, "none"]) == 2
    assert "methods that work" in capsys.readouterr().err


def test_the_bench_runs_without_a_mask_branch(florence, picture):
    options = {"picture": picture, "repeats": 1, "mode": "generate", "max_new_tokens": 2}
    report = bench(florence, [4], **options)
    assert report.sam is None
    assert [row.tokens for row in report.rows] == [9, 4]
