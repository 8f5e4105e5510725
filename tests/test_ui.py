"""The demo's callbacks, called as plain functions with the toy model."""

from __future__ import annotations

import base64
import html
import json
import pickle
import re
import sys
import types
from dataclasses import fields, replace
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from PIL import Image
from pycocotools import mask as coco

from litelvlm import viz
from litelvlm.errors import InputError, MemoryShortError
from litelvlm.metrics import iou
from litelvlm.pruning import Reason
from litelvlm.ui import callbacks, charts, handout, limits, panels, pictures, work, zero
from litelvlm.ui.callbacks import Controls, Page
from litelvlm.ui.desk import Desk
from litelvlm.ui.examples import Example, examples
from litelvlm.ui.settings import Settings


@pytest.fixture
def desk(pipe):
    return Desk(Settings(models=("tiny-random",)), lambda name: pipe)


@pytest.fixture
def file(tmp_path, picture):
    path = tmp_path / "picture.png"
    Image.fromarray(picture).save(path)
    return str(path)


@pytest.fixture
def ask(file):
    return Controls("tiny-random", file, "the disc\nthe noise", 16)


def layers(markup):
    """Every PNG inlined in the markup, as (h, w, 4) RGBA arrays."""
    found = re.findall(r"data:image/png;base64,([A-Za-z0-9+/=]+)", markup)
    files = [np.frombuffer(base64.b64decode(data), np.uint8) for data in found]
    return [cv2.cvtColor(cv2.imdecode(f, cv2.IMREAD_UNCHANGED), cv2.COLOR_BGRA2RGBA) for f in files]


def filled(page):
    return {field.name for field in fields(Page) if getattr(page, field.name) is not None}


# ------------------------------------------------------------------------------------ the answer
def test_an_answer_fills_every_part_of_the_page(desk, ask):
    page = callbacks.ground(desk, None, ask)
    assert filled(page) == {field.name for field in fields(Page)}
    assert "16 of 64 image tokens" in page.status


def test_the_drawn_masks_are_those_of_the_library_and_lossless(desk, pipe, ask, picture):
    page = callbacks.ground(desk, None, ask)
    results = pipe.ground(pipe.encode(picture), ["the disc", "the noise"], 16)
    expected = viz.mask_layer([item.mask for item in results])
    assert np.array_equal(layers(page.masks)[0], expected)


def test_the_second_layer_is_the_unpruned_run(desk, pipe, ask, picture):
    page = callbacks.ground(desk, None, ask)
    results = pipe.ground(pipe.encode(picture), ["the disc", "the noise"])
    expected = viz.mask_layer([item.mask for item in results])
    assert np.array_equal(layers(page.masks)[1], expected)


def test_the_agreement_shown_is_the_iou_of_both_masks(desk, ask):
    page = callbacks.ground(desk, None, ask)
    given = page.session
    for score, a, b in zip(given.agreement, given.pruned, given.unpruned, strict=True):
        assert score == iou(a.mask, b.mask)
        assert f"(IoU) <b>{score:.2f}</b>" in page.masks


def test_moving_the_slider_reuses_the_encoded_picture_and_the_unpruned_run(desk, pipe, ask):
    first = callbacks.ground(desk, None, ask).session
    moved = callbacks.ground(desk, first, replace(ask, budget=32))
    assert moved.session.scene is first.scene
    assert moved.session.unpruned is first.unpruned
    assert moved.session.pruned.costs.tokens_kept == 32
    assert moved.photo is None, "the photo need not be sent again"
    assert "picture already encoded" in moved.status


def test_a_reused_picture_gives_the_same_answer_as_a_fresh_one(desk, ask):
    first = callbacks.ground(desk, None, ask).session
    moved = callbacks.ground(desk, first, replace(ask, budget=32)).session
    fresh = callbacks.ground(desk, None, replace(ask, budget=32)).session
    for a, b in zip(moved.pruned, fresh.pruned, strict=True):
        assert np.array_equal(a.mask, b.mask)


def test_another_picture_is_encoded_anew(desk, ask, tmp_path):
    first = callbacks.ground(desk, None, ask).session
    other = tmp_path / "other.png"
    Image.new("RGB", (50, 40), "green").save(other)
    page = callbacks.ground(desk, first, replace(ask, picture=str(other)))
    assert page.session.scene is not first.scene
    assert page.photo
    assert page.session.scene.image.shape == (40, 50, 3)


def test_another_phrase_runs_the_unpruned_model_again(desk, ask):
    first = callbacks.ground(desk, None, ask).session
    page = callbacks.ground(desk, first, replace(ask, phrases="a tree"))
    assert page.session.scene is first.scene
    assert page.session.unpruned is not first.unpruned
    assert [item.phrase for item in page.session.unpruned] == ["a tree"]


