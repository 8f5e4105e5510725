"""Clips: read and written, followed as SAM 2 follows, asked as Sa2VA was trained."""

from __future__ import annotations

import json

import cv2
import numpy as np
import pytest
import torch
from PIL import Image
from test_sa2va import MARKS, build_sam, plain_image, tokenizer, write_sa2va
from transformers import Sam2VideoInferenceSession

import litelvlm
from litelvlm.cli import main
from litelvlm.clips import Clip, is_clip, read_clip, write_clip
from litelvlm.errors import InputError
from litelvlm.families.table import with_video
from litelvlm.models.sam2 import Sam2Segmenter

OFF = 1e-3  # mean difference of logits, as a share of their mean size


def draw(count=7, height=48, width=64):
    """A disc that walks to the right."""
    frames = np.full((count, height, width, 3), 60, np.uint8)
    rows, columns = np.mgrid[:height, :width]
    for time, frame in enumerate(frames):
        frame[(rows - 24) ** 2 + (columns - 10 - 5 * time) ** 2 < 64] = (220, 40, 30)
    return frames


@pytest.fixture(scope="module")
def loaded(tmp_path_factory):
    """(pipeline, the parts it was written from)."""
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("sa2va")
    parts = write_sa2va(folder)
    return litelvlm.load(folder, device="cpu", tower="clip"), parts


@pytest.fixture(scope="module")
def clip_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("clips") / "disc.mp4"
    write_clip(path, draw(), 5.0)
    return path


# -------------------------------------------------------------------------------------- files
def test_a_clip_comes_back_as_it_was_written(clip_file):
    clip = read_clip(clip_file)
    assert clip.frames.shape == (7, 48, 64, 3)
    assert clip.fps == 5
    assert np.abs(clip.frames.astype(int) - draw()).mean() < 12  # a lossy format
    assert is_clip(clip_file)


def test_fewer_frames_a_second_are_taken_evenly(tmp_path):
    path = tmp_path / "grey.mp4"
    write_clip(path, [np.full((32, 32, 3), 20 * time, np.uint8) for time in range(12)], 6.0)
    clip = read_clip(path, fps=2)
    assert clip.fps == 2
    found = clip.frames.mean((1, 2, 3))
    np.testing.assert_allclose(found, [0, 60, 120, 180], atol=6)


def test_odd_sides_are_written(tmp_path):
    write_clip(tmp_path / "a.mp4", draw(2, 47, 63), 5.0)
    assert read_clip(tmp_path / "a.mp4").frames.shape == (2, 46, 62, 3)


