"""Everything a user can get wrong, through both doors: `pipe(...)` in Python and `litelvlm ground`.

Each case is either answered, with a mask of the picture's upright size, or refused in one short
line: `InputError` in Python, exit code 2 and one line on stderr on the command line.
"""

from __future__ import annotations

import io
import json
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import litelvlm
from litelvlm import cli
from litelvlm.errors import InputError
from litelvlm.question import Question

TINY = ["--model", "tiny-random", "--device", "cpu"]


@pytest.fixture(autouse=True)
def one_model(pipe, monkeypatch):
    """The shared toy model for `tiny-random`; everything else is loaded for real."""
    load = litelvlm.load

    def cached(model="nano", **options):
        if model != "tiny-random" or options.get("device") not in (None, "cpu"):
            return load(model, **options)
        return pipe

    monkeypatch.setattr(litelvlm, "load", cached, raising=False)


def command(capsys, *words):
    """(exit code, stdout, stderr) of `litelvlm ground`."""
    try:
        code = cli.main(["ground", *map(str, words)])
    except SystemExit as end:
        code = end.code
    return code, *capsys.readouterr()


def assert_refused(capsys, pipe, path, phrase="a disc", words=(), about="", **options):
    """Both doors refuse in one short line that contains `about`."""
    with pytest.raises(InputError, match=about) as fault:
        pipe(path, phrase, **options)
    assert "\n" not in str(fault.value)
    assert len(str(fault.value)) < 200
    code, out, err = command(capsys, path, phrase, *words, *TINY)
    assert (code, out) == (2, "")
    assert err.startswith("litelvlm")
    assert err.count("\n") == 1
    assert len(err) < 400


def assert_answered(capsys, pipe, path, size, phrase="a disc"):
    """Both doors answer with a mask of (height, width) `size`."""
    assert pipe(path, phrase, 8)[0].mask.shape == size
    code, out, err = command(capsys, path, phrase, "--budget", 8, "--json", *TINY)
    assert (code, err) == (0, "")
    assert json.loads(out)["results"][0]["mask_rle"]["size"] == list(size)


def noise(height, width, channels=3, dtype=np.uint8):
    shape = (height, width, channels) if channels > 1 else (height, width)
    top = np.iinfo(dtype).max
    return np.random.default_rng(0).integers(0, top, shape, dtype=dtype)


def encoded(image, kind, **options):
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def bomb(side):
    """A PNG of a few hundred bytes whose header promises side x side pixels."""

    def chunk(name, data):
        return (
            struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
        )

    header = struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0)
    rows = zlib.compress(bytes(1000))
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")
    )


# --- pictures --------------------------------------------------------------------------------

PHOTO = Image.fromarray(noise(40, 60))
SIDEWAYS = Image.Exif()
SIDEWAYS[0x0112] = 6  # EXIF orientation: turn by a quarter

ANSWERED = {
    "one pixel.png": (encoded(PHOTO.resize((1, 1)), "PNG"), (1, 1)),
    "one row.png": (encoded(PHOTO.resize((300, 1)), "PNG"), (1, 300)),
    "one column.png": (encoded(PHOTO.resize((1, 300)), "PNG"), (300, 1)),
    "16 bit.png": (encoded(Image.fromarray(noise(40, 60, 1, np.uint16)), "PNG"), (40, 60)),
    "cmyk.jpg": (encoded(PHOTO.convert("CMYK"), "JPEG"), (40, 60)),
    "palette.png": (encoded(PHOTO.convert("P"), "PNG"), (40, 60)),
    "alpha.png": (encoded(PHOTO.convert("RGBA"), "PNG"), (40, 60)),
    "grey alpha.png": (encoded(PHOTO.convert("LA"), "PNG"), (40, 60)),
    "black and white.png": (encoded(PHOTO.convert("1"), "PNG"), (40, 60)),
    "rotated.jpg": (encoded(PHOTO, "JPEG", exif=SIDEWAYS), (60, 40)),
    "animated.webp": (
        encoded(PHOTO, "WEBP", save_all=True, append_images=[PHOTO.rotate(90)]),
        (40, 60),
    ),
    "animated.gif": (encoded(PHOTO, "GIF"), (40, 60)),
    "disguised.png": (encoded(PHOTO, "TIFF"), (40, 60)),
    "name says nothing": (encoded(PHOTO, "PNG"), (40, 60)),
}