def test_two_visitors_do_not_see_each_other(desk, ask, tmp_path):
    other = tmp_path / "other.png"
    Image.new("RGB", (50, 40), "green").save(other)
    mine = callbacks.ground(desk, None, ask).session
    yours = callbacks.ground(desk, None, replace(ask, picture=str(other))).session
    again = callbacks.ground(desk, mine, replace(ask, budget=8)).session
    assert again.picture.key == mine.picture.key != yours.picture.key


def test_all_tokens_agree_fully_with_the_unpruned_run(desk, ask):
    given = callbacks.ground(desk, None, replace(ask, budget=64)).session
    assert given.agreement == [1.0, 1.0]


@pytest.mark.parametrize(
    "change",
    [
        {"method": "random"},
        {"method": "grid"},
        {"split": "released", "order": "released"},
        {"split": "0.25", "positions": "original"},
        {"context": "attention", "text": "templates"},
        {"mode": "generate"},
    ],
    ids=str,
)
def test_every_option_of_the_page_reaches_the_model(desk, ask, change):
    page = callbacks.ground(desk, None, replace(ask, **change))
    assert page.session is not None, page.status
    settings = page.session.pruned.settings
    for name, value in change.items():
        assert str(settings[name]) == value


def test_every_registered_method_fills_the_page(desk, pipe, ask):
    for name in pipe.methods:
        page = callbacks.ground(desk, None, replace(ask, method=name))
        assert page.session is not None, f"{name}: {page.status}"
        assert page.tokens
        assert page.similarity


# ------------------------------------------------------------------------------------- the tabs
def test_the_token_tab_counts_what_was_kept_and_dropped(desk, ask):
    page = callbacks.ground(desk, None, ask)
    facts = page.session.facts(0)
    assert sum(facts.kept.values()) == 16
    for count in (*facts.kept.values(), 48):
        assert f"<b>{count}</b>" in page.tokens


def test_the_token_tab_tells_of_the_part_clip_never_sees(desk, ask):
    page = callbacks.ground(desk, None, ask)
    assert page.session.facts(0).unseen == pytest.approx(0.25)
    assert "<b>25 %</b>" in page.tokens


def test_the_similarity_tab_shows_the_measured_reversal(desk, ask):
    page = callbacks.ground(desk, None, ask)
    auc = page.session.facts(0).auc
    assert auc is not None
    assert f"Reversal (AUC) <b>{auc:.2f}</b>" in page.similarity


@pytest.mark.parametrize(
    ("auc", "words"), [(0.1, "reversed"), (0.5, "no clear relation"), (0.9, "not reversed")]
)
def test_the_reversal_is_put_into_words(desk, ask, auc, words):
    facts = callbacks.ground(desk, None, ask).session.facts(0)
    none = replace(facts, auc=auc, auc_things=None, shares={})
    assert panels.reversal(none).count(f"<b>{words}</b>") == 1
    both = panels.reversal(replace(none, auc_things=auc))
    assert both.count(f"<b>{words}</b>") == 2
    shares = {Reason.SIMILARITY: 0.2, Reason.CONTEXT: 0.5}
    told = panels.reversal(replace(none, shares=shares))
    assert re.search("<b>20 %</b> of the mask; recovered as .*context</abbr>: <b>50 %</b>", told)
    assert "context carries the answer" in told


def test_the_tokens_in_common_are_counted(desk, ask, pipe):
    session = callbacks.ground(desk, None, ask).session
    maps = [set(item.token_map.indices.tolist()) for item in session.pruned]
    budget = session.ask.budget
    blind = pipe.ground(session.scene, "x", budget, method="context")[0].token_map.indices
    for number in range(2):
        same = session.same[number]
        assert same[session.ask.phrases[1 - number]] == len(maps[0] & maps[1])
        assert same[work.BLIND] == len(maps[number] & set(blind.tolist()))
        text = callbacks.choose_phrase(session, number).tokens
        assert f"<b>{same[work.BLIND]} of {budget}</b> tokens are the same without a phrase" in text


@pytest.mark.parametrize(
    ("quality", "verdict", "status"),
    [(0.9, "found", "Found"), (0.5, "unsure", "Unsure"), (0.1, "not found", "Nothing found")],
)
def test_a_calibrated_model_says_how_sure_it_is(desk, ask, monkeypatch, quality, verdict, status):
    family = desk.models.get().family
    monkeypatch.setattr(family, "confidence", {"found": 0.6, "unsure": 0.36})
    decode = family.segmenter.decode

    def sure(*given):
        logits, estimates = decode(*given)
        return logits.abs() + 1, torch.full_like(estimates, quality)

    monkeypatch.setattr(family.segmenter, "decode", sure)
    page = callbacks.ground(desk, None, replace(ask, phrases="the disc"))
    assert [item.verdict for item in page.session.pruned] == [verdict]
    assert f">{status} ·" in page.status


