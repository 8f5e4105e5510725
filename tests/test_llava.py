"""LLaVA-1.5: small checkpoints in both published layouts, checked against transformers."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
import transformers
from golden_files import SELECTION, llava_weights, write_llava_layout
from PIL import Image
from safetensors.torch import load_file, save_file

import litelvlm
from litelvlm import cli
from litelvlm.bench import bench
from litelvlm.errors import InputError, ModelError
from litelvlm.families.glamm_files import tiny_tokenizer
from litelvlm.families.table import PRESETS, family
from litelvlm.loading import convert, open_folder
from litelvlm.methods import METHODS
from litelvlm.result import TextResult
from litelvlm.ui import api, callbacks, handout, pictures
from litelvlm.ui.callbacks import Controls
from litelvlm.ui.desk import Desk
from litelvlm.ui.page import build
from litelvlm.ui.settings import Settings
from litelvlm.viz import figure

SYSTEM = (
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions."
)
QUESTION = "What color is the <image> disc?\nAnswer </s> in 1 word."
IMAGE = 305  # an id that the tokenizer never makes


def ported_model(folder):
    """The same weights in transformers' own class."""
    settings = json.loads((folder / "config.json").read_text())
    known = set(transformers.LlamaConfig().to_dict()) - {"model_type", "architectures"}
    text = transformers.LlamaConfig(**{k: v for k, v in settings.items() if k in known})
    clip = json.loads((folder / "tiny-clip/config.json").read_text())["vision_config"]
    config = transformers.LlavaConfig(
        vision_config=transformers.CLIPVisionConfig(**clip),
        text_config=text,
        image_token_index=IMAGE,
    )
    model = transformers.LlavaForConditionalGeneration(config).eval()
    names = {}
    for key, value in llava_weights().items():
        if key.endswith("inv_freq"):
            continue
        key = key.replace("model.mm_projector.0", "model.multi_modal_projector.linear_1")
        key = key.replace("model.mm_projector.2", "model.multi_modal_projector.linear_2")
        if key.startswith(("model.layers", "model.norm", "model.embed")):
            key = "model.language_model." + key.removeprefix("model.")
        names[key] = value
    stem = "model.vision_tower."
    own = set(model.state_dict())
    for key, value in load_file(SELECTION / "tiny-clip/model.safetensors").items():
        for name in (stem + key, stem + key.removeprefix("vision_model.")):
            if name in own:
                names[name] = value
    model.load_state_dict(names, strict=True)
    return model


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_llava_layout(tmp_path_factory.mktemp("llava"), llava_weights())


@pytest.fixture(scope="module")
def llava(folder):
    torch.set_num_threads(1)
    return litelvlm.load(folder, device="cpu")


@pytest.fixture(scope="module")
def seen(llava, picture):
    return llava.encode(picture)


@pytest.fixture(scope="module")
def reference(folder):
    return ported_model(folder)


def reads(text):
    raw = tiny_tokenizer()
    raw.encode_special_tokens = True  # what is asked is text, whatever it spells
    return raw.encode(text, add_special_tokens=False).ids


@torch.inference_mode()
def written(reference, pixels, question, new):
    """(ids, logits of the first) by transformers' own class, the prompt spelt out here."""
    ids = [1, *reads(f"{SYSTEM} USER: "), *[IMAGE] * 64, *reads(f"\n{question} ASSISTANT:")]
    ids = torch.tensor([ids])
    out = reference.generate(
        input_ids=ids,
        attention_mask=torch.ones_like(ids),
        pixel_values=pixels,
        max_new_tokens=new,
        do_sample=False,
        eos_token_id=2,
        pad_token_id=0,
        output_logits=True,
        return_dict_in_generate=True,
    )
    return out.sequences[0, ids.shape[1] :].tolist(), out.logits[0]


@torch.inference_mode()
def test_a_full_budget_writes_what_transformers_own_class_writes(llava, seen, reference):
    pixels = llava.family.encoder.pixels(seen.image, "letterbox")
    ids, logits = written(reference, pixels, QUESTION, 12)
    answer = llava.ask(seen, QUESTION, max_new_tokens=12)
    assert len(set(ids)) > 3
    assert answer.text == llava.family.read(ids)
    language = llava.family.language
    batch = llava.family.sequence(
        seen,
        litelvlm.question.Question((QUESTION,), mode="generate").settle(64, llava.family.defaults),
        None,
        litelvlm.profiling.Profiler(llava.device),
    ).batch
    _, state = language.start(batch)
    torch.testing.assert_close(language.llama.lm_head(state), logits, atol=1e-4, rtol=1e-4)