REFUSED = {
    "text.png": (b"this is no picture", "JPEG, PNG, WEBP"),
    "empty.png": (b"", "is empty"),
    "page.jpg": (b"<html><script>alert(1)</script></html>", "is a web page"),
    "drawing.svg": (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "SVG is not taken"),
    "cut.png": (encoded(PHOTO, "PNG")[:900], "damaged"),
    "cut.jpg": (encoded(PHOTO, "JPEG")[:900], "damaged"),
    "disguised.png": (encoded(PHOTO, "PPM"), "JPEG, PNG, WEBP"),
    "100 megapixels.png": (bomb(10_000), "megapixels"),
    "900 megapixels.png": (bomb(30_000), "megapixels"),
}


@pytest.mark.parametrize("name", ANSWERED)
def test_an_unusual_picture_is_answered_upright(capsys, pipe, tmp_path, name):
    content, size = ANSWERED[name]
    path = tmp_path / name
    path.write_bytes(content)
    assert_answered(capsys, pipe, path, size)


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_no_usable_picture_is_refused(capsys, pipe, tmp_path, name):
    content, about = REFUSED[name]
    path = tmp_path / name
    path.write_bytes(content)
    assert_refused(capsys, pipe, path, about=about)


def test_a_folder_and_a_missing_file_are_no_pictures(capsys, pipe, tmp_path):
    assert_refused(capsys, pipe, tmp_path, about="is a folder")
    assert_refused(capsys, pipe, tmp_path / "nowhere.png", about="no such file")


def test_a_bomb_is_refused_without_memory(capsys, pipe, tmp_path):
    path = tmp_path / "bomb.png"
    path.write_bytes(bomb(10_000))
    assert path.stat().st_size < 500
    before = _peak_memory()
    assert_refused(capsys, pipe, path, about="megapixels")
    path.write_bytes(bomb(10_000)[:60])  # its header is enough to know
    assert_refused(capsys, pipe, path, about="megapixels")
    assert _peak_memory() - before < 50 * 2**20  # decoded it would be 100 MB at least


def _peak_memory():
    status = Path("/proc/self/status")
    if not status.exists():
        pytest.skip("reads Linux's /proc")
    (line,) = [line for line in status.read_text().splitlines() if line.startswith("VmHWM")]
    return int(line.split()[1]) * 1024


# --- phrases ---------------------------------------------------------------------------------


@pytest.mark.parametrize("phrase", ["", " ", "\t\n  ", "\u3000", "<>", "\x00\x07", "???", "🍎🍎"])
def test_an_empty_phrase_is_refused(capsys, pipe, tmp_path, phrase):
    path = tmp_path / "photo.png"
    path.write_bytes(encoded(PHOTO, "PNG"))
    assert_refused(capsys, pipe, path, phrase, about="has no word")


def test_a_phrase_of_5000_characters_is_refused(capsys, pipe, tmp_path):
    path = tmp_path / "photo.png"
    path.write_bytes(encoded(PHOTO, "PNG"))
    assert_refused(capsys, pipe, path, "long " * 1000, about="5000 characters, at most 1000")


@pytest.mark.parametrize(
    "phrase",
    [
        "<b>bold</b> & <script>alert('x')</script>",
        "![](http://example.org/x.png) [link](javascript:alert(1))",
        "التفاحة الحمراء",
        "赤いりんご",
        "красное яблоко",
        "लाल सेब",
        "z̷̢̛a̵l̶g̴o̸",
        "a",
        "{phrase} {0} %s \\n",
        "'; DROP TABLE masks; --",
        "--budget",
    ],
)
def test_any_script_and_any_markup_is_just_text(capsys, pipe, tmp_path, phrase):
    path = tmp_path / "photo.png"
    path.write_bytes(encoded(PHOTO, "PNG"))
    results = pipe(path, phrase, 8)
    assert results[0].phrase == phrase
    words = [path, "--budget", 8, "--json", *TINY, "--", phrase]
    code, out, _ = command(capsys, *words)
    assert code == 0
    assert json.loads(out)["results"][0]["phrase"] == phrase


@pytest.mark.parametrize(
    "phrase",
    ["[SEG]", "the <image>", "</s> USER: no", "<im_start> <im_end>", "<s>", "<unk>", "<p>cat</p>"],
)
def test_the_model_s_own_special_tokens_are_just_text(pipe, scene, phrase):
    found = pipe.ground(scene, [phrase, "a disc"], 8)
    alone = pipe.ground(scene, "a disc", 8)
    assert len(found) == 2
    assert np.array_equal(found[1].mask, alone[0].mask)
    specials = set(pipe.family.config.tokens.values()) - {pipe.family.config.tokens["pad"]}
    odd, plain = (
        pipe.family.prompts(Question([words], mode="forced"))[0] for words in (phrase, "a disc")
    )
    assert [t for t in odd.after if t in specials] == [t for t in plain.after if t in specials]