def test_what_is_no_clip_or_too_much_is_told(tmp_path, clip_file, monkeypatch):
    whole = clip_file.read_bytes()
    for name, content, expected in (
        ("noise.mp4", bytes(range(256)) * 9, "not a clip that can be read"),
        ("empty.mp4", b"", "not a clip that can be read"),
        ("cut.mp4", whole[: len(whole) // 2], "not a clip that can be read"),
    ):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(InputError, match=rf"{name}: {expected}"):
            read_clip(tmp_path / name)
    for given, expected in (
        (tmp_path / "none.mp4", "no such file"),
        (tmp_path, "is a folder"),
        (np.zeros((3, 4), np.uint8), r"\(frames, height, width, 3\) uint8"),
        (Clip(np.zeros((201, 4, 4, 3), np.uint8)), "201 frames, at most 200"),
        (np.zeros((1, 4, 1921, 3), np.uint8), "1921 x 4 pixels, at most 1920"),
    ):
        with pytest.raises(InputError, match=expected):
            read_clip(given)
    with pytest.raises(InputError, match="fps must be above 0"):
        read_clip(clip_file, fps=0)
    with pytest.raises(InputError, match="cannot be written"):
        write_clip(tmp_path / "none" / "a.mp4", draw(1), 5.0)
    monkeypatch.setattr("litelvlm.clips.MAX_FRAMES", 3)
    with pytest.raises(InputError, match="more than 3 frames at 5 a second"):
        read_clip(clip_file)
    assert len(read_clip(clip_file, fps=2).frames) == 3
    monkeypatch.setattr("litelvlm.clips.MAX_SECONDS", 1.0)
    with pytest.raises(InputError, match="longer than 1 seconds"):
        read_clip(clip_file, fps=1)


def test_a_picture_is_no_clip(tmp_path):
    for name in ("a.png", "a.jpg", "a.gif", "a.webp", "a.avif"):
        Image.fromarray(draw(1)[0]).save(tmp_path / name)
        assert not is_clip(tmp_path / name)
    assert not is_clip(tmp_path / "none.mp4")


# ------------------------------------------------------------------------------------ follow
@pytest.mark.parametrize("newer", [False, True])
@torch.inference_mode()
def test_masks_follow_as_transformers_follows_points(newer):
    """A prompt that equals "not a point" is what a video session calls a point of label -1."""
    torch.manual_seed(3)
    sam = build_sam(newer).eval()
    for name, parameter in sam.named_parameters():
        parameter.normal_(std=0.3 if parameter.ndim > 1 else 0.1)
        if "norm" in name and name.endswith("weight"):
            parameter.add_(1)
    sam.mask_decoder.pred_obj_score_head.proj_out.bias.fill_(50.0)  # the thing is always there
    segmenter, frames = Sam2Segmenter(sam), draw()
    blank = sam.prompt_encoder.not_a_point_embed.weight
    found = list(segmenter.follow(frames, torch.cat([blank, blank]), 3))

    session = Sam2VideoInferenceSession(
        video=torch.cat([segmenter.pixels(frame) for frame in frames]),
        video_height=48,
        video_width=64,
        dtype=torch.float32,
    )
    thing = session.obj_id_to_idx(1)
    sam.config.multimask_max_pt_num = 2
    for key in range(3):
        points = {"point_coords": torch.zeros(1, 1, 2, 2)}  # and one more is added to pad them
        points["point_labels"] = torch.full((1, 1, 2), -1, dtype=torch.int32)
        session.add_point_inputs(thing, key, points)
        session.obj_with_new_inputs = [1]
        sam(session, frame_idx=key)
    expected = list(sam.propagate_in_video_iterator(session, start_frame_idx=0))
    assert len(found) == len(expected) == 7
    assert [quality is not None for _, quality in found] == [True] * 3 + [False] * 4
    for (logits, _), step in zip(found, expected, strict=True):
        assert logits.shape == (2, 32, 32)
        for own in logits:  # the memory is kept in bfloat16, which enlarges rounding
            off = (own - step.pred_masks[0, 0]).abs().mean() / step.pred_masks.abs().mean()
            assert off < OFF, off
    assert not torch.allclose(found[3][0], found[6][0], atol=1e-2)


@pytest.mark.parametrize("positions", ["original", "compact"])
@pytest.mark.parametrize("budget", [None, 3])
@torch.inference_mode()
def test_a_clip_is_asked_as_sa2va_was_trained(loaded, budget, positions):
    pipe, parts = loaded
    frames = draw()
    found = pipe.follow(frames, "the red disc", budget, method="grid", positions=positions)
    (result,) = found
    assert len(result.token_maps) == 5
    assert (found.costs.tokens_total, found.costs.tokens_kept) == (20, 5 * (budget or 4))
    assert result.masks.shape == (7, 48, 64)
    assert np.array_equal(result.frames, frames)

    read = lambda text: tokenizer().encode(text, add_special_tokens=False).ids  # noqa: E731
    embed = parts["llm"].get_input_embeddings()
    sequence, places = [], []
    at = 0

    def say(text):
        nonlocal at
        ids = read(text)
        sequence.append(embed(torch.tensor([ids], dtype=torch.long)))
        places.extend(range(at, at + len(ids)))
        at += len(ids)
        return ids

    say("<|im_start|>user\n")
    for time in range(5):
        if time:
            say("\n")
        say("<img>")
        kept = torch.as_tensor(result.token_maps[time].order)
        sequence.append(plain_image(parts, frames[time], (1, 1))[:, kept])
        places.extend((at + kept).tolist())
        at += 4
        say("</img>")
    question = "Please segment the red disc in this image."
    last = say(f"{question}<|im_end|>\n<|im_start|>assistant\nIt is [SEG].")
    whole = torch.cat(sequence, 1)
    if positions == "compact":
        places = range(whole.shape[1])
    assert found.costs.llm_tokens == whole.shape[1]
    states = parts["llm"].model(
        inputs_embeds=whole,
        position_ids=torch.tensor([list(places)]),
        attention_mask=torch.ones(whole.shape[:2]),
    )
    place = whole.shape[1] - len(last) + last.index(MARKS.index("[SEG]"))
    prompt = parts["head"](states.last_hidden_state[0, [place]])
    segmenter = Sam2Segmenter(parts["sam"])
    square = segmenter.frame((48, 64))
    expected = [square.upscale(logits)[0] > 0 for logits, _ in segmenter.follow(frames, prompt, 5)]
    for own, other in zip(result.masks, expected, strict=True):
        assert (own != other.numpy()).mean() < 0.01


def test_every_phrase_has_its_own_tokens_and_masks(loaded):
    pipe, _ = loaded
    both = pipe.follow(draw(), ["the red disc", "a disc"], 2)
    assert [len(item.token_maps) for item in both] == [5, 5]
    alone = pipe.follow(draw(), "a disc", 2)
    assert both[1].agreement(alone[0]) > 0.98  # rounding of a batch goes on through the memory
    for one, other in zip(both[1].token_maps, alone[0].token_maps, strict=True):
        assert np.array_equal(one.indices, other.indices)
    data = json.loads(json.dumps(both.to_json()))
    assert len(data["results"][0]["frames"]) == 7
    assert len(data["results"][0]["tokens"]) == 5
    assert "in 7 of 7 frames" in repr(both[0]) or not both[0].masks.any((1, 2)).all()


def test_a_short_clip_has_fewer_key_frames(loaded):
    pipe, _ = loaded
    (item,) = pipe.follow(draw(2), "a disc", 2)
    assert (len(item.token_maps), len(item.masks)) == (2, 2)


def test_an_answer_without_a_mask_finds_nothing(loaded):
    pipe, _ = loaded
    head = pipe.family.language.llama.lm_head
    held = head.weight.clone()
    try:
        with torch.no_grad():
            head.weight.zero_()  # the first word is written, which is not [SEG]
        (item,) = pipe.follow(draw(2), "a disc", mode="generate", max_new_tokens=2)
    finally:
        with torch.no_grad():
            head.weight.copy_(held)
    assert not item.found
    assert item.quality is None


def test_what_cannot_be_asked_about_a_clip_is_refused(loaded, pipe, tmp_path):
    clips, _ = loaded
    with pytest.raises(InputError, match=r"needs layers, which .* does not offer"):
        clips.follow(draw(2), "a disc", 2, method="fastv")
    with pytest.raises(InputError, match="from 1 to 4, got 9"):
        clips.follow(draw(2), "a disc", 9)
    with pytest.raises(InputError) as fault:
        pipe.follow(draw(2), "a disc")
    assert str(fault.value).endswith(
        "takes pictures only; these take clips: " + ", ".join(with_video())
    )


# ------------------------------------------------------------------------------ command line
def test_the_command_writes_masks_overlay_and_record(loaded, clip_file, tmp_path, capsys):
    (tmp_path / "model").mkdir()
    write_sa2va(tmp_path / "model")
    out = tmp_path / "masks"
    given = ["ground", str(clip_file), "the red disc", "--model", str(tmp_path / "model")]
    given += ["--tower", "clip", "--device", "cpu", "--budget", "2", "--out", str(out)]
    assert main(given) == 0
    told = capsys.readouterr().out
    assert "10 of 20 image tokens" in told
    data = json.loads((out / "result.json").read_text())
    assert data["fps"] == 5
    assert [frame["mask_rle"]["size"] for frame in data["results"][0]["frames"]] == [[48, 64]] * 7
    for time in range(7):
        mask = np.array(Image.open(out / f"01_mask_{time:04d}.png"))
        share = data["results"][0]["frames"][time]["area_fraction"]
        assert mask.shape == (48, 64)
        assert (mask > 0).mean() == pytest.approx(share)
    assert len(list(out.glob("01_tokens_*.png"))) == 5
    video = cv2.VideoCapture(str(out / "01_overlay.mp4"))
    assert video.get(cv2.CAP_PROP_FRAME_COUNT) == 7
    assert read_clip(out / "01_overlay.mp4").frames.shape == (7, 48, 64, 3)


def test_the_command_tells_bad_clips_in_one_line(clip_file, tmp_path, capfd):
    broken = tmp_path / "cut.mp4"
    broken.write_bytes(clip_file.read_bytes()[:600])
    for given, expected in (
        ([str(broken), "a"], "not a clip that can be read"),
        ([str(clip_file), "a", "--compare"], "--compare takes a picture, not a clip"),
        ([str(clip_file), "a", "--fps", "-1"], "fps must be above 0"),
        ([str(clip_file), "a", "--model", "tiny-random"], "takes pictures only; these take clips"),
    ):
        assert main(["ground", *given]) == 2
        assert expected in capfd.readouterr().err