def test_a_method_without_similarity_still_gets_the_heat_map_but_no_cut(desk, ask, pipe):
    page = callbacks.ground(desk, None, replace(ask, method="grid"))
    scores = pipe.similarity(page.session.scene, ["the disc", "the noise"])
    assert np.allclose(page.session.similarity, scores.numpy())
    assert "cut at" not in page.similarity
    assert "cut at" in callbacks.ground(desk, None, ask).similarity


def test_choosing_a_phrase_redraws_without_a_run(desk, ask):
    page = callbacks.ground(desk, None, ask)
    other = callbacks.choose_phrase(page.session, 1)
    assert filled(other) == {"tokens", "similarity"}
    assert "the noise" in other.tokens
    assert other.tokens != page.tokens


@pytest.mark.parametrize("index", [-1, 7, "1", None, 0.5])
def test_a_phrase_number_out_of_range_means_the_first(desk, ask, index):
    page = callbacks.ground(desk, None, ask)
    assert callbacks.choose_phrase(page.session, index).tokens == page.tokens


def test_one_phrase_needs_no_choice(desk, ask):
    assert callbacks.ground(desk, None, replace(ask, phrases="a disc")).phrases == ()
    assert callbacks.ground(desk, None, ask).phrases == ("the disc", "the noise")


def test_the_cost_tab_names_the_tokens_that_entered(desk, ask):
    page = callbacks.ground(desk, None, ask)
    pruned, full = page.session.pruned.costs, page.session.unpruned.costs
    assert full.llm_tokens - pruned.llm_tokens == 48
    assert f"{pruned.llm_tokens} <small>of {full.llm_tokens}</small>" in page.cost
    assert "One run each" in page.cost


def test_measuring_again_repeats_both_runs_and_counts_work_and_memory(desk, ask):
    page = callbacks.ground(desk, None, ask)
    page = callbacks.measure(desk, page.session, ask)
    measured = page.session.measured
    assert measured.repeats == 5
    for spread in measured.stages["llm_prefill"]:
        assert 0 < spread.low <= spread.median <= spread.high
    pruned, full = (r.costs.stage("llm_prefill") for r in (measured.pruned, measured.unpruned))
    assert pruned.flops < full.flops
    assert pruned.peak_bytes < full.peak_bytes
    assert "Median of 5 runs" in page.cost


def test_a_new_answer_forgets_old_measurements(desk, ask):
    page = callbacks.ground(desk, None, ask)
    page = callbacks.measure(desk, page.session, ask)
    again = callbacks.ground(desk, page.session, replace(ask, budget=8))
    assert again.session.measured is None


def test_the_curve_grows_point_by_point_to_all_methods_and_budgets(desk, ask):
    session = callbacks.ground(desk, None, ask).session
    states = list(desk.sweep(session))
    assert [state.done for state in states] == list(range(len(states)))
    last = states[-1]
    assert last.done == last.total
    assert [curve.method for curve in last.curves] == ["litelvlm", "random", "grid"]
    for curve in last.curves:
        assert [budget for budget, _, _ in curve.points] == work.budgets(64)[:-1]
        assert all(0 <= score <= 1 and ms > 0 for _, score, ms in curve.points)


def test_the_curve_agrees_with_a_run_at_that_budget(desk, ask):
    session = callbacks.ground(desk, None, replace(ask, budget=16)).session
    curve = list(desk.sweep(session))[-1].curves[0]
    score = next(score for budget, score, _ in curve.points if budget == 16)
    assert score == pytest.approx(np.mean(session.agreement))


def test_the_curve_is_drawn_with_a_progress_bar_until_it_is_done(desk, ask):
    session = callbacks.ground(desk, None, ask).session
    pages = [page for _, page in callbacks.sweep(desk, session, ask)]
    assert all("progressbar" in page for page in pages[:-1])
    assert "progressbar" not in pages[-1]
    assert pages[-1].count("<tr>") == 1 + 3 * 3


@pytest.mark.parametrize("total", [16, 64, 144, 576])
def test_the_marks_lie_within_the_model(total):
    marks = work.budgets(total)
    assert marks == sorted(set(marks))
    assert marks[0] >= 1
    assert marks[-1] == total


# --------------------------------------------------------------------------------------- use it
def test_the_snippet_reproduces_the_masks(desk, ask, file, capsys, tmp_path, monkeypatch):
    page = callbacks.ground(desk, None, replace(ask, split="0.25", method="litelvlm"))
    code = page.snippet.replace("'your-picture.jpg'", repr(file))
    monkeypatch.chdir(tmp_path)
    names: dict = {}
    exec(compile(code, "snippet", "exec"), names)
    for a, b in zip(names["results"], page.session.pruned, strict=True):
        assert np.array_equal(a.mask, b.mask)
    assert (tmp_path / "figure.png").is_file()