def test_the_record_is_that_of_grounding_without_a_mask(llava, seen):
    answer = llava.ask(seen, "where is the disc", 20)
    assert type(answer) is TextResult
    assert len(answer.selection.indices) == 20
    assert answer.selection.similarity.shape == answer.selection.context.shape == (64,)
    costs = answer.costs
    assert (costs.tokens_kept, costs.tokens_total) == (20, 64)
    stages = ["clip_text", "select", "project", "llm_prefill", "llm_decode"]
    assert [cost.stage for cost in costs.stages] == stages
    assert [cost.stage for cost in seen.costs] == ["clip_image"]
    assert seen.frame.view == "letterbox"
    assert costs.llm_tokens < llava.ask(seen, "where is the disc").costs.llm_tokens
    json.dumps(answer.to_json())


def test_grounding_is_refused_in_a_sentence(llava, seen, picture):
    for ask in (lambda: llava.ground(seen, "the disc"), lambda: llava(picture, "the disc", 16)):
        with pytest.raises(InputError, match=r"works in mode generate.*answers in text, use ask"):
            ask()


@pytest.mark.parametrize("method", METHODS)
def test_every_method_answers(llava, seen, method):
    whole = llava.ask(seen, "what is red", max_new_tokens=6)
    answer = llava.ask(seen, "what is red", 16, method=method, max_new_tokens=6)
    again = llava.ask(seen, "what is red", 16, method=method, max_new_tokens=6)
    assert answer.text == again.text
    assert answer.costs.tokens_kept < 64
    assert answer.costs.llm_tokens == whole.costs.llm_tokens - (
        0 if METHODS[method].where == "inside" else 48
    )
    both = llava.ground(seen, ["what is red", "is there a large blue disc"], 16, method=method,
                        mode="generate", max_new_tokens=6)  # fmt: skip
    assert both[0].text == answer.text
    assert both[1].text == llava.ask(
        seen, "is there a large blue disc", 16, method=method, max_new_tokens=6
    ).text  # fmt: skip


@torch.inference_mode()
def test_words_after_fastv_attend_to_what_reached_each_layer(llava, seen, reference):
    answer = llava.ask(seen, "what is red", 9, method="fastv", max_new_tokens=8)
    kept = torch.as_tensor(answer.selection.indices)
    assert len(kept) == 9
    # The same without a cache: everything in two layers, then the kept patches and all text.
    before = [1, *reads(f"{SYSTEM} USER: ")]
    after = reads("\nwhat is red ASSISTANT:")
    tower = reference.model.get_image_features(
        pixel_values=llava.family.encoder.pixels(seen.image, "letterbox")
    )
    llama, embed = reference.model.language_model, reference.get_input_embeddings()
    image = tower.pooler_output[0]
    new = []
    for _ in range(8):
        text = torch.tensor(after + new)
        hidden = torch.cat([embed(torch.tensor(before)), image, embed(text)])[None]
        positions = torch.arange(hidden.shape[1])[None]
        for number, layer in enumerate(llama.layers):
            if number == 2:
                start = len(before)
                stays = torch.cat(
                    [torch.arange(start), start + kept, torch.arange(start + 64, hidden.shape[1])]
                )
                hidden, positions = hidden[:, stays], positions[:, stays]
            tables = llama.rotary_emb(hidden, position_ids=positions)
            hidden = layer(hidden, attention_mask=None, position_embeddings=tables)
        new.append(int(reference.lm_head(llama.norm(hidden)[0, -1]).argmax()))
    assert answer.text == llava.family.read(new)


def test_our_layout_answers_alike(folder, llava, seen, tmp_path):
    answer = llava.ask(seen, QUESTION, 20, max_new_tokens=8)
    pipe = litelvlm.load(convert(folder, tmp_path / "ours"), device="cpu")
    again = pipe.ask(pipe.encode(seen.image), QUESTION, 20, max_new_tokens=8)
    assert again.text == answer.text
    assert np.array_equal(again.selection.indices, answer.selection.indices)


