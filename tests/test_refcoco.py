"""Readers of RefCOCO's files and of a folder of one's own, on fixtures of the true layout."""

from __future__ import annotations

import io
import json
import pickle
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco

from litelvlm.data import refcoco
from litelvlm.data.folder import Folder
from litelvlm.data.refcoco import RefCOCO, draw_outline, load_plain_pickle, stream_json_lists
from litelvlm.data.samples import Sample, SampleList, by_picture
from litelvlm.errors import InputError

SQUARE = [[2.0, 3.0, 8.0, 3.0, 8.0, 9.0, 2.0, 9.0]]  # x 2..8, y 3..9
HW = (12, 16)


def sentence(number: int, text: str) -> dict:
    return {"tokens": text.split(), "raw": text.title(), "sent_id": number, "sent": text}


def reference(number: int, image: int, annotation, split: str, *texts: str, first: int = 0) -> dict:
    sentences = [sentence(first + place, text) for place, text in enumerate(texts)]
    return {
        "ref_id": number,
        "ann_id": annotation,
        "image_id": image,
        "category_id": 1,
        "split": split,
        "file_name": f"COCO_train2014_{image:012d}_{annotation}.jpg",
        "sent_ids": [each["sent_id"] for each in sentences],
        "sentences": sentences,
    }


def write_instances(folder: Path, pictures=(7, 8)) -> None:
    run_lengths = coco.frPyObjects(
        {"counts": [0, HW[0], HW[0] * (HW[1] - 1)], "size": list(HW)}, *HW
    )
    document = {
        "info": {"year": 2014},
        "images": [
            {
                "id": picture,
                "file_name": f"COCO_train2014_{picture:012d}.jpg",
                "height": HW[0],
                "width": HW[1],
            }
            for picture in pictures
        ],
        "licenses": [],
        "annotations": [
            {"id": 100, "image_id": 7, "category_id": 1, "segmentation": SQUARE},
            {
                "id": 101,
                "image_id": 8,
                "category_id": 1,
                "segmentation": {**run_lengths, "counts": run_lengths["counts"].decode()},
            },
            {"id": 102, "image_id": 7, "category_id": 1, "segmentation": [[0, 0, 4, 0, 4, 4]]},
        ],
        "categories": [{"id": 1, "name": "thing"}],
    }
    (folder / "instances.json").write_text(json.dumps(document))


def write_pictures(root: Path, *pictures: int) -> None:
    folder = root / "images" / "train2014"
    folder.mkdir(parents=True, exist_ok=True)
    for picture in pictures:
        grey = np.full((*HW, 3), picture, np.uint8)
        Image.fromarray(grey).save(folder / f"COCO_train2014_{picture:012d}.jpg")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    folder = tmp_path / "refcoco"
    folder.mkdir()
    references = [
        reference(1, 7, 100, "val", "left square", "the square"),
        reference(2, 8, 101, "val", "the strip", first=2),
        reference(3, 7, 102, "testA", "the corner", first=3),
        reference(4, 7, 102, "val", "the corner", first=4),
    ]
    (folder / "refs(unc).p").write_bytes(pickle.dumps(references, protocol=2))
    write_instances(folder)
    write_pictures(tmp_path, 7, 8)
    return tmp_path


def test_expressions_come_with_their_picture_and_mask(root):
    samples = list(RefCOCO(root, "refcoco", "val").samples())
    assert [sample.text for sample in samples] == [
        "left square",
        "the square",
        "the corner",
        "the strip",
    ]
    assert [sample.id for sample in samples] == ["1-0", "1-1", "4-4", "2-2"]
    assert samples[0].read_image().shape == (*HW, 3)
    mask = samples[0].read_mask(HW)
    assert mask[3:9, 2:8].all()
    assert mask.sum() == 36
    strip = samples[3].read_mask(HW)
    assert strip[:, 0].all()
    assert strip.sum() == HW[0]


def test_only_the_split_asked_for_is_read(root):
    assert [s.text for s in RefCOCO(root, "refcoco", "testA").samples()] == ["the corner"]
    assert RefCOCO(root, "refcoco", "testA").name == "refcoco/unc/testA"


def test_the_data_sets_own_folder_will_do_as_root(root):
    assert len(list(RefCOCO(root / "refcoco", "refcoco", "val").samples())) == 4


def test_shares_are_disjoint_by_picture_and_complete(root):
    source = RefCOCO(root, "refcoco", "val")
    shares = [list(source.samples((index, 2))) for index in range(2)]
    assert {s.picture for s in shares[0]} == {"7"}
    assert {s.picture for s in shares[1]} == {"8"}
    assert sorted(s.id for s in shares[0] + shares[1]) == sorted(s.id for s in source.samples())


def test_missing_pictures_are_named_and_left_out(root):
    (root / "images/train2014/COCO_train2014_000000000007.jpg").unlink()
    source = RefCOCO(root, "refcoco", "val")
    assert [sample.text for sample in source.samples()] == ["the strip"]
    assert source.missing == ("COCO_train2014_000000000007.jpg",)


