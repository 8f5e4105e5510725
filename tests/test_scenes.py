from __future__ import annotations

import argparse
import json
import re
from dataclasses import replace
from functools import lru_cache

import cv2
import numpy as np
import pytest

from litelvlm.cli import scenes as scenes_command
from litelvlm.errors import InputError
from litelvlm.nano import scenes
from litelvlm.nano.backgrounds import PHOTOS
from litelvlm.nano.scenes import EASY, TEST, TRAIN, VAL, DrawnScene, SceneRecipe, make_scene
from litelvlm.nano.sprites import (
    COLOURS,
    any_paint,
    kinds,
    nearest_colour,
    plural,
    repainted,
    sprite,
)
from litelvlm.nano.wording import nouns
from litelvlm.resources import asset

CLEAN = replace(TRAIN, typos=0.0)
SMALL = SceneRecipe(canvas=(168, 168), objects=(1, 3), object_px=(50, 120), typos=0.0)


@lru_cache(maxsize=4)
def some_scenes(recipe: SceneRecipe, count: int = 120) -> tuple[DrawnScene, ...]:
    return tuple(make_scene(seed, recipe) for seed in range(count))


def plain(text: str) -> str:
    """Lower case, without full stop and leading article."""
    return re.sub(r"^the ", "", text.lower().rstrip("."))


# --- A second reading of the phrases ----------------
# It knows nothing of the generator's rules: it parses the text and finds what it is true of from
# the label map, without margins. Whatever the generator calls clear must then be the one answer.

PLACE = {
    **dict.fromkeys(("left", "on left", "on the left", "to the left", "on the left side"), "left"),
    **dict.fromkeys(
        ("right", "on right", "on the right", "to the right", "on the right side"), "right"
    ),
    **dict.fromkeys(("top", "upper", "at the top", "at top"), "top"),
    **dict.fromkeys(("bottom", "lower", "at the bottom", "at bottom"), "bottom"),
    **dict.fromkeys(("middle", "center", "in the middle", "in the center", "in middle"), "middle"),
    **dict.fromkeys(("leftmost", "furthest left", "far left", "on the far left"), "left"),
    **dict.fromkeys(("rightmost", "furthest right", "far right", "on the far right"), "right"),
    **dict.fromkeys(("topmost", "highest", "uppermost"), "top"),
    **dict.fromkeys(("bottommost", "lowest"), "bottom"),
    **dict.fromkeys(
        ("big", "large", "bigger", "larger", "biggest", "largest", "that is biggest"), "big"
    ),
    **dict.fromkeys(
        ("small", "little", "tiny", "smaller", "smallest", "tiniest", "that is smallest"), "small"
    ),
}
for _side in ("left", "right"):
    for _end, _words in (("top", ("top", "upper")), ("bottom", ("bottom", "lower"))):
        PLACE |= {f"{w} {_side}": f"{_end} {_side}" for w in _words}
        PLACE |= {f"{p} {_end} {_side}": f"{_end} {_side}" for p in ("in the", "at")}
RELATION = {
    **dict.fromkeys(("left of", "to the left of", "on the left of"), "left"),
    **dict.fromkeys(("right of", "to the right of", "on the right of"), "right"),
    **dict.fromkeys(("above", "over"), "above"),
    **dict.fromkeys(("below", "under", "beneath"), "below"),
    **dict.fromkeys(("next to", "beside", "near", "by", "close to"), "closest"),
    **dict.fromkeys(("closest to", "nearest to", "nearest"), "closest"),
    "in front of": "front",
    "behind": "behind",
    "hidden by": "behind",
}
ORDER = {"first": 0, "second": 1, "third": 2, "fourth": 3, "fifth": 4}
ORDER |= {"1st": 0, "2nd": 1, "3rd": 2, "4th": 3, "5th": 4}


def longest_first(words):
    return "|".join(sorted(map(re.escape, words), key=len, reverse=True))