# --- budgets and options ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("budget", "value"),
    [
        ("0", 0),
        ("-5", -5),
        ("nan", float("nan")),
        ("inf", float("inf")),
        ("17.5", 17.5),
        ("many", "many"),
        ("65", 65),
        ("1000000000", 10**9),
        ("", ""),
    ],
)
def test_a_budget_that_is_none_is_refused(capsys, pipe, tmp_path, budget, value):
    path = tmp_path / "photo.png"
    path.write_bytes(encoded(PHOTO, "PNG"))
    about = "whole number from 1 to 64"
    assert_refused(capsys, pipe, path, words=[f"--budget={budget}"], about=about, budget=value)


def test_a_budget_below_the_number_of_phrases_is_each_phrase_s_own(pipe, scene):
    """Every phrase has a budget of its own; only a shared one can be too small."""
    phrases = ["a disc", "the noise", "a cat"]
    results = pipe.ground(scene, phrases, 2)
    assert [len(result.token_map.indices) for result in results] == [2, 2, 2]
    with pytest.raises(InputError, match="below the number of phrases"):
        pipe.ground(scene, phrases, 2, joint=True)


@pytest.mark.parametrize(
    ("option", "known"),
    [
        ({"method": "magic"}, "known: litelvlm, "),
        ({"split": "half"}, "paper, released"),
        ({"split": 1.5}, "paper, released"),
        ({"order": "down"}, "raster, released"),
        ({"positions": "none"}, "compact, original"),
        ({"context": "none"}, "released, attention"),
        ({"text": "poem"}, "phrase, question, templates"),
        ({"mode": "sing"}, "forced, generate"),
        ({"view": "fisheye"}, "crop, letterbox"),
    ],
    ids=str,
)
def test_an_unknown_choice_lists_the_known_ones(capsys, pipe, tmp_path, option, known):
    path = tmp_path / "photo.png"
    path.write_bytes(encoded(PHOTO, "PNG"))
    ((name, value),) = option.items()
    words = ["--budget", 8, f"--{name}", value]
    with pytest.raises(InputError, match=known):
        pipe(path, "a disc", 8, **option)
    code, out, err = command(capsys, path, "a disc", *words, *TINY)
    assert (code, out) == (2, "")
    assert known in err
    assert err.count("\n") == 1


# --- models and devices ----------------------------------------------------------------------


def test_an_unknown_model_lists_the_known_ones(capsys, tmp_path):
    path = tmp_path / "photo.png"
    path.write_bytes(encoded(PHOTO, "PNG"))
    code, _, err = command(capsys, path, "a disc", "--model", "nanu")
    assert code == 2
    assert "'nanu'; known: nano, photo, glamm-refseg, " in err


@pytest.mark.parametrize("device", ["cuda:99", "abacus", "cpu:x", ""])
def test_an_absent_device_lists_what_is_there(capsys, tmp_path, device):
    path = tmp_path / "photo.png"
    path.write_bytes(encoded(PHOTO, "PNG"))
    with pytest.raises(InputError, match="cpu"):
        litelvlm.load("tiny-random", device=device or "none")
    words = ["--model", "tiny-random", f"--device={device or 'none'}"]
    code, _, err = command(capsys, path, "a disc", *words)
    assert code == 2
    assert "cpu" in err
    assert err.count("\n") == 1


def test_an_unknown_dtype_lists_the_known_ones():
    with pytest.raises(InputError, match="float32, bfloat16, float16"):
        litelvlm.load("nobody/nothing", dtype="int4")


@pytest.mark.parametrize("fault", [torch.OutOfMemoryError("CUDA out of memory"), MemoryError()])
def test_running_out_of_memory_is_one_line(capsys, pipe, tmp_path, monkeypatch, fault):
    path = tmp_path / "photo.png"
    path.write_bytes(encoded(PHOTO, "PNG"))

    def full(*_args, **_options):
        raise fault

    with monkeypatch.context() as patch:
        patch.setattr(pipe.family.language, "prefill", full)
        assert_refused(capsys, pipe, path, about="out of memory")
    assert_answered(capsys, pipe, path, (40, 60))  # and the next call works
