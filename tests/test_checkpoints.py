"""Model folders: names, strictness, damage, memory, conversion, the hub."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from golden_files import GROUNDING, SELECTION, write_glamm_layout
from safetensors.torch import load_file, save_file

import litelvlm
from litelvlm import loading
from litelvlm.errors import InputError, ModelError
from litelvlm.families.glamm import random_config
from litelvlm.families.glamm_files import TOKEN_TEXTS, place_glamm, tiny_tokenizer
from litelvlm.loading import convert, open_folder, open_model
from litelvlm.models import filling
from litelvlm.models.bundle import GroundingModel
from litelvlm.models.filling import fill_random, load_into
from litelvlm.models.names import PREFIXES, clip_config, place_clip, sam_config
from litelvlm.models.segmenter import Segmenter, build_sam

TINY = random_config("tiny-random")
FIRST, SECOND = "pytorch_model-00001-of-00002.bin", "pytorch_model-00002-of-00002.bin"


def build(config):
    with torch.device("meta"):
        return GroundingModel(config)


@pytest.fixture
def glamm(tmp_path):
    """A small checkpoint as GLaMM publishes it."""
    return write_glamm_layout(tmp_path / "glamm")


@pytest.fixture(scope="module")
def ours(tmp_path_factory):
    """The same in this project's layout, in several files. Read only."""
    root = tmp_path_factory.mktemp("ours")
    return convert(write_glamm_layout(root / "glamm"), root / "model", shard_bytes=4_000_000)


@pytest.fixture
def copied(ours, tmp_path):
    """A copy of it to damage."""
    return Path(shutil.copytree(ours, tmp_path / "model"))


def edit(path, change):
    """Rewrite one weight file after `change(tensors)`."""
    if path.suffix == ".bin":
        held = torch.load(path, weights_only=True)
        change(held)
        torch.save(held, path)
    else:
        held = load_file(path)
        change(held)
        save_file(held, path)


def drop_index(folder):
    """Merge the two pickled shards into one file without an index."""
    held = {}
    for name in (FIRST, SECOND):
        held |= torch.load(folder / name, weights_only=True)
        (folder / name).unlink()
    (folder / "pytorch_model.bin.index.json").unlink()
    torch.save(held, folder / "pytorch_model.bin")
    return folder / "pytorch_model.bin"


# --- names -----------------------------------------------------------------------------------


def test_every_full_size_name_has_its_place_and_shape():
    keys = json.loads((GROUNDING / "full_size_keys.json").read_text())["tensors"]
    places = {key: place_glamm(key) for key in keys}
    found = {place.name: tuple(keys[key]) for key, place in places.items() if place}
    with torch.device("meta"):
        model = GroundingModel(random_config("glamm-refseg"))
    wanted = {
        name: tuple(tensor.shape)
        for name, tensor in model.state_dict().items()
        if not name.startswith("dual_encoder.")
    }
    # One tensor under two names in transformers' SAM.
    wanted.pop("segmenter.prompt_encoder.shared_embedding.positional_embedding")
    assert found == wanted


def test_what_is_left_out_is_the_region_encoder_and_computed_numbers():
    keys = json.loads((GROUNDING / "full_size_keys.json").read_text())["tensors"]
    left = {key for key in keys if place_glamm(key) is None}
    assert left == {k for k in keys if ".region_encoder." in k or k.endswith(".inv_freq")}


def test_every_name_of_the_vision_tower_has_its_place():
    keys = json.loads((GROUNDING / "vision_tower_keys.json").read_text())
    for key, entry in keys.items():
        expected = entry["tiny_clip_key"] and place_clip(entry["tiny_clip_key"])
        assert place_glamm(key) == expected, key


@pytest.mark.parametrize("tower", ["vision", "text"])
def test_nested_and_flattened_clip_names_mean_the_same(tower):
    for key in load_file(SELECTION / "tiny-clip" / "model.safetensors"):
        if key.startswith(f"{tower}_model."):
            assert place_clip(key.removeprefix(f"{tower}_model."), tower) == place_clip(key)