def noun_phrase(scene: DrawnScene, text: str) -> list[int] | None:
    """Objects that "apple", "red apple", "apple that is red" are true of; None if it is not one."""
    for colour in (None, *COLOURS):
        forms = (
            (text,)
            if colour is None
            else tuple(
                found.group(1)
                for form in (
                    rf"{colour} colored (.+)",
                    rf"{colour} (.+)",
                    rf"(.+) that is {colour}",
                )
                if (found := re.fullmatch(form, text))
            )
        )
        for noun in forms:
            if noun in nouns():
                return [
                    i
                    for i, thing in enumerate(scene.objects)
                    if thing.name in nouns()[noun] and (colour is None or thing.colour == colour)
                ]
    return None


def seen(scene: DrawnScene) -> list[tuple[float, float, int]]:
    """Middle of the box (x, y) and visible pixels of each object, from the label map."""
    facts = []
    for i in range(len(scene.objects)):
        ys, xs = np.nonzero(scene.labels == i + 1)
        facts.append(((xs.min() + xs.max()) / 2, (ys.min() + ys.max()) / 2, len(xs)))
    return facts


def touch(scene: DrawnScene, a: int, b: int) -> bool:
    one, two = scene.labels == a + 1, scene.labels == b + 1
    across = (one[:, 1:] & two[:, :-1]).any() or (two[:, 1:] & one[:, :-1]).any()
    return bool(across or (one[1:] & two[:-1]).any() or (two[1:] & one[:-1]).any())


def at_place(scene: DrawnScene, found: list[int], place: str) -> list[int]:
    facts, (height, width) = seen(scene), scene.labels.shape
    if place == "middle":

        def away(i: int) -> float:
            return max(abs(facts[i][0] / width - 0.5), abs(facts[i][1] / height - 0.5))

        return [min(found, key=away)]
    if " " in place:
        down, side = place.split()
        return [
            i
            for i in found
            if (facts[i][1] < height / 2) == (down == "top")
            and (facts[i][0] < width / 2) == (side == "left")
        ]
    column = {"left": 0, "right": 0, "top": 1, "bottom": 1, "big": 2, "small": 2}[place]
    best = max if place in ("right", "bottom", "big") else min
    return [best(found, key=lambda i: facts[i][column])]


def in_relation(scene: DrawnScene, found: list[int], relation: str, mark: int) -> list[int]:
    facts = seen(scene)
    found = [i for i in found if i != mark]

    def offset(i: int) -> tuple[float, float]:
        return facts[i][0] - facts[mark][0], facts[i][1] - facts[mark][1]

    if relation == "closest":

        def apart(i: int) -> float:
            a, b = scene.objects[i].box, scene.objects[mark].box
            dx, dy = max(a[0] - b[2], b[0] - a[2], 0), max(a[1] - b[3], b[1] - a[3], 0)
            return float(np.hypot(dx, dy))

        return [min(found, key=apart)]
    if relation in ("front", "behind"):
        return [i for i in found if touch(scene, i, mark) and (i > mark) == (relation == "front")]
    axis, sign = {"left": (0, -1), "right": (0, 1), "above": (1, -1), "below": (1, 1)}[relation]
    return [
        i
        for i in found
        if sign * offset(i)[axis] > 0 and abs(offset(i)[1 - axis]) < abs(offset(i)[axis])
    ]


