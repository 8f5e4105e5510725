"""Training on a folder of photographs: composites, phrases, and the whole way to a model folder."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from PIL import Image

import litelvlm
from litelvlm.cli import main
from litelvlm.evaluation.photos import photo_figures, photo_table
from litelvlm.nano.photos.cache import Data
from litelvlm.nano.photos.data import Photo, Thing, decode_mask, encode_mask, mirrored, phrases
from litelvlm.nano.photos.mix import composites
from litelvlm.nano.photos.names import bank, nouns_of, overlaps
from litelvlm.nano.photos.tower import TowerBatches


def _line(folder, number, things, source="coco_union"):
    """A photo of rectangles on grey, and its line of train.jsonl."""
    rng = np.random.default_rng(number)
    picture = np.full((96, 128, 3), 110, np.uint8)
    masks = []
    for name, (x0, y0, x1, y1) in things:
        mask = np.zeros((96, 128), bool)
        mask[y0:y1, x0:x1] = True
        picture[mask] = rng.integers(0, 255, 3)
        record = {"class": name, "instance": True, "area": float(mask.mean())}
        masks.append(record | {"mask": encode_mask(mask)})
    Image.fromarray(picture).save(folder / f"{number}.png")
    return {"image": f"{number}.png", "set": source, "size": [128, 96], "masks": masks}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder of photographs in the layout that training and the card read."""
    path = tmp_path_factory.mktemp("photos")
    rows = [
        _line(path, 0, [("dog", (8, 8, 50, 60)), ("person", (70, 20, 120, 90))]),
        _line(path, 1, [("cat", (20, 30, 90, 80))], "voc_aug"),
        _line(path, 2, [("person", (5, 5, 40, 90)), ("person", (60, 5, 110, 90))]),
    ]
    items = [
        {"image": r["image"], "phrase": f"the {m['class']}", "kind": "unique"}
        | {"class": m["class"], "size": r["size"], "mask": m["mask"]}
        for r in rows[:2]
        for m in r["masks"]
    ]
    captions = [{"image": "2.png", "captions": ["Two people on grey", "a man and other people"]}]
    files = {
        "train": rows,
        "val": items,
        "captions": captions,
        "names": [{"image": "1.png", "name": "tabby cat"}],
    }
    for name, lines in files.items():
        text = "".join(json.dumps(line) + "\n" for line in lines)
        (path / f"{name}.jsonl").write_text(text)
    return path


def test_a_trained_folder_opens_and_answers(folder, tmp_path):
    torch.set_num_threads(1)
    run = ["train", "--photos", str(folder), "--scale", "tiny", "--out", str(tmp_path / "run")]
    assert main([*run, "--export", str(tmp_path / "model"), "--probes", "1"]) == 0
    for stage in ("clip", "masks", "language"):
        log = (tmp_path / "run" / f"{stage}.jsonl").read_text().splitlines()
        assert json.loads(log[-1])["step"] == 2
    pipe = litelvlm.load(tmp_path / "model")
    found = pipe.ground(pipe.encode(str(folder / "0.png")), "the dog", 64)[0]
    assert found.mask.shape == (96, 128)
    assert len(found.token_map.indices) == 64
    before = litelvlm.load("photo")
    changed = [
        not torch.equal(a, b)
        for a, b in zip(
            pipe.family.model.state_dict().values(),
            before.family.model.state_dict().values(),
            strict=True,
        )
    ]
    assert any(changed)


def test_a_folder_without_photographs_is_refused_by_name(tmp_path, capsys):
    run = ["train", "--photos", str(tmp_path), "--scale", "tiny", "--out", str(tmp_path / "run")]
    assert main(run) == 2
    assert "train.jsonl" in capsys.readouterr().err