def test_a_ported_checkpoint_is_read_by_its_tower_s_shape(
    folder, llava, seen, reference, tmp_path, monkeypatch
):
    answer = llava.ask(seen, QUESTION, 20, max_new_tokens=8)
    reference.save_pretrained(tmp_path)
    tiny_tokenizer().save(str(tmp_path / "tokenizer.json"))
    assert open_folder(folder).layout == "llava"
    assert open_folder(tmp_path, tower=folder / "tiny-clip").layout == "llava-hf"
    with pytest.raises(ModelError, match="no published one has its tower's shape"):
        litelvlm.load(tmp_path, device="cpu")
    clips = {(64, 112, 14): str(folder / "tiny-clip")}
    monkeypatch.setattr("litelvlm.families.llava.CLIP_FILES", clips)
    pipe = litelvlm.load(tmp_path, device="cpu")
    again = pipe.ask(pipe.encode(seen.image), QUESTION, 20, max_new_tokens=8)
    assert again.text == answer.text
    np.testing.assert_allclose(again.selection.similarity, answer.selection.similarity, atol=1e-5)


@pytest.mark.parametrize("layout", ["original", "ported"])
def test_a_tower_that_was_trained_further_is_refused(folder, reference, tmp_path, layout):
    name = "vision_model.encoder.layers.0.mlp.fc1.weight"
    weight = load_file(SELECTION / "tiny-clip/model.safetensors")[name]
    if layout == "original":
        for change, ok in ((1.0, True), (1.01, False)):
            weights = llava_weights() | {
                f"model.vision_tower.vision_tower.{name}": (weight * change).half()
            }
            place = write_llava_layout(tmp_path / str(change), weights)
            if ok:
                assert open_folder(place).layout == "llava"
                continue
            with pytest.raises(ModelError, match=r"not that of tiny-clip .*mlp\.c_fc.*guide="):
                open_folder(place)
        return
    reference.save_pretrained(tmp_path)
    held = load_file(tmp_path / "model.safetensors")
    (key,) = (k for k in held if k.endswith("encoder.layers.0.mlp.fc1.weight"))
    save_file(held | {key: held[key] * 1.01}, tmp_path / "model.safetensors")
    with pytest.raises(ModelError, match="its vision tower is not that of"):
        open_folder(tmp_path, tower=folder / "tiny-clip")


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"mm_projector_type": "mlp3x_gelu"}, "mm_projector_type is 'mlp3x_gelu'"),
        ({"mm_vision_select_layer": -1}, "mm_vision_select_layer is -1"),
        ({"mm_use_im_start_end": True}, "mm_use_im_start_end is True"),
        ({"image_aspect_ratio": "anyres"}, "image_aspect_ratio is 'anyres'"),
        ({"mm_vision_tower": None}, "names no CLIP"),
        ({"hidden_size": None}, "hidden_size is None"),
    ],
)
def test_a_relative_is_refused_by_what_differs(tmp_path, change, told):
    with pytest.raises(ModelError, match=told):
        open_folder(write_llava_layout(tmp_path, llava_weights(), **change))


def test_a_pickle_that_runs_code_is_refused(tmp_path):
    class Bad:
        def __reduce__(self):
            return print, ("run",)

    folder = write_llava_layout(tmp_path, llava_weights())
    torch.save({"model.norm.weight": Bad()}, folder / "pytorch_model.bin")
    with pytest.raises(ModelError, match="not a safe checkpoint"):
        litelvlm.load(folder, device="cpu")


def test_the_published_sizes():
    for name, numbers in {"llava-1.5-7b": 7.2e9, "llava-1.5-13b": 13.5e9}.items():
        kind = family(PRESETS[name].family)
        config = kind.random_config(name)
        with torch.device("meta"):
            model = kind.build(config)
        count = sum(p.numel() for p in model.parameters())
        assert abs(count / numbers - 1) < 0.02
        assert kind.tokens(config) == 576


@pytest.fixture
def command(folder, picture, tmp_path, capsys):
    """`litelvlm ask` about the picture: (exit code, stdout, stderr)."""
    Image.fromarray(picture).save(tmp_path / "photo.png")

    def run(*given):
        asked = ["ask", str(tmp_path / "photo.png"), *given, "--model", str(folder)]
        code = cli.main([*asked, "--device", "cpu"])
        return code, *capsys.readouterr()

    return run


def test_the_command_asks_as_python_does(command, llava, seen, tmp_path):
    questions = ["what is red", QUESTION]
    options = {"budget": 16, "max_new_tokens": 6, "method": "divprune"}
    words = [w for k, v in options.items() for w in (f"--{k.replace('_', '-')}", str(v))]
    code, out, _ = command(*questions, *words, "--json", "--out", str(tmp_path / "out"))
    assert code == 0
    found = json.loads(out)
    for row, question in zip(found["results"], questions, strict=True):
        answer = llava.ask(seen, question, **options)
        assert (row["text"], row["tokens"]) == (answer.text, answer.selection.indices.tolist())
    assert found["settings"]["view"] == "letterbox"
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names == {"result.json", *(f"0{n}_{w}.png" for n in "12" for w in ("tokens", "heatmap"))}