def read(scene: DrawnScene, text: str) -> list[int]:
    """What a phrase is true of."""
    text = plain(text)
    direct = noun_phrase(scene, text)
    if direct is not None:
        return direct
    if match := re.fullmatch(
        rf"({'|'.join(ORDER)}) (.+) from (?:the )?(left|right|top|bottom)", text
    ):
        found = noun_phrase(scene, match.group(2))
        assert found is not None, text
        facts, side = seen(scene), match.group(3)
        column = 0 if side in ("left", "right") else 1
        ranked = sorted(found, key=lambda i: facts[i][column], reverse=side in ("right", "bottom"))
        return [ranked[ORDER[match.group(1)]]]
    for form in (
        rf"(?P<p>{longest_first(PLACE)}) (?P<x>.+)",
        rf"(?P<x>.+?) (?P<p>{longest_first(PLACE)})",
    ):
        if (match := re.fullmatch(form, text)) and (
            found := noun_phrase(scene, match["x"])
        ) is not None:
            return at_place(scene, found, PLACE[match["p"]])
    match = re.fullmatch(rf"(.+?) ({longest_first(RELATION)}) (?:the )?(.+)", text)
    assert match, f"cannot read {text!r}"
    found, marks = noun_phrase(scene, match.group(1)), noun_phrase(scene, match.group(3))
    assert found is not None, text
    assert marks is not None, text
    assert len(marks) == 1, f"{text!r} has {len(marks)} landmarks"
    return in_relation(scene, found, RELATION[match.group(2)], marks[0])


@pytest.mark.parametrize(
    "recipe",
    [CLEAN, SMALL, replace(VAL, typos=0.0), replace(TEST, typos=0.0)],
    ids=["train", "small", "val", "test"],
)
def test_a_second_reading_finds_the_same_target(recipe):
    wrong = []
    for scene in some_scenes(recipe):
        for phrase in scene.expressions:
            if phrase.kind in ("none", "several"):
                continue
            if read(scene, phrase.text) != list(phrase.targets):
                wrong.append((scene.seed, phrase.text, phrase.targets, read(scene, phrase.text)))
    assert not wrong


def test_the_second_reading_covers_every_kind():
    kinds_seen = {e.kind for scene in some_scenes(CLEAN) for e in scene.expressions}
    assert kinds_seen == {
        *("name", "colour", "size", "position", "relation", "ordinal", "superlative"),
        *("none", "several"),
    }


# --- Reproducibility ----------------


@pytest.mark.parametrize(
    "recipe", [TRAIN, SMALL, EASY, TEST], ids=["train", "small", "easy", "test"]
)
def test_the_same_seed_gives_the_same_bytes_in_any_order(recipe):
    first = [make_scene(seed, recipe) for seed in (3, 4, 5)]
    again = [make_scene(seed, recipe) for seed in (5, 4, 3)][::-1]
    for a, b in zip(first, again, strict=True):
        assert a.image.tobytes() == b.image.tobytes()
        assert a.labels.tobytes() == b.labels.tobytes()
        assert (a.objects, a.expressions, a.caption) == (b.objects, b.expressions, b.caption)


def test_scenes_neither_read_nor_move_the_global_random_state():
    np.random.seed(1)  # noqa: NPY002
    before = np.random.get_state()[1].tobytes()  # noqa: NPY002
    one = make_scene(7)
    assert np.random.get_state()[1].tobytes() == before  # noqa: NPY002
    np.random.seed(2)  # noqa: NPY002
    assert make_scene(7).image.tobytes() == one.image.tobytes()


def test_splits_differ_for_one_seed():
    pictures = {make_scene(0, replace(TRAIN, split=s)).image.tobytes() for s in scenes.SPLITS}
    assert len(pictures) == 3


# --- What is in a scene ----------------


@pytest.mark.parametrize("recipe", [CLEAN, SMALL], ids=["full", "small"])
def test_labels_boxes_and_visible_shares_agree(recipe):
    for scene in some_scenes(recipe):
        assert scene.image.dtype == np.uint8
        assert scene.image.shape == (*scene.labels.shape, 3)
        assert scene.labels.max() == len(scene.objects)
        for i, thing in enumerate(scene.objects):
            ys, xs = np.nonzero(scene.labels == i + 1)
            assert thing.box == (xs.min(), ys.min(), xs.max() + 1, ys.max() + 1)
            assert 0.45 <= thing.visible <= 1