def test_an_annotation_that_is_not_there_is_an_error(root):
    references = [reference(1, 7, 999, "val", "ghost")]
    (root / "refcoco/refs(unc).p").write_bytes(pickle.dumps(references))
    with pytest.raises(InputError, match="annotation 999"):
        list(RefCOCO(root, "refcoco", "val").samples())


def test_grefcoco_knows_no_target_and_several_targets(tmp_path):
    folder = tmp_path / "grefcoco"
    folder.mkdir()
    references = [
        {**reference(1, 7, [-1], "val", "the zebra"), "no_target": True},
        {**reference(2, 7, [100, 102], "val", "both of them", first=1), "no_target": False},
        {**reference(3, 7, [100], "val", "the square", first=2), "no_target": False},
    ]
    (folder / "grefs(unc).json").write_text(json.dumps(references))
    write_instances(folder)
    write_pictures(tmp_path, 7)
    none, several, one = RefCOCO(tmp_path, "grefcoco", "val").samples()
    assert (none.kind, several.kind, one.kind) == ("none", "several", "one")
    assert not none.read_mask(HW).any()
    corner = draw_outline([[0, 0, 4, 0, 4, 4]], HW)
    assert np.array_equal(several.read_mask(HW), one.read_mask(HW) | corner)


@pytest.mark.parametrize(
    ("data", "file"),
    [
        ("refcoco+", "refs(unc).p"),
        ("refcocog", "refs(umd).p"),
        ("refcocog/google", "refs(google).p"),
        ("refcoco/google", "refs(google).p"),
    ],
)
def test_every_family_is_found_under_its_own_file_name(tmp_path, data, file):
    folder = tmp_path / data.partition("/")[0]
    folder.mkdir()
    (folder / file).write_bytes(pickle.dumps([reference(1, 7, 100, "val", "the square")]))
    write_instances(folder)
    write_pictures(tmp_path, 7)
    assert len(list(RefCOCO(tmp_path, data, "val").samples())) == 1


def test_unknown_names_and_missing_files_are_refused_with_what_exists(root):
    with pytest.raises(InputError, match=r"unknown data set 'refcoco\*'"):
        RefCOCO(root, "refcoco*", "val")
    with pytest.raises(InputError, match="known: train, val, testA, testB"):
        RefCOCO(root, "refcoco", "test")
    with pytest.raises(InputError, match="neither"):
        RefCOCO(root, "refcoco+", "val")


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_a_hostile_pickle_is_refused_and_runs_nothing(root, protocol):
    marker = root / "pwned"

    class Bomb:
        def __reduce__(self):
            return (Path.touch, (marker,))

    hostile = pickle.dumps([reference(1, 7, 100, "val", "x"), {"x": Bomb()}], protocol=protocol)
    with pytest.raises(pickle.UnpicklingError, match="plain data"):
        load_plain_pickle(io.BytesIO(hostile))
    (root / "refcoco/refs(unc).p").write_bytes(hostile)
    with pytest.raises(InputError, match="cannot be read"):
        list(RefCOCO(root, "refcoco", "val").samples())
    assert not marker.exists()


@pytest.mark.parametrize(
    "hostile",
    [
        b"cos\nsystem\n(S'true'\ntR.",  # GLOBAL + REDUCE
        b"c__builtin__\neval\n(S'1'\ntR.",
        b"(S'true'\nios\nsystem\n.",  # INST
        b"(cos\nsystem\nS'true'\no.",  # OBJ
        b"\x80\x02\x8c\x02os\x8c\x06system\x93\x8c\x04true\x85R.",  # STACK_GLOBAL
        b"P1\n.",  # persistent id
        b"\x80\x02\x82\x01.",  # extension code
    ],
)
def test_every_opcode_that_looks_something_up_is_refused(hostile):
    with pytest.raises((pickle.UnpicklingError, ValueError)):
        load_plain_pickle(io.BytesIO(hostile))


def test_a_pickle_of_python_2_with_non_ascii_text_is_read():
    python2 = b"(lp0\n(dp1\nS'raw'\np2\nS'caf\\xc3\\xa9'\np3\nsa."
    assert load_plain_pickle(io.BytesIO(python2)) == [{"raw": "café"}]


@pytest.mark.parametrize("damage", [b"", b"garbage", pickle.dumps([1, 2]), pickle.dumps({"a": 1})])
def test_a_damaged_reference_file_is_one_clear_error(root, damage):
    (root / "refcoco/refs(unc).p").write_bytes(damage)
    with pytest.raises(InputError, match="refs"):
        list(RefCOCO(root, "refcoco", "val").samples())