def test_the_snippet_repeats_the_shrinking_of_a_large_picture(desk, ask, tmp_path, monkeypatch):
    large = tmp_path / "large.png"
    Image.effect_noise((2400, 1200), 60).save(large)
    page = callbacks.ground(desk, None, replace(ask, picture=str(large), phrases="noise"))
    assert "fit(read_image" in page.snippet
    code = page.snippet.replace("'your-picture.jpg'", repr(str(large)))
    monkeypatch.chdir(tmp_path)
    names: dict = {}
    exec(compile(code, "snippet", "exec"), names)
    assert np.array_equal(names["results"][0].mask, page.session.pruned[0].mask)


def test_a_phrase_cannot_break_out_of_the_snippet(desk, ask):
    page = callbacks.ground(desk, None, replace(ask, phrases='cat"]); import os; os.abort() #'))
    compile(page.snippet, "snippet", "exec")
    assert "\nimport os" not in page.snippet


def test_downloads_hold_masks_records_and_figures(desk, ask):
    page = callbacks.ground(desk, None, ask)
    links = callbacks.prepare_downloads(desk, page.session, ask).downloads
    files = {
        name: base64.b64decode(data)
        for name, data in re.findall(r'download="([^"]+)" href="data:[^;]+;base64,([^"]+)"', links)
    }
    assert set(files) == {
        "mask-1.png", "mask-2.png", "masks-coco-rle.json", "result.json", "figure.png",
        "figure.svg",
    }  # fmt: skip
    mask = cv2.imdecode(np.frombuffer(files["mask-1.png"], np.uint8), cv2.IMREAD_UNCHANGED)
    assert np.array_equal(mask > 0, page.session.pruned[0].mask)
    rle = json.loads(files["masks-coco-rle.json"])[1]["segmentation"]
    assert np.array_equal(coco.decode(rle).astype(bool), page.session.pruned[1].mask)
    record = json.loads(files["result.json"])
    assert record["results"][0]["phrase"] == "the disc"
    assert b"<svg" in files["figure.svg"]


def test_masks_to_download_have_the_size_of_the_upload(desk, ask, tmp_path):
    large = tmp_path / "large.png"
    Image.effect_noise((2000, 500), 60).save(large)
    page = callbacks.ground(desk, None, replace(ask, picture=str(large), phrases="noise"))
    assert page.session.picture.image.shape == (400, 1600, 3)
    record = handout.to_json(page.session)
    assert record["results"][0]["mask_rle"]["size"] == [500, 2000]
    assert "2000 × 500" in page.status


# ------------------------------------------------------------------- wrong input, and other states
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"picture": None}, "Choose a picture"),
        ({"picture": "/nowhere/at/all.png"}, "choose it again"),
        ({"phrases": ""}, "Type what to look for"),
        ({"phrases": " \n\t\n"}, "Type what to look for"),
        ({"phrases": None}, "Phrases are text"),
        ({"phrases": 7}, "Phrases are text"),
        ({"phrases": "!?… --"}, "no word"),
        ({"phrases": "a" * 5000}, "5000 characters"),
        ({"phrases": "\n".join(f"thing {i}" for i in range(50))}, "50 phrases"),
        ({"budget": float("nan")}, "budget must be a whole number from 1 to 64"),
        ({"budget": float("inf")}, "budget must be"),
        ({"budget": float("-inf")}, "budget must be"),
        ({"budget": 0}, "budget must be"),
        ({"budget": -3}, "budget must be"),
        ({"budget": 17.5}, "budget must be"),
        ({"budget": "16"}, "budget must be"),
        ({"budget": True}, "budget must be"),
        ({"budget": 65}, "budget must be"),
        ({"budget": 1e9}, "budget must be"),
        ({"budget": [16]}, "budget must be"),
        ({"method": "magic"}, "unknown method"),
        ({"split": "none"}, "split must be"),
        ({"split": 1.5}, "split must be"),
        ({"split": float("nan")}, "split must be"),
        ({"order": "zigzag"}, "order must be"),
        ({"positions": 5}, "positions must be"),
        ({"text": "poem"}, "text must be"),
        ({"mode": "guess"}, "mode must be"),
        ({"model": "gpt-9"}, "no model"),
    ],
    ids=str,
)
def test_wrong_input_becomes_a_short_message(desk, ask, change, message):
    page = callbacks.ground(desk, None, replace(ask, **change))
    text = html.unescape(page.status)
    assert message in text
    assert len(re.sub("<[^>]+>", "", text)) < 400
    assert filled(page) == {"status", "failed"}
    assert callbacks.ground(desk, None, ask).session is not None


def test_after_a_mistake_the_last_answer_stays_marked_as_such_and_the_next_try_works(desk, ask):
    first = callbacks.ground(desk, None, ask)
    page = callbacks.ground(desk, first.session, replace(ask, phrases=" "))
    assert filled(page) == {"status", "stale", "failed"}, "the tabs are left as they are"
    assert "On screen: the earlier answer to “the disc”" in page.status
    assert "opacity" in page.stale
    again = callbacks.ground(desk, first.session, ask)
    assert again.stale == ""
    assert again.session.reused