def test_the_number_and_size_of_objects_follow_the_recipe():
    for scene in some_scenes(SMALL):
        assert scene.labels.shape == (168, 168)
        assert 1 <= len(scene.objects) <= 3
        for thing in scene.objects:
            # A turned box is at most sqrt(2) longer than its longest side.
            assert max(thing.box[2] - thing.box[0], thing.box[3] - thing.box[1]) <= 120 * 1.5


def test_random_canvases_have_a_short_side_of_336_and_several_shapes():
    shapes = {scene.labels.shape for scene in some_scenes(CLEAN)}
    assert {min(shape) for shape in shapes} == {336}
    assert len(shapes) >= 4


def test_masks_join_the_targets_and_are_empty_for_none():
    scene = next(s for s in some_scenes(CLEAN) if len(s.objects) >= 2)
    both = scene.mask((0, 1))
    assert both.dtype == bool
    assert (both == ((scene.labels == 1) | (scene.labels == 2))).all()
    assert not scene.mask(()).any()


def test_most_phrases_have_rivals_of_the_same_class_or_colour():
    needed = total = 0
    for scene in some_scenes(CLEAN):
        for phrase in scene.expressions:
            if len(scene.objects) < 3 or len(phrase.targets) != 1:
                continue
            target = scene.objects[phrase.targets[0]]
            others = [o for i, o in enumerate(scene.objects) if i != phrase.targets[0]]
            total += 1
            needed += any(
                o.name == target.name or (o.colour and o.colour == target.colour) for o in others
            )
    assert needed / total > 0.7


def test_a_class_named_by_a_phrase_without_target_is_absent():
    checked = 0
    for scene in some_scenes(replace(CLEAN, none=0.5)):
        present = {thing.name for thing in scene.objects}
        for phrase in scene.expressions:
            if phrase.kind != "none":
                continue
            assert phrase.targets == ()
            text = plain(phrase.text)
            head = re.split(rf" (?:{longest_first(RELATION)}) (?:the )?", text)[0]
            words = head.split()
            # The longest reading of the noun must be absent; "fire truck" contains "truck".
            longest = max(
                (
                    " ".join(words[i:j])
                    for i in range(len(words))
                    for j in range(i + 1, len(words) + 1)
                    if " ".join(words[i:j]) in nouns()
                ),
                key=lambda noun: (noun not in COLOURS, len(noun)),
            )
            assert not nouns()[longest] & present, text
            checked += 1
    assert checked > 50


def test_phrases_with_several_targets_name_all_that_fit():
    checked = 0
    for scene in some_scenes(replace(CLEAN, several=0.5)):
        for phrase in scene.expressions:
            if phrase.kind != "several":
                continue
            assert len(phrase.targets) >= 2
            text = re.sub(
                r"^(all the|all|both|every|two|three|four|five|six|seven) ", "", plain(phrase.text)
            )
            text = re.sub(r"^(the )?(two )?", "", text)
            for colour in (None, *COLOURS):
                for noun, fitting in nouns().items():
                    word = noun if colour is None else f"{colour} {noun}"
                    many = plural(noun) if colour is None else f"{colour} {plural(noun)}"
                    if text in (word, many):
                        expected = tuple(
                            i
                            for i, o in enumerate(scene.objects)
                            if o.name in fitting and (colour is None or o.colour == colour)
                        )
                        assert phrase.targets == expected, phrase
                        checked += 1
    assert checked > 40


@pytest.mark.parametrize(
    ("level", "allowed"),
    [
        (0, {"name"}),
        (1, {"name", "colour"}),
        (2, {"name", "colour", "position"}),
    ],
)
def test_lower_levels_use_only_their_kinds(level, allowed):
    recipe = replace(CLEAN, level=level)
    found = {e.kind for s in some_scenes(recipe, 60) for e in s.expressions}
    assert found == allowed