@pytest.mark.parametrize("chunk", [1, 2, 7, 64, 1 << 20])
def test_streaming_equals_json_whatever_the_chunk(tmp_path, monkeypatch, chunk):
    document = {
        "a": [1, 2.5e3, -17, {"x": [1, {"y": "z]},"}]}, 'é\n"', True, None, []],
        "b": {"k": 1},
        "c": [],
        "d": 12345,
    }
    path = tmp_path / "x.json"
    path.write_text(json.dumps(document, indent=1), encoding="utf-8")
    monkeypatch.setattr(refcoco, "_CHUNK", chunk)
    expected = [("a", item) for item in document["a"]] + [("b", {"k": 1}), ("d", 12345)]
    assert list(stream_json_lists(path)) == expected


@pytest.mark.parametrize(
    "text", ["", "[1]", '{"a": [1, 2', '{"a" 1}', '{"a": [1 2]}', '{"a": tru}']
)
def test_broken_json_is_one_clear_error(tmp_path, text):
    path = tmp_path / "x.json"
    path.write_text(text)
    with pytest.raises(InputError, match="cannot be read as JSON"):
        list(stream_json_lists(path))


def test_outlines_agree_whatever_their_form():
    polygon = draw_outline(SQUARE, HW)
    packed = coco.encode(np.asfortranarray(polygon.astype(np.uint8)))
    flat = polygon.ravel(order="F").astype(int)
    edges = np.flatnonzero(np.diff(np.concatenate([[0], flat])))
    runs = np.diff(np.concatenate([[0], edges, [flat.size]])).tolist()
    assert np.array_equal(polygon, draw_outline(packed, HW))
    assert np.array_equal(polygon, draw_outline({"size": list(HW), "counts": runs}, HW))


def test_outlines_that_enclose_nothing_are_empty_and_wrong_sizes_are_refused():
    assert not draw_outline([], HW).any()
    assert not draw_outline([[1.0, 1.0, 5.0, 5.0]], HW).any()
    with pytest.raises(InputError, match="run-length"):
        draw_outline({"size": [3, 3], "counts": [9]}, HW)


# --- a folder of one's own


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    Image.fromarray(np.zeros((*HW, 3), np.uint8)).save(tmp_path / "a.png")
    mask = np.zeros(HW, np.uint8)
    mask[3:9, 2:8] = 255
    Image.fromarray(mask).save(tmp_path / "square.png")
    other = np.zeros((*HW, 3), np.uint8)
    other[0, 0, 1] = 1
    Image.fromarray(other).save(tmp_path / "dot.png")
    rows = [
        {"image": "a.png", "text": "the square", "mask": "square.png", "id": "s"},
        {"image": "a.png", "text": "both", "mask": ["square.png", "dot.png"], "split": "test"},
        {"image": "a.png", "text": "the dog", "mask": None, "kind": "none", "split": "val"},
        {"image": "a.png", "text": "outlined", "mask": SQUARE},
        {"image": "gone.png", "text": "anything", "mask": None},
    ]
    (tmp_path / "samples.jsonl").write_text("\n".join(json.dumps(row) for row in rows) + "\n\n")
    return tmp_path


def test_a_folder_gives_every_form_of_mask(folder):
    source = Folder(folder)
    square, both, nothing, outlined = source.samples()
    assert square.id == "s"
    assert square.read_mask(HW).sum() == 36
    assert both.read_mask(HW).sum() == 37
    assert both.read_mask(HW)[0, 0]
    assert not nothing.read_mask(HW).any()
    assert np.array_equal(outlined.read_mask(HW), square.read_mask(HW))
    assert source.missing == ("gone.png",)


def test_a_split_takes_its_own_lines_and_those_without_one(folder):
    texts = [sample.text for sample in Folder(folder / "samples.jsonl", "test").samples()]
    assert texts == ["the square", "both", "outlined"]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "line 1"),
        ("[1]", "one JSON object"),
        ('{"text": "x", "mask": null}', "'image'"),
        ('{"image": "a.png", "text": " ", "mask": null}', "'text'"),
        ('{"image": "a.png", "text": "x"}', "'mask' is missing"),
        ('{"image": "a.png", "text": "x", "mask": 5}', "'mask' must be"),
        ('{"image": "../a.png", "text": "x", "mask": null}', "leads out"),
        ('{"image": "/etc/passwd", "text": "x", "mask": null}', "leads out"),
        ('{"image": "a.png", "text": "x", "mask": "../m.png"}', "leads out"),
    ],
)
def test_a_wrong_line_is_named(folder, line, message):
    (folder / "samples.jsonl").write_text(line)
    with pytest.raises(InputError, match=message):
        list(Folder(folder).samples())


def test_a_mask_of_another_size_is_refused(folder):
    Image.fromarray(np.zeros((5, 5), np.uint8)).save(folder / "square.png")
    with pytest.raises(InputError, match="mask is 5 x 5"):
        next(Folder(folder).samples()).read_mask(HW)


def test_samples_of_a_picture_stay_together():
    blank = np.zeros((2, 2, 3), np.uint8)
    given = [Sample(str(n), p, "x", blank, blank[..., 0] > 0) for n, p in enumerate("abab")]
    groups = list(by_picture(SampleList("list", given).samples()))
    assert [[sample.id for sample in group] for group in groups] == [["0", "2"], ["1", "3"]]