def test_an_unknown_name_is_passed_on_to_be_reported():
    assert place_glamm("model.surprise.weight").name == "model.surprise.weight"
    assert place_clip("vision_model.surprise.weight").name == "vision_model.surprise.weight"


def test_the_sizes_of_sam_are_read_off_the_shapes():
    keys = json.loads((GROUNDING / "full_size_keys.json").read_text())["tensors"]
    places = {key: place_glamm(key) for key in keys}
    shapes = {place.name: tuple(keys[key]) for key, place in places.items() if place}
    assert sam_config(shapes) == random_config("glamm-refseg").segmenter


def test_clip_settings_come_from_hugging_face_s_config():
    raw = json.loads((SELECTION / "tiny-clip" / "config.json").read_text())
    assert clip_config(raw) == TINY.dual_encoder


def test_settings_left_out_of_clip_s_config_have_hugging_face_s_defaults():
    config = clip_config({"projection_dim": 512, "vision_config": {}, "text_config": {}})
    assert config["vision_cfg"]["patch_size"] == 32
    assert config["text_cfg"]["width"] == 512
    assert config["quick_gelu"]


def test_activations_that_open_clip_lacks_are_refused():
    with pytest.raises(ValueError, match="activations"):
        clip_config({"vision_config": {"hidden_act": "relu"}})


# --- loading ---------------------------------------------------------------------------------


def test_a_folder_in_glamm_s_layout_becomes_a_pipeline(glamm, picture):
    sentencepiece = pytest.importorskip("sentencepiece")
    words = f"{TINY.prompt.system} Please segment the red apple in this image. It is"
    with (glamm / "tokenizer.model").open("wb") as file:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter([words] * 9),
            model_writer=file,
            vocab_size=300,
            model_type="bpe",
            byte_fallback=True,
            unk_id=0,
            bos_id=1,
            eos_id=2,
            minloglevel=2,
        )
    added = json.loads((glamm / "added_tokens.json").read_text())
    pipe = litelvlm.load(glamm, device="cpu")
    for name, number in added.items():
        assert pipe.family.tokenizer.convert_tokens_to_ids(name) == number
    result = pipe(picture, "the red apple", 16)[0]
    assert result.mask.shape == picture.shape[:2]
    assert len(result.token_map.indices) == 16


def test_the_configuration_is_the_recorded_one(glamm):
    config = open_folder(glamm).config
    assert config.language == TINY.language | {"max_position_embeddings": 512}
    assert config.segmenter == TINY.segmenter
    assert config.dual_encoder == TINY.dual_encoder
    assert config.tokens == TINY.tokens


def test_one_file_without_an_index_loads_too(glamm):
    count = len(open_folder(glamm).entries)
    drop_index(glamm)
    assert len(open_folder(glamm).entries) == count


def test_files_of_torch_before_1_6_load_too(glamm):
    path = drop_index(glamm)
    held = torch.load(path, weights_only=True)
    torch.save(held, path, _use_new_zipfile_serialization=False)
    model = build(TINY)
    load_into(model, open_folder(glamm))
    assert torch.equal(model.language.lm_head.weight, held["lm_head.weight"])


def test_a_tower_inside_the_checkpoint_takes_the_place_of_the_clip_folder_s(glamm):
    stem = "model.vision_tower.vision_tower.vision_model."
    clip = load_file(glamm / "tiny-clip" / "model.safetensors")
    own = {
        stem + key.removeprefix("vision_model."): value + 1
        for key, value in clip.items()
        if key.startswith("vision_model.")
    }
    own[f"{stem}embeddings.position_ids"] = torch.arange(65)[None]
    edit(glamm / FIRST, lambda held: held.update(own))
    model = build(TINY)
    load_into(model, open_folder(glamm))
    want = own[f"{stem}encoder.layers.1.self_attn.k_proj.weight"]
    block = model.dual_encoder.visual.transformer.resblocks[1]
    assert torch.equal(block.attn.in_proj_weight[64:128], want)
    assert torch.equal(model.dual_encoder.visual.proj, clip["visual_projection.weight"].T)