@pytest.mark.parametrize(
    "change",
    [
        {"phrases": "the disc"},
        {"phrases": ""},
        {"split": "0.25"},
        {"order": "released"},
        {"positions": "original"},
        {"context": "attention"},
        {"text": "question"},
        {"mode": "generate"},
        {"method": "grid"},
        {"budget": 17},
        {"model": "another"},
    ],
    ids=str,
)
def test_a_changed_setting_marks_the_answer_until_it_is_set_back_or_run_again(pipe, ask, change):
    desk = Desk(Settings(models=("tiny-random", "another")), lambda name: pipe)
    assert filled(callbacks.changed(desk, None, ask)) == set()
    first = callbacks.ground(desk, None, ask)
    now = replace(ask, **change)
    page = callbacks.changed(desk, first.session, now)
    assert "Settings changed: press Find to run again" in page.status
    assert "On screen: the earlier answer to “the disc”, “the noise” with 16 tokens" in page.status
    assert "opacity" in page.stale
    assert filled(callbacks.count(desk, first.session, now)) == set(), "nothing is measured for it"
    back = callbacks.changed(desk, first.session, ask)
    assert (back.status, back.stale) == (first.status, "")


@pytest.mark.parametrize(
    "change",
    [
        {"phrases": " the disc \n\nthe  noise\n"},
        {"split": "paper"},
        {"order": "raster"},
        {"model": None},
    ],
    ids=str,
)
def test_what_asks_the_same_marks_nothing(desk, ask, change):
    first = callbacks.ground(desk, None, ask)
    page = callbacks.changed(desk, first.session, replace(ask, **change))
    assert (page.status, page.stale) == (first.status, "")


def test_an_answer_does_not_outlive_its_picture(desk, ask, tmp_path):
    first = callbacks.ground(desk, None, ask)
    other, copy, text = (str(tmp_path / name) for name in ("other.png", "copy.png", "text.png"))
    Image.new("RGB", (50, 40), "green").save(other)
    Path(copy).write_bytes(Path(ask.picture).read_bytes())
    Path(text).write_text("no picture")
    for picture, told in (
        (None, "Choose a picture"),
        (other, "press Find"),
        (text, "not a picture"),
    ):
        page = callbacks.changed(desk, first.session, replace(ask, picture=picture))
        assert told in page.status
        assert "earlier answer" not in page.status
        assert "display:none" in page.stale
        failed = callbacks.ground(desk, first.session, replace(ask, picture=picture, budget=0))
        assert "display:none" in failed.stale
    page = callbacks.changed(desk, first.session, replace(ask, picture=copy))
    assert (page.status, page.stale) == (first.status, ""), "the same pixels in another file"


def test_costs_fill_in_when_they_are_looked_at(desk, ask):
    first = callbacks.ground(desk, None, ask)
    page = callbacks.count(desk, first.session, ask)
    assert "FLOP" in page.cost
    assert "paper’s own figures" in page.cost
    assert page.session.measured is not None
    assert filled(callbacks.count(desk, page.session, ask)) == set()


def test_an_example_is_reproduced_by_python_and_by_the_command_line(
    desk, pipe, tmp_path, monkeypatch
):
    import shlex

    from litelvlm.cli import main

    example = examples()[0]
    given = callbacks.about_example(desk, Controls("tiny-random", budget=16), example)
    page = callbacks.ground(desk, None, given)
    monkeypatch.chdir(tmp_path)
    names: dict = {}
    exec(compile(page.snippet, "snippet", "exec"), names)
    assert str(example.path) not in page.command + page.client, "no path of the server"
    assignment, command = page.command.splitlines()
    words = shlex.split(command.replace("$example", str(example.path)))
    assert assignment.startswith("example=")
    assert words[0] == "litelvlm"
    assert main(words[1:]) == 0
    record = json.loads((tmp_path / "found" / "result.json").read_text())
    for result, wrote, item in zip(
        names["results"], record["results"], page.session.pruned, strict=True
    ):
        assert np.array_equal(result.mask, item.mask)
        assert np.array_equal(coco.decode(wrote["mask_rle"]).astype(bool), item.mask)