def test_every_word_of_clean_phrases_and_captions_is_known():
    known = scenes.known_words()
    for scene in some_scenes(CLEAN):
        for text in (*(e.text for e in scene.expressions), scene.caption):
            words = text.lower().rstrip(".").replace(",", "").split()
            assert not [w for w in words if w not in known], text


def test_phrases_vary_in_capitals_stops_and_spelling():
    texts = [e.text for s in some_scenes(replace(TRAIN, typos=0.3)) for e in s.expressions]
    known = scenes.known_words()
    assert any(t[0].isupper() for t in texts)
    assert any(t.endswith(".") for t in texts)
    assert any(w not in known for t in texts for w in t.lower().rstrip(".").split())


def test_a_caption_names_every_class():
    for scene in some_scenes(CLEAN, 60):
        for thing in scene.objects:
            assert thing.name in scene.caption or plural(thing.name) in scene.caption


# --- Held-out parts ----------------


def test_a_tenth_of_the_variants_is_held_out_and_every_class_is_still_trained():
    looks = [v for kind in kinds().values() for v in kind.variants]
    assert abs(sum(v.held_out for v in looks) / len(looks) - 0.1) < 0.005
    assert all(any(not v.held_out for v in kind.variants) for kind in kinds().values())


def test_training_never_shows_held_out_variants_and_the_benchmark_does():
    held = {v.key for kind in kinds().values() for v in kind.variants if v.held_out}
    assert not held & {o.sprite for s in some_scenes(CLEAN) for o in s.objects}
    assert held & {o.sprite for s in some_scenes(replace(TEST, typos=0.0)) for o in s.objects}


def test_a_new_paint_is_never_near_a_held_out_colour_of_the_class():
    rng = np.random.default_rng(0)
    pure = {"red": 179, "orange": 11, "yellow": 26, "green": 62, "blue": 107, "purple": 137}
    words = set()
    for kind in kinds().values():
        held = {v.colour for v in kind.variants if v.held_out}
        for _ in range(20):
            paint = any_paint(rng, kind.name)
            words.add(nearest_colour(paint))
            assert nearest_colour(paint) not in held
            near = {w for w, h in pure.items() if abs((paint[0] - h + 90) % 180 - 90) <= 15}
            assert paint[1] <= 40 or not near & held
    assert len(words) >= 10


def test_repainting_changes_the_colour_and_nothing_else():
    bicycle = kinds()["bicycle"].variants[0]
    drawing = sprite(bicycle.stem)
    green = repainted(drawing, bicycle, (60, 220, 200))
    assert np.array_equal(green[..., 3], drawing[..., 3])
    assert (green[..., :3].max(-1) <= green[..., 3]).all()
    changed = np.abs(green.astype(int) - drawing).max(-1) > 60
    assert 0.05 < changed.mean() < 0.9
    middle = np.median(green[..., :3][changed], 0)
    assert middle.argmax() == 1


def test_of_repainted_things_no_phrase_or_caption_says_a_colour():
    recipe = replace(CLEAN, repaint=1.0)
    for scene in some_scenes(recipe, 60):
        assert all(thing.colour is None for thing in scene.objects)
        spoken = [*(e.text for e in scene.expressions if e.targets), scene.caption]
        names = {word for thing in scene.objects for word in kinds()[thing.name].words}
        for text in spoken:
            found = set(re.findall(r"[a-z]+", text.lower())) & set(COLOURS)
            assert all(any(colour in name for name in names) for colour in found)
    again = make_scene(3, recipe)
    assert np.array_equal(again.image, some_scenes(recipe, 60)[3].image)
    assert not np.array_equal(again.image, make_scene(3, CLEAN).image)


def test_each_photo_belongs_to_one_split_and_exists():
    assert {split for split, _ in PHOTOS.values()} == set(scenes.SPLITS)
    assert all((asset("backgrounds") / f"{name}.jpg").is_file() for name in PHOTOS)