def test_joined_weights_may_straddle_two_files(glamm):
    stem = "model.vision_tower.vision_tower.vision_model.encoder.layers.0.self_attn."
    parts = {name: torch.randn(64, 64) for name in ("q_proj", "k_proj", "v_proj")}
    edit(glamm / FIRST, lambda held: held.update({f"{stem}q_proj.weight": parts["q_proj"]}))
    rest = {f"{stem}{name}.weight": parts[name] for name in ("k_proj", "v_proj")}
    edit(glamm / SECOND, lambda held: held.update(rest))
    model = build(TINY)
    load_into(model, open_folder(glamm))
    block = model.dual_encoder.visual.transformer.resblocks[0]
    assert torch.equal(block.attn.in_proj_weight, torch.cat(list(parts.values())))


def test_weights_arrive_in_the_dtype_asked_for(ours):
    model = build(TINY)
    load_into(model, open_folder(ours), torch.bfloat16)
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}


def test_each_part_may_have_a_dtype_of_its_own(ours):
    model = build(TINY)
    kinds = dict.fromkeys(PREFIXES, torch.float32) | {"language": torch.bfloat16}
    load_into(model, open_folder(ours), kinds)
    assert model.language.lm_head.weight.dtype == torch.bfloat16
    assert model.segmenter.vision_encoder.pos_embed.dtype == torch.float32


def test_buffers_no_checkpoint_holds_are_computed(ours):
    loaded, built = build(TINY), GroundingModel(TINY)
    load_into(loaded, open_folder(ours))
    have = dict(loaded.named_buffers())
    for name, buffer in built.named_buffers():
        assert torch.equal(have[name], buffer), name


def test_weights_shared_by_two_names_stay_shared(ours):
    model = build(TINY)
    load_into(model, open_folder(ours))
    sam = model.segmenter
    assert (
        sam.prompt_encoder.shared_embedding.positional_embedding
        is sam.shared_image_embedding.positional_embedding
    )


def test_progress_is_told_and_ends_at_the_whole(ours):
    told = []
    source = open_folder(ours)
    load_into(build(TINY), source, progress=lambda done, total: told.append((done, total)))
    assert told[-1] == (source.bytes, source.bytes)
    assert told == sorted(told)