def test_a_link_asks_again_what_was_asked(desk, ask):
    from urllib.parse import parse_qs, urlsplit

    def query(page):
        address = html.unescape(re.search(r'href="([^"]+)"', page.link)[1])
        return {k: v[0] for k, v in parse_qs(urlsplit(address).query).items()}

    example = examples()[1]
    options = {
        "method": "litelvlm-released", "split": "0.25", "order": "released",
        "positions": "original", "context": "attention", "text": "question",
        "mode": "generate", "tab": "tokens",
    }  # fmt: skip
    given = Controls("tiny-random", None, "the tree", 16, **options)
    page = callbacks.ground(desk, None, replace(given, picture=str(example.path)))
    asked = callbacks.Asked.read(query(page), examples(), Controls(budget=21))
    assert asked.example == example
    assert asked.given == given
    plain = query(callbacks.ground(desk, None, ask))
    assert set(plain) == {"picture", "phrases", "budget", "model", "tab"}, "no more than needed"
    own = callbacks.Asked.read(plain, examples(), Controls())
    assert plain["picture"] == own.mark != ""
    assert own.mark in callbacks.upload_asked(own).status
    assert callbacks.Asked.read({"__theme": "dark"}, examples(), Controls()) is None
    strange = {"example": "../../etc", "budget": "1e9", "phrases": "<i>"}
    assert callbacks.Asked.read(strange, examples(), Controls(budget=21)).given.budget == 21


@pytest.mark.parametrize("budget", [1, 16.0, 63, 64, None])
def test_whole_budgets_within_the_model_are_taken(desk, ask, budget):
    page = callbacks.ground(desk, None, replace(ask, budget=budget))
    assert page.session.pruned.costs.tokens_kept == (64 if budget is None else int(budget))


@pytest.mark.parametrize(
    "phrase",
    [
        "x", "👩‍🚀 astronaut", "القطة", "左边的猫", "שלום", "<script>alert(1)</script>",
        "[link](http://a.b)", "<image> [SEG] </s> <p>it</p> <bbox>", "${1+1} {{this}} `x` cat",
        "cat\x00\x07 dog", "the " * 45 + "cat",
    ],
)  # fmt: skip
def test_strange_phrases_get_an_answer_and_are_escaped_everywhere(desk, ask, phrase):
    page = callbacks.ground(desk, None, replace(ask, phrases=phrase))
    assert page.session is not None, page.status
    for name in ("status", "masks", "tokens", "similarity", "cost"):
        part = re.sub(r"base64,[A-Za-z0-9+/=]+", "", getattr(page, name))
        for raw in ("<script", "<image>", "<p>it", "${", "{{", "`x`"):
            assert raw not in part


def test_special_tokens_in_a_phrase_do_not_change_the_layout_of_tokens(desk, ask):
    page = callbacks.ground(desk, None, replace(ask, phrases="<image> [SEG] <im_start> cat"))
    costs = page.session.pruned.costs
    assert page.session.unpruned.costs.llm_tokens - costs.llm_tokens == 64 - 16
    assert len(page.session.pruned) == 1


def test_a_phrase_that_clip_cuts_is_told(desk, ask):
    page = callbacks.ground(desk, None, replace(ask, phrases="cat " * 49))
    assert page.session is not None
    assert not page.session.pruned[0].warnings
    wordy = " ".join("xyzzyqwk" for _ in range(20))
    page = callbacks.ground(desk, None, replace(ask, phrases=wordy))
    assert page.session.pruned[0].warnings
    assert "CLIP reads 77 tokens" in page.status


def test_nothing_found_is_a_state_of_its_own(desk, ask):
    page = callbacks.ground(desk, None, ask)
    nothing = tuple(
        replace(item, mask=np.zeros_like(item.mask), found=False) for item in page.session.pruned
    )
    given = replace(page.session, pruned=replace(page.session.pruned, items=nothing))
    markup = panels.masks(given)
    assert "Nothing found with 16 tokens" in markup
    assert "<b>lost</b>" in markup
    assert not layers(markup)[0].any()
    assert "Nothing found" in panels.status(given)
    assert "not measurable" in panels.similarity(given, 0)
    assert panels.tokens(given, 0)


def test_unknown_words_are_named_to_the_visitor(desk, ask):
    page = callbacks.ground(desk, None, replace(ask, phrases="the flibber"))
    items = tuple(replace(item, unknown_words=("flibber",)) for item in page.session.pruned)
    given = replace(page.session, pruned=replace(page.session.pruned, items=items))
    assert "“flibber”" in panels.notes(given)


def test_out_of_memory_is_told_and_the_next_run_works(desk, ask, monkeypatch):
    def short(*args, **kwargs):
        raise MemoryShortError("out of memory on cuda:0; try fewer phrases")

    monkeypatch.setattr(work, "answer", short)
    assert "out of memory" in callbacks.ground(desk, None, ask).status
    monkeypatch.undo()
    assert callbacks.ground(desk, None, ask).session is not None


def test_an_unforeseen_error_becomes_a_message_without_its_details(desk, ask, monkeypatch, caplog):
    def broken(*args, **kwargs):
        raise KeyError("secret/path")

    monkeypatch.setattr(work, "answer", broken)
    page = callbacks.ground(desk, None, ask)
    assert "This run failed" in page.status
    assert "secret" not in page.status
    assert "the disc" not in caplog.text, "phrases are not logged"