@pytest.mark.parametrize("split", ["val", "test"])
def test_the_benchmark_has_500_phrases_of_one_target_in_the_stated_mixture(split):
    pairs = [(len(s.objects), e) for s, e in scenes.benchmark(split)]
    assert len(pairs) == 500
    assert all(len(e.targets) == 1 for _, e in pairs)
    for kind, share in scenes.MIXTURE.items():
        assert abs(sum(e.kind == kind for _, e in pairs) / 500 - share) < 0.03
    counts = [sum(n == k for n, _ in pairs) for k in range(1, 8)]
    assert max(counts) - min(counts) <= 1


# --- Sprites and errors ----------------


def test_there_are_at_least_150_classes_and_the_assets_are_small():
    assert len(scenes.names()) >= 150
    assert list(scenes.names()) == sorted(set(scenes.names()))
    folders = (asset("sprites"), asset("backgrounds"))
    assert sum(f.stat().st_size for folder in folders for f in folder.iterdir()) < 2.5e6


def test_every_variant_can_be_drawn_with_colours_premultiplied():
    for kind in kinds().values():
        for look in kind.variants:
            pixels = sprite(look.stem, look.mask, look.letter)
            assert pixels.shape[2] == 4
            assert 40 <= max(pixels.shape[:2]) <= 160
            assert (pixels[..., :3].max(-1) <= pixels[..., 3]).all()


def test_the_notice_of_the_sprites_is_there():
    text = (asset("sprites") / "NOTICE").read_text(encoding="utf-8")
    assert "MIT License" in text
    assert "Copyright (c) Microsoft Corporation" in text


@pytest.mark.parametrize(
    "bad",
    [
        {"split": "dev"},
        {"level": 4},
        {"objects": (0, 3)},
        {"objects": (4, 3)},
        {"object_px": (80, 20)},
        {"canvas": (30, 336)},
    ],
)
def test_a_bad_recipe_is_refused_in_one_line(bad):
    with pytest.raises(InputError) as error:
        SceneRecipe(**bad)
    assert "\n" not in str(error.value)


def test_a_negative_seed_is_refused():
    with pytest.raises(InputError, match="seed"):
        make_scene(-1)


# --- Command ----------------


def command(*words: str) -> int:
    parser = argparse.ArgumentParser()
    scenes_command.add_arguments(parser)
    return scenes_command.run(parser.parse_args(words))


def test_the_command_writes_pictures_label_maps_and_records_that_read_back(tmp_path):
    out = tmp_path / "a" / "b"
    assert command(str(out), "--count", "2", "--seed", "5", "--canvas", "200", "240") == 0
    lines = [json.loads(line) for line in (out / "scenes.jsonl").read_text().splitlines()]
    assert len(lines) == 2
    for seed, line in zip((5, 6), lines, strict=True):
        scene = make_scene(seed, SceneRecipe(canvas=(200, 240)))
        image = cv2.cvtColor(cv2.imread(str(out / line["image"])), cv2.COLOR_BGR2RGB)
        labels = cv2.imread(str(out / line["labels"]), cv2.IMREAD_UNCHANGED)
        assert (image == scene.image).all()
        assert (labels == scene.labels).all()
        assert [e["text"] for e in line["expressions"]] == [e.text for e in scene.expressions]
        assert [o["name"] for o in line["objects"]] == [o.name for o in scene.objects]


@pytest.mark.parametrize(
    "words", [("--count", "0"), ("--benchmark",), ("--level", "9"), ("--seed", "-1")]
)
def test_the_command_refuses_bad_options(tmp_path, words):
    with pytest.raises(InputError):
        command(str(tmp_path / "x"), *words)


def test_the_command_says_when_the_folder_cannot_be_made(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(InputError, match="cannot write"):
        command(str(tmp_path / "file"), "--count", "1")