MEMORY = """
import sys, torch
from pathlib import Path
from litelvlm.models import files, filling
from litelvlm.models.names import Place
from litelvlm.models.quantised import quantise

def peak():
    for line in open("/proc/self/status"):
        if line.startswith("VmHWM"):
            return int(line.split()[1]) * 1024

folder = Path(sys.argv[1])
entries, _ = files.index([(folder, lambda key: Place(key))])
source = files.ModelSource(None, folder, "", entries)
with torch.device("meta"):
    root = torch.nn.ModuleList(torch.nn.Linear(4096, 3072, bias=False) for _ in range(6))
if sys.argv[2] == "8":
    quantise(root, 8)
torch.ones(1).to(torch.bfloat16)  # what the first use of torch costs
before = peak()
filling.load_into(root, source, torch.bfloat16)
print(peak() - before)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads Linux's /proc")
@pytest.mark.parametrize("bits", [16, 8])
@pytest.mark.parametrize("kind", ["bin", "safetensors"])
def test_loading_takes_the_weights_and_one_file_of_memory(tmp_path, kind, bits):
    stored = torch.float32 if bits == 16 else torch.bfloat16
    shard = 4096 * 3072 * stored.itemsize  # 48 or 24 MiB, six of them
    index = {}
    for number in range(6):
        stem = "pytorch_model" if kind == "bin" else "model"
        name = f"{stem}-{number}.{kind}"
        held = {f"{number}.weight": torch.full((3072, 4096), float(number), dtype=stored)}
        torch.save(held, tmp_path / name) if kind == "bin" else save_file(held, tmp_path / name)
        index[f"{number}.weight"] = name
    name = f"{stem}.{kind}.index.json"
    (tmp_path / name).write_text(json.dumps({"weight_map": index}))
    command = [sys.executable, "-c", MEMORY, str(tmp_path), str(bits)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    weights = 6 * shard // 2
    assert int(done.stdout) < weights + shard + 64 * 2**20  # first uses of kernels among it
    assert int(done.stdout) > weights * 0.9  # the measurement itself works


# --- strictness ------------------------------------------------------------------------------


def test_a_missing_weight_is_named(copied):
    path = next(copied.glob("model-00002*.safetensors"))
    key = sorted(load_file(path))[0]
    edit(path, lambda held: held.pop(key))
    with pytest.raises(ModelError, match=f"1 missing: {key}"):
        load_into(build(TINY), open_folder(copied))


def test_an_unexpected_weight_is_named(copied):
    path = next(copied.glob("model-00001*.safetensors"))
    edit(path, lambda held: held.update({"language.extra": torch.zeros(2)}))
    with pytest.raises(ModelError, match=r"1 unexpected: language\.extra"):
        load_into(build(TINY), open_folder(copied))


def test_a_place_that_does_not_exist_is_refused_when_the_model_is_opened():
    with pytest.raises(InputError, match="one of corner, middle, got 'left'"):
        Segmenter(build_sam(TINY.segmenter), "left")


def test_a_misshapen_weight_is_named_with_both_shapes(copied):
    edit(
        next(p for p in copied.glob("*.safetensors") if "language.lm_head.weight" in load_file(p)),
        lambda held: held.update({"language.lm_head.weight": torch.zeros(319, 64)}),
    )
    with pytest.raises(ModelError, match=r"lm_head\.weight \[319, 64\], expected \[320, 64\]"):
        load_into(build(TINY), open_folder(copied))


def test_at_most_eight_of_each_are_named_and_nothing_is_loaded(copied):
    def strip(held):
        for key in [key for key in held if key.startswith("language.")]:
            del held[key]

    for path in copied.glob("*.safetensors"):
        edit(path, strip)
    model = build(TINY)
    with pytest.raises(ModelError) as fault:
        load_into(model, open_folder(copied))
    assert str(fault.value).count("language.") == 8
    assert "\n" not in str(fault.value)
    assert all(parameter.is_meta for parameter in model.parameters())


def test_an_incomplete_joined_weight_is_missing(glamm):
    def strip(held):
        del held["vision_model.encoder.layers.0.self_attn.k_proj.weight"]

    edit(glamm / "tiny-clip" / "model.safetensors", strip)
    with pytest.raises(ModelError, match=r"1 missing: .*resblocks\.0\.attn\.in_proj_weight"):
        load_into(build(TINY), open_folder(glamm))


def test_an_unexpected_weight_in_glamm_s_layout_is_named(glamm):
    edit(glamm / SECOND, lambda held: held.update({"model.adapter.weight": torch.zeros(1)}))
    with pytest.raises(ModelError, match=r"1 unexpected: model\.adapter\.weight"):
        load_into(build(TINY), open_folder(glamm))


# --- damage ----------------------------------------------------------------------------------


def cut(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def empty(path):
    path.write_bytes(b"")


def text(path):
    path.write_text("<html>Access denied</html>")


def pointer(path):
    path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 99\n")


def flipped(path):
    data = bytearray(path.read_bytes())
    data[:64] = bytes(64)
    path.write_bytes(data)


@pytest.mark.parametrize("damage", [cut, empty, text, pointer, flipped])
@pytest.mark.parametrize("kind", ["bin", "safetensors"])
def test_a_damaged_weight_file_is_named(glamm, copied, damage, kind):
    folder = glamm if kind == "bin" else copied
    path = sorted(folder.glob(f"*.{kind}"))[1]
    damage(path)
    with pytest.raises(ModelError) as fault:
        load_into(build(TINY), open_folder(folder))
    assert path.name in str(fault.value)
    assert "\n" not in str(fault.value)


@pytest.mark.parametrize(
    "content", [[torch.zeros(1)], {"state_dict": {"a": torch.zeros(1)}}, {"epoch": 3}], ids=str
)
def test_a_pickle_that_is_no_checkpoint_is_named(glamm, content):
    torch.save(content, glamm / FIRST)
    with pytest.raises(ModelError, match=f"{FIRST}: not a checkpoint"):
        open_folder(glamm)


class Malice:
    """Its pickle runs a command when it is opened carelessly."""

    def __init__(self, mark):
        self.mark = mark

    def __reduce__(self):
        return (os.system, (f"touch {self.mark}",))


@pytest.mark.parametrize("plain", [False, True])
def test_a_malicious_pickle_is_refused_and_not_run(glamm, tmp_path, plain):
    mark = tmp_path / "owned"
    if plain:
        (glamm / FIRST).write_bytes(pickle.dumps({"lm_head.weight": Malice(mark)}))
    else:
        torch.save({"lm_head.weight": Malice(mark)}, glamm / FIRST)
    with pytest.raises(ModelError, match=FIRST):
        open_folder(glamm)
    assert not mark.exists()


def test_a_missing_shard_is_named(glamm):
    (glamm / SECOND).unlink()
    with pytest.raises(ModelError, match=f"{SECOND}: no such file"):
        open_folder(glamm)


@pytest.mark.parametrize("name", ["../other.bin", "/etc/passwd"])
def test_an_index_cannot_point_outside_its_folder(glamm, name):
    index = {"weight_map": {"lm_head.weight": name}}
    (glamm / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    with pytest.raises(ModelError, match="not a plain file name"):
        open_folder(glamm)


@pytest.mark.parametrize(
    "name", ["config.json", "added_tokens.json", "pytorch_model.bin.index.json"]
)
@pytest.mark.parametrize("content", ["", "{", "[]", '"text"', "\xff"])
def test_a_broken_json_file_is_named(glamm, name, content):
    (glamm / name).write_bytes(content.encode("latin-1"))
    with pytest.raises(ModelError, match=name):
        open_folder(glamm)


@pytest.mark.parametrize("name", ["config.json", "added_tokens.json"])
def test_a_missing_json_file_is_named(glamm, name):
    (glamm / name).unlink()
    with pytest.raises(ModelError, match=f"{name}: no such file"):
        open_folder(glamm)


def test_a_folder_without_weights_says_so(copied):
    for path in copied.glob("model*"):
        path.unlink()
    with pytest.raises(ModelError, match="no weights"):
        open_folder(copied)


def test_another_kind_of_model_is_refused(copied):
    (copied / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(ModelError, match="'bert' is the layout of no family"):
        open_folder(copied)


def test_a_dual_encoder_that_is_nowhere_is_named(glamm):
    shutil.rmtree(glamm / "tiny-clip")
    with pytest.raises(ModelError, match="'tiny-clip' is no folder and no hub id"):
        open_folder(glamm)


@pytest.mark.parametrize("added", [{"[SEG]": 304}, {"<im_start>": 300, "<im_end>": 301}])
def test_added_tokens_without_the_needed_ones_are_refused(glamm, added):
    (glamm / "added_tokens.json").write_text(json.dumps(added))
    with pytest.raises(ModelError, match=r"added_tokens\.json"):
        open_folder(glamm)


def test_an_added_token_beyond_the_vocabulary_is_refused(glamm):
    added = json.loads((glamm / "added_tokens.json").read_text()) | {"[SEG]": 320}
    (glamm / "added_tokens.json").write_text(json.dumps(added))
    with pytest.raises(ModelError, match="320"):
        open_folder(glamm)


# --- conversion ------------------------------------------------------------------------------


def test_conversion_keeps_every_value(glamm, ours):
    before, after = build(TINY), build(TINY)
    load_into(before, open_folder(glamm))
    load_into(after, open_folder(ours))
    want = before.state_dict()
    for name, tensor in after.state_dict().items():
        assert torch.equal(tensor, want[name]), name


def test_conversion_keeps_the_stored_dtype_and_configuration(glamm, tmp_path):
    for name in (FIRST, SECOND):
        edit(glamm / name, lambda held: held.update({k: v.half() for k, v in held.items()}))
    folder = convert(glamm, tmp_path / "out")
    held = load_file(folder / "model.safetensors")
    assert held["language.lm_head.weight"].dtype == torch.float16
    assert held["dual_encoder.visual.proj"].dtype == torch.float32  # from the CLIP folder
    assert open_folder(folder).config == open_folder(glamm).config


def test_conversion_writes_files_no_larger_than_asked(ours):
    sizes = [path.stat().st_size for path in ours.glob("*.safetensors")]
    assert len(sizes) > 2
    # A tensor larger than the limit stands alone: CLIP's word embedding.
    assert sorted(sizes)[-2] <= 4_100_000


def test_conversion_takes_the_tokenizer_along(glamm, tmp_path):
    tiny_tokenizer().save(str(glamm / "tokenizer.json"))
    pipe = litelvlm.load(convert(glamm, tmp_path / "out"), device="cpu")
    for name, number in pipe.family.config.tokens.items():
        assert pipe.family.tokenizer.convert_tokens_to_ids(TOKEN_TEXTS[name]) == number


def test_conversion_does_not_overwrite(glamm, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.txt").write_text("precious")
    with pytest.raises(ModelError, match="exists already"):
        convert(glamm, tmp_path / "out")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["thesis.txt"]


def test_a_failed_conversion_leaves_nothing_behind(glamm, tmp_path, monkeypatch):
    def full(*_args, **_options):
        raise OSError("No space left on device")

    monkeypatch.setattr(loading, "save_file", full)
    with pytest.raises(OSError, match="No space"):
        convert(glamm, tmp_path / "out")
    assert not list(tmp_path.glob("out*"))


# --- names of models and the hub -------------------------------------------------------------


def test_an_unknown_model_lists_the_known_ones():
    with pytest.raises(InputError, match="unknown model 'nanu'; known: nano, photo, glamm-refseg"):
        open_model("nanu")


def test_a_model_without_weights_says_so():
    with pytest.raises(ModelError, match="random_weights=True"):
        open_model("tiny-random")


def test_an_embedded_model_that_is_not_there_says_so(tmp_path, monkeypatch):
    monkeypatch.setattr(loading, "asset", lambda name: tmp_path / name)
    with pytest.raises(ModelError, match="weights of 'nano' are not there"):
        open_model("nano")


def test_a_hub_model_without_network_or_cache_is_one_clear_line(tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(ModelError, match="cannot fetch nobody/nothing from the hub") as fault:
        open_model("nobody/nothing")
    assert "\n" not in str(fault.value)


def test_the_hub_is_asked_for_two_repositories_and_only_what_is_needed(glamm, monkeypatch):
    asked = []

    def snapshot(repository, *, revision, allow_patterns):
        asked.append((repository, revision, tuple(allow_patterns)))
        return str(glamm / "tiny-clip" if "clip" in repository else glamm)

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot)
    source = open_model("glamm-refseg", revision="abc123")
    assert source.config.name == "glamm-refseg"
    small = ("*.json", "tokenizer.model", "merges.txt")
    assert asked == [
        ("MBZUAI/GLaMM-RefSeg", "abc123", (*small, "model*.safetensors")),
        ("MBZUAI/GLaMM-RefSeg", "abc123", (*small, "pytorch_model*.bin")),
        ("openai/clip-vit-large-patch14-336", None, (*small, "model*.safetensors")),
    ]


# --- random weights --------------------------------------------------------------------------


def test_random_weights_depend_on_the_seed_alone():
    first, again, other = build(TINY), build(TINY), build(TINY)
    fill_random(first, seed=1)
    fill_random(again, seed=1)
    fill_random(other, seed=2)
    want = first.state_dict()
    assert all(torch.equal(t, want[n]) for n, t in again.state_dict().items())
    assert not torch.equal(other.language.lm_head.weight, first.language.lm_head.weight)


def test_random_weights_above_a_million_numbers_do_not_repeat_rows():
    with torch.device("meta"):
        root = torch.nn.ModuleDict({"language": torch.nn.Linear(1000, 4000, bias=False)})
    fill_random(root)
    weight = root["language"].weight
    assert len(torch.unique(weight[:, :4], dim=0)) == 4000
    assert abs(float(weight.std()) - 1000**-0.5) < 1e-3


def test_a_forgotten_buffer_is_noticed():
    class Odd(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("lost", torch.zeros(2), persistent=False)

    with torch.device("meta"):
        root = Odd()
    with pytest.raises(RuntimeError, match="still without values: lost"):
        filling.fill_buffers(root, "cpu")