def test_missing_weights_become_a_message_on_the_page():
    def missing(name):
        raise InputError("nano: no weights at assets/nano")

    desk = Desk(Settings(), missing)
    assert desk.warm_up() is None
    picture = next(iter(examples())).path
    page = callbacks.ground(desk, None, Controls(phrases="a cat", picture=str(picture)))
    assert "no weights" in page.status
    assert desk.models.fault() == "nano: no weights at assets/nano"


def test_after_an_error_the_old_answer_cannot_be_measured_drawn_or_saved(desk, ask):
    first = callbacks.ground(desk, None, ask).session
    now = replace(ask, phrases="?")
    assert callbacks.ground(desk, first, now).session is None
    assert "Find something first" in callbacks.measure(desk, first, now).cost
    assert "Find something first" in next(callbacks.sweep(desk, first, now))[1]
    assert "Find something first" in callbacks.prepare_downloads(desk, first, now).downloads
    assert "Find something first" in callbacks.animation(desk, first, now, 0)
    assert "the noise" in callbacks.choose_phrase(first, 1).tokens, "it is still on screen"
    again = callbacks.ground(desk, first, ask).session
    assert again.scene is first.scene, "the encoded picture outlives the mistake"


def test_a_later_choice_of_model_does_not_change_who_measures(desk, ask):
    session = callbacks.ground(desk, None, ask).session
    assert session.model == "tiny-random"
    assert "litelvlm.load('tiny-random')" in callbacks.ground(desk, None, ask).snippet


def test_buttons_before_the_first_answer_say_what_to_do(desk):
    assert "Find something first" in callbacks.measure(desk, None, Controls()).cost
    assert "Find something first" in next(callbacks.sweep(desk, None, Controls()))[1]
    assert "Find something first" in callbacks.prepare_downloads(desk, None, Controls()).downloads
    assert callbacks.choose_phrase(None, 0) == Page()


# ------------------------------------------------------------------------------------- pictures in
def write(path, image, **options):
    image.save(path, **options)
    return str(path)


@pytest.mark.parametrize("size", [(1, 1), (1, 300), (300, 1), (2000, 3), (8000, 40)], ids=str)
def test_pictures_of_any_shape_get_a_mask_of_their_own_size(desk, ask, tmp_path, size):
    path = write(tmp_path / "p.png", Image.effect_noise(size, 50))
    page = callbacks.ground(desk, None, replace(ask, picture=path, phrases="x"))
    assert page.session is not None, page.status
    rle = handout.to_json(page.session)["results"][0]["mask_rle"]
    assert rle["size"] == [size[1], size[0]]


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA", "CMYK", "I;16"])
def test_pictures_of_every_mode_are_taken(tmp_path, mode):
    image = Image.new(mode, (9, 6))
    path = write(tmp_path / ("p.jpg" if mode == "CMYK" else "p.png"), image)
    assert limits.read_picture(path).image.shape == (6, 9, 3)


@pytest.mark.parametrize("turn", range(2, 9))
def test_the_orientation_of_a_photo_is_applied(tmp_path, turn):
    image = Image.new("RGB", (40, 20), "black")
    exif = Image.Exif()
    exif[274] = turn
    path = write(tmp_path / "p.jpg", image, exif=exif)
    expected = (40, 20) if turn >= 5 else (20, 40)
    assert limits.read_picture(path).original_hw == expected


@pytest.mark.parametrize("kind", ["PPM", "EPS", "ICO"])
def test_other_formats_are_refused_whatever_their_name(tmp_path, kind):
    path = tmp_path / "p.png"
    Image.new("RGB", (32, 32), "red").save(path, format=kind)
    told = r"this file: (not a picture that is known|PDF and PostScript are not taken)"
    with pytest.raises(InputError, match=told):
        limits.read_picture(str(path))


@pytest.mark.parametrize("content", [b"", b"hello", b"<svg xmlns='a'></svg>", b"\x89PNG\r\n\x1a\n"])
def test_what_is_no_picture_is_refused_without_naming_a_path(tmp_path, content):
    path = tmp_path / "p.png"
    path.write_bytes(content)
    with pytest.raises(InputError) as caught:
        limits.read_picture(str(path))
    assert str(tmp_path) not in str(caught.value)


def test_a_small_picture_is_not_touched_and_a_large_one_is_shrunk():
    small, large = np.zeros((10, 20, 3), np.uint8), np.zeros((4000, 100, 3), np.uint8)
    assert limits.fit(small, 1600) is small
    assert limits.fit(large, 1600).shape == (1600, 40, 3)


def test_an_enlarged_mask_covers_the_same_share():
    mask = np.zeros((40, 40), bool)
    mask[10:30, 10:30] = True
    large = limits.enlarge_mask(mask, (400, 800))
    assert large.shape == (400, 800)
    assert large.mean() == pytest.approx(mask.mean(), abs=0.01)