def test_answers_side_by_side_and_bad_input(command, llava, seen):
    code, out, _ = command("what is red", "--budget", "16", "--compare", "--repeats", "1")
    assert code == 0
    assert llava.ask(seen, "what is red", 16).text.splitlines()[0] in out
    assert "together" in out
    code, _, err = command("what is red", "--max-new-tokens", "0")
    assert (code, err.count("\n")) == (2, 1)
    assert "--max-new-tokens must be at least 1" in err


def test_the_bench_measures_to_the_first_word(llava):
    report = bench(llava, [16, 32], repeats=1)
    assert [row.tokens for row in report.rows] == [64, 32, 16]
    assert list(report.encode) == ["clip_image"]
    assert report.sam is None
    assert report.rows[0].llm_flops > report.rows[2].llm_flops


# --- the demo
@pytest.fixture
def desk(llava, folder):
    return Desk(Settings(models=(str(folder),)), lambda name: llava)


@pytest.fixture
def controls(picture, tmp_path):
    Image.fromarray(picture).save(tmp_path / "photo.png")
    return Controls(None, str(tmp_path / "photo.png"), "what is red\nis there a disc?", 16)


def test_the_page_shows_answers_side_by_side(desk, controls, llava, seen):
    page = callbacks.ground(desk, None, controls)
    assert "Answered · 16 of 64 image tokens" in page.status
    for question in ("what is red", "is there a disc?"):
        for budget in (16, None):
            assert pictures.esc(llava.ask(seen, question, budget).text) in page.masks
    assert "words in common" in page.masks or "the same answer" in page.masks
    assert "dropped before the language model" in page.tokens
    assert "not measurable without a mask" in page.similarity
    assert "Masks" not in callbacks.prepare_downloads(desk, page.session, controls).downloads
    again = callbacks.ground(desk, page.session, controls)
    assert again.session.unpruned is page.session.unpruned


def test_the_demo_is_warm_before_the_first_question(desk):
    assert desk.warm_up() > 0


def test_the_page_has_a_question_box(desk):
    components = build(desk).get_config_file()["components"]
    labels = {component["props"].get("label") for component in components}
    assert {"What to ask", "Answers", "Tokens", "Similarity", "Cost"} <= labels
    assert not {"What to look for", "Masks"} & labels


def test_what_the_page_hands_out_gives_the_same_answer(desk, controls, llava, seen, capsys):
    session = callbacks.ground(desk, None, controls).session
    record = handout.to_json(session)
    said = [row["text"] for row in record["results"]]
    assert said == [llava.ask(seen, q, 16).text for q in session.ask.phrases]
    assert 0 <= record["results"][0]["agreement_with_unpruned_words"] <= 1
    words = handout.command(session, "cpu", None).split()
    assert words[:2] == ["litelvlm", "ask"]
    lines = handout.snippet(session, "cpu", None).replace("your-picture.jpg", controls.picture)
    exec(lines.replace('litelvlm.show(results, "figure.png")', ""))
    out = capsys.readouterr().out
    assert all(f"{q} {text}" in out for q, text in zip(session.ask.phrases, said, strict=True))


def test_the_curve_and_the_endpoint_work_without_masks(desk, controls):
    session = callbacks.ground(desk, None, controls).session
    last = list(desk.sweep(session))[-1]
    assert {curve.method for curve in last.curves} == {"litelvlm", "random", "grid"}
    assert all(0 <= score <= 1 for curve in last.curves for _, score, _ in curve.points)
    overlay, record = api.ground(desk, session)
    assert np.array_equal(overlay, session.picture.image)
    assert "mask_rle" not in record["results"][0]
    sides, record = api.compare(desk, session)
    assert sides.ndim == 3
    assert record["agreement_words"] == session.agreement
    _, record = api.sweep(desk, session, ("grid",))
    assert {"budget", "agreement_words", "prefill_ms"} == set(record["curves"]["grid"][0])


def test_a_figure_holds_the_answer(llava, seen):
    answer = llava.ask(seen, "what is red", 16, max_new_tokens=4)
    title = figure(answer).axes[0].get_title()
    assert title.startswith("“what is red”\n")