def test_the_card_measures_a_folder(folder):
    pipe = litelvlm.load("photo")
    figures = photo_figures(pipe, folder)
    assert figures["items"] == 3
    assert figures["class"].keys() == {"cat", "dog", "person"}
    assert sum(count for _, count in figures["kind"].values()) == 3
    assert 0.0 <= figures["same_64"] <= 1.0
    assert sum(absent for _, _, absent in figures["called"].values()) <= 1.0
    table = "\n".join(photo_table(figures))
    assert "| items | 3 |" in table
    assert "gIoU by class" in table


def test_composites_are_the_same_for_a_seed_and_their_masks_do_not_overlap(folder):
    rows = [json.loads(line) for line in (folder / "train.jsonl").read_text().splitlines()]
    first, again = (list(composites(folder, rows, 6)) for _ in range(2))
    for a, b in zip(first, again, strict=True):
        assert np.array_equal(a.picture, b.picture)
        assert sum(mask.astype(int) for _, _, mask in a.things).max() == 1
        assert all(mask.shape == a.picture.shape[:2] for _, _, mask in a.things)
        record = encode_mask(a.things[0][2])
        assert np.array_equal(decode_mask(record), a.things[0][2])


def test_a_person_of_two_is_called_by_another_name_only_where_that_tells_them_apart():
    left = Thing("person", True, (0.0, 0.1, 0.3, 0.9), 0.2, 0)
    right = Thing("person", True, (0.6, 0.1, 0.9, 0.9), 0.2, 1)
    photo = Photo("x", "coco_union", (left, right))
    rng = np.random.default_rng(0)

    def names(called):
        said = [s for _ in range(30) for s in phrases(photo, rng, called) if s.kind == "name"]
        return {(s.text.split()[-1], s.targets) for s in said}

    assert names({0: "woman", 1: "man"}) == {("woman", (0,)), ("man", (1,))}
    assert names({0: "man", 1: "man"}) == set()


def test_left_is_right_in_a_mirror():
    assert mirrored("the dog left of the rightmost cat") == "the dog right of the leftmost cat"


def test_nouns_are_what_captions_agree_on():
    words = bank(["dog", "person", "sports ball"])
    told = nouns_of(["A dog chases a sports ball", "dogs and a ball", "some field"], words)
    assert told == {"dog"} | ({words["ball"]} if told != {"dog"} else set())
    assert "person" in overlaps(["person", "dog"], [])["man"]
    assert "dog" not in overlaps(["person", "dog"], [])["person"]


def test_a_pasted_thing_brings_its_features_and_hides_what_lies_under_it():
    masks = np.zeros((2, 192, 192), np.uint8)
    masks[0], masks[1, 16:80, 40:104] = 255, 255
    ground = Photo("a", "voc_aug", (Thing("sky", True, (0.0, 0.0, 1.0, 1.0), 1.0, 0),))
    box = (40 / 192, 16 / 192, 104 / 192, 80 / 192)
    donor = Photo("b", "voc_aug", (Thing("dog", True, box, 1 / 9, 1),))

    def features(images, strides):
        return [torch.full((1, 2, 768 // s, 768 // s), float(images == ["b"])) for s in strides]

    data = Data([donor], masks, features, {}, {}, {}, ["dog", "sky"], [])
    for seed in range(5):
        maps = features(["a"], (16, 32))
        batches, rng = TowerBatches(data, 8), np.random.default_rng(seed)
        photo, cover = batches.paste(ground, torch.ones(1, 576), [m[0] for m in maps], rng)
        assert [thing.name for thing in photo.things] == ["sky", "dog"]
        pasted = cover[1].view(24, 24) == 1
        assert pasted.sum() == 64
        assert torch.equal(maps[1][0, 0] == 1, pasted)
        assert torch.equal(
            maps[0][0, 1] == 1, pasted.repeat_interleave(2, 0).repeat_interleave(2, 1)
        )
        assert torch.equal(cover[0].view(24, 24), 1 - cover[1].view(24, 24))
        rows, columns = pasted.nonzero(as_tuple=True)
        edges = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
        assert photo.things[1].box == pytest.approx([float(e) / 24 for e in edges])