# ------------------------------------------------------------------------------------ small things
def test_pngs_come_back_exactly():
    noise = np.random.default_rng(0).integers(0, 255, (20, 30, 4)).astype(np.uint8)
    url = pictures.data_url(pictures.png(noise))
    assert np.array_equal(layers(url)[0], noise)


def test_escaped_text_holds_nothing_that_html_or_templates_read():
    safe = pictures.esc("<b>\"'${x}{{y}}`&")
    assert not set("<>\"'{}`$") & set(safe.replace("&#123;", "").replace("}", ""))


def test_examples_are_listed_and_can_be_read():
    shown = examples()
    assert shown
    for example in shown:
        assert example.pixels().ndim == 3
        assert limits.check_phrases(list(example.phrases)) == example.phrases


def test_a_click_on_an_example_answers_at_once(desk, file):
    example = Example(Path(file), ("the disc",))
    given = callbacks.about_example(desk, Controls("tiny-random", budget=16), example)
    page = callbacks.ground(desk, None, given)
    assert page.session.ask.phrases == ("the disc",)
    again = callbacks.ground(desk, page.session, Controls("tiny-random", file, "the disc", 8))
    assert again.session.scene is page.session.scene, "the same pixels, so encoded once"


def test_charts_survive_equal_values():
    flat = np.zeros(9, np.float32)
    assert "<svg" in charts.histogram(flat, np.arange(9) < 3, 0.0)
    assert "<svg" in charts.colour_bar(viz.colour_scale(flat), 0.0)


def test_every_drawing_has_a_text_alternative(desk, ask):
    page = callbacks.ground(desk, None, ask)
    markup = page.masks + page.tokens + page.similarity
    assert all('alt="' in tag for tag in re.findall(r"<img[^>]+>", markup))
    for tag in re.findall(r'<svg class="lv-chart[^>]+>', page.similarity):
        assert "aria-label=" in tag


def test_a_lent_gpu_is_asked_for_by_phrases_and_nothing_is_kept(pipe, ask, monkeypatch):
    asked = []

    def lend(duration):
        def wrap(function):
            def call(*args):
                asked.append(duration(*args))
                return function(*args)

            return call

        return wrap

    monkeypatch.setenv("SPACES_ZERO_GPU", "true")
    monkeypatch.setitem(sys.modules, "spaces", types.SimpleNamespace(GPU=lend))
    desk = Desk(Settings(models=("tiny-random",)), lambda name: pipe)
    wrong = callbacks.ground(desk, None, replace(ask, budget=0))
    assert wrong.session is None
    assert not asked, "wrong input is refused before the GPU is asked for"
    first = callbacks.ground(desk, None, ask)
    assert first.session.scene is None
    again = callbacks.ground(desk, first.session, replace(ask, budget=8))
    assert again.session.pruned.costs.tokens_kept == 8
    assert asked == [21, 21]
    pickle.loads(pickle.dumps(again.session))  # as it travels between the processes


def test_elsewhere_the_gpu_decorator_does_nothing(monkeypatch):
    monkeypatch.delenv("SPACES_ZERO_GPU", raising=False)

    def work_of_mine():
        return 1

    assert zero.gpu(lambda: 60)(work_of_mine) is work_of_mine


def test_a_large_model_without_gpu_says_that_it_is_slow(pipe, monkeypatch):
    from litelvlm.ui.about import model_line

    desk = Desk(Settings(models=("tiny-random",)), lambda name: pipe)
    assert "takes minutes" not in model_line(desk, "tiny-random")
    monkeypatch.setattr(pipe, "weight_bytes", 16_000_000_000)
    assert "Running on the CPU" in model_line(desk, "tiny-random")


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (["--auth", "nobody"], "USER:PASSWORD"),
        (["--auth", ":secret"], "USER:PASSWORD"),
        (["--auth", "ada:lovelace", "--mcp"], "--mcp does not go with --auth"),
        (["--queue-size", "0"], "--queue-size"),
        (["--port", "70000"], "--port"),
        (["--keep-minutes", "0"], "--keep-minutes"),
        (["--upload-mb", "nan"], "--upload-mb"),
        (["--disk-mb", "-1"], "--disk-mb"),
    ],
    ids=str,
)
def test_wrong_options_of_the_demo_are_refused_in_one_line(options, reason, capsys):
    from litelvlm.cli import main

    assert main(["demo", *options]) == 2
    told = capsys.readouterr().err
    assert reason in told
    assert told.count("\n") == 1


def test_mcp_without_its_package_says_what_to_install(monkeypatch, capsys):
    import importlib.util

    from litelvlm.cli import main

    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert main(["demo", "--mcp"]) == 2
    assert "gradio[mcp]" in capsys.readouterr().err
