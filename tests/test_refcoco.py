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

from litelvlm.data.folder import Folder
from litelvlm.data.refcoco import RefCOCO, draw_outline, load_plain_pickle, stream_list
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


def test_lists_of_a_json_document_are_streamed(tmp_path):
    document = {"a": [{"x": [1, 2.5e3, {"y": "z]},é"}]}, 7, {}], "b": {"k": 1}, "c": [{"a": True}]}
    path = tmp_path / "x.json"
    path.write_text(json.dumps(document, ensure_ascii=False), encoding="utf-8-sig")
    assert list(stream_list(path, "a")) == [document["a"][0], {}]
    assert list(stream_list(path, "c")) == [{"a": True}]
    assert list(stream_list(path, "b")) == []


@pytest.mark.parametrize("text", ["", '{"a": [1, 2', '{"a" 1}', '{"a": [1 2]}', '{"a": tru}'])
def test_broken_json_is_one_clear_error(tmp_path, text):
    path = tmp_path / "x.json"
    path.write_text(text)
    with pytest.raises(InputError, match="cannot be read as JSON"):
        list(stream_list(path, "a"))


def test_outlines_agree_whatever_their_form():
    polygon = draw_outline(SQUARE, HW)
    packed = coco.encode(np.asfortranarray(polygon.astype(np.uint8)))
    flat = polygon.ravel(order="F").astype(int)
    edges = np.flatnonzero(np.diff(np.concatenate([[0], flat])))
    runs = np.diff(np.concatenate([[0], edges, [flat.size]])).tolist()
    assert np.array_equal(polygon, draw_outline(packed, HW))
    assert np.array_equal(polygon, draw_outline({"size": list(HW), "counts": runs}, HW))


def test_points_and_a_single_polygon_are_read():
    points = [[2, 3], [8, 3], [8, 9], [2, 9]]
    for shape in (points, [points], SQUARE[0], [tuple(SQUARE[0])]):
        assert np.array_equal(draw_outline(shape, HW), draw_outline(SQUARE, HW))


PIXELS = HW[0] * HW[1]
BROKEN = {
    "nan": ([[float("nan"), 3, 8, 3, 8, 9]], "x nan"),
    "infinite": ([[2, float("inf"), 8, 3, 8, 9]], "y inf"),
    "huge": ([[2, 3, 2e8, 3, 8, 9]], "x 200000000"),
    "very huge": ([[2, 3, 10**400, 3, 8, 9]], "x 1000"),
    "another size": ([[4, 6, 26, 6, 26, 8]], "goes from 0 to 16"),
    "null": ([[None, 3, 8, 3, 8, 9]], "must be numbers"),
    "null part": ([None, SQUARE[0]], "must be numbers"),
    "text": ([["2", "3", "8", "3", "8", "9"]], "must be numbers"),
    "box": ([[1.0, 1.0, 5.0, 5.0]], "got 4 numbers"),
    "odd": ([[2, 3, 8, 3, 8, 9, 2]], "got 7 numbers"),
    "two points": ([[2, 3], [8, 9]], "got 4 numbers"),
    "triples": ([[2, 3, 1], [8, 9, 1], [8, 3, 1]], "got 3 numbers"),
    "triples in a list": ([[[2, 3, 1], [8, 9, 1], [8, 3, 1]]], "pairs"),
    "empty": ([], "no polygon"),
    "nothing": (None, "no polygon"),
    "line": ([[2, 3, 2, 3, 2, 3]], "encloses no pixel"),
    "short runs": ({"size": list(HW), "counts": [10, 5]}, f"sum to 15, .* {PIXELS}"),
    "long runs": ({"size": list(HW), "counts": [10, 2**40]}, "sum to"),
    "negative runs": ({"size": list(HW), "counts": [-1, PIXELS + 1]}, "whole numbers"),
    "fractions": ({"size": list(HW), "counts": [0.5, PIXELS - 0.5]}, "whole numbers"),
    "no counts": ({"size": list(HW)}, "whole numbers"),
    "wrong size": ({"size": [3, 3], "counts": [9]}, "run-length"),
    "no size": ({"counts": [PIXELS]}, "run-length"),
    "packed, cut off": ({"size": list(HW), "counts": "PP"}, "cut off"),
    "packed, short": ({"size": list(HW), "counts": "3"}, "sum to 3"),
    "packed, foreign": ({"size": list(HW), "counts": "é"}, "character"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_outline_is_refused_before_native_code_sees_it(tmp_path, name):
    shape, message = BROKEN[name]
    with pytest.raises(InputError, match=message):
        draw_outline(shape, HW)
    if name not in ("nothing", "empty"):
        pictured(tmp_path)
        rows = [line(mask=shape), line(mask=None, text="the dog")]
        source = written(tmp_path, *map(json.dumps, rows))
        assert [sample.text for sample in source.samples()] == ["the dog"]
        (told,) = source.refused
        assert "line 1: " in told


def test_packed_runs_agree_with_pycocotools():
    draw = np.random.default_rng(0)
    for share in (0.0, 0.01, 0.5, 1.0):
        mask = draw.random((90, 70)) < share
        packed = coco.encode(np.asfortranarray(mask.astype(np.uint8)))
        assert np.array_equal(draw_outline(packed, mask.shape), mask)


# --- one bad expression loses only itself


def kept_and_refused(root: Path) -> tuple[list[str], tuple[str, ...]]:
    source = RefCOCO(root, "refcoco", "val")
    return [sample.text for sample in source.samples()], source.refused


@pytest.mark.parametrize("text", ["", "  ", "x" * 2000, "\u200b", 7])
def test_an_unusable_expression_loses_only_itself(root, text):
    references = [reference(1, 7, 100, "val", "left square", "the square")]
    references[0]["sentences"][0].update(sent=text, raw=text)
    (root / "refcoco/refs(unc).p").write_bytes(pickle.dumps(references))
    kept, refused = kept_and_refused(root)
    assert kept == ["the square"]
    assert len(refused) == 1
    assert refused[0].startswith("expression 1-0: ")


@pytest.mark.parametrize(
    "change", [{"ann_id": 999}, {"ann_id": "x"}, {"image_id": None}, {"sentences": [{}]}]
)
def test_an_unusable_reference_loses_only_itself(root, change):
    references = [
        {**reference(1, 7, 100, "val", "ghost"), **change},
        reference(2, 7, 100, "val", "the square", first=5),
    ]
    (root / "refcoco/refs(unc).p").write_bytes(pickle.dumps(references))
    kept, refused = kept_and_refused(root)
    assert kept == ["the square"]
    assert len(refused) == 1


def test_a_broken_annotation_loses_only_its_expressions(root):
    path = root / "refcoco/instances.json"
    document = json.loads(path.read_text())
    document["annotations"][0]["segmentation"] = [[2, 3, 1e9, 3, 8, 9]]
    del document["annotations"][1]["segmentation"]
    path.write_text(json.dumps(document))
    kept, refused = kept_and_refused(root)
    assert kept == ["the corner"]
    assert len(refused) == 3


def test_pictures_of_another_size_than_instances_json_says_are_refused(root):
    path = root / "images/train2014/COCO_train2014_000000000007.jpg"
    Image.new("RGB", (HW[1] // 2, HW[0] // 2)).save(path)
    kept, refused = kept_and_refused(root)
    assert kept == ["the strip"]
    assert all("is 8 x 6, instances.json says 16 x 12" in told for told in refused)


@pytest.mark.parametrize("turn", range(1, 9))
def test_outlines_turn_with_their_picture(root, turn):
    """The mask lies on the same pixels as in the stored picture, however EXIF turns it."""
    path = root / "images/train2014/COCO_train2014_000000000007.jpg"
    pixels = np.zeros((*HW, 3), np.uint8)
    pixels[draw_outline([[0, 0, 4, 0, 4, 4]], HW)] = 255
    exif = Image.Exif()
    exif[0x0112] = turn
    Image.fromarray(pixels).save(path, quality=100, exif=exif)
    corner = next(s for s in RefCOCO(root, "refcoco", "val").samples() if s.text == "the corner")
    image = corner.read_image()
    assert image.shape[:2] == (HW if turn < 5 else HW[::-1])
    assert np.array_equal(corner.read_mask(image.shape[:2]), image[..., 0] > 127)


def test_nothing_to_evaluate_is_one_sentence(root):
    for path in (root / "images/train2014").iterdir():
        path.unlink()
    with pytest.raises(InputError, match="no expressions to evaluate: 2 pictures missing, looked"):
        list(RefCOCO(root, "refcoco", "val").samples())


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


def line(**changes) -> dict:
    return {"image": "a.png", "text": "the square", "mask": SQUARE, **changes}


def pictured(folder: Path, **options) -> None:
    Image.fromarray(np.zeros((*HW, 3), np.uint8)).save(folder / "a.png", **options)


def written(folder: Path, *lines: str, encoding: str = "utf-8") -> Folder:
    (folder / "samples.jsonl").write_bytes("\n".join(lines).encode(encoding))
    return Folder(folder)


def test_a_byte_order_mark_and_backslashes_are_read(tmp_path):
    (tmp_path / "in").mkdir()
    pictured(tmp_path / "in")
    rows = [line(image="in\\a.png"), line(image="in/a.png", text="das \u2028 caf\u00e9")]
    lines = [json.dumps(row, ensure_ascii=False) for row in rows]
    first, second = written(tmp_path, *lines, encoding="utf-8-sig").samples()
    assert first.picture == second.picture
    assert first.read_mask(HW).sum() == 36


@pytest.mark.parametrize("encoding", ["latin-1", "utf-16"])
def test_another_encoding_is_one_clear_line(tmp_path, encoding):
    pictured(tmp_path)
    text = json.dumps(line(text="caf\u00e9"), ensure_ascii=False)
    with pytest.raises(InputError, match=r"line 1: not UTF-8"):
        list(written(tmp_path, text, encoding=encoding).samples())


def test_an_unknown_split_tells_those_there_are(folder):
    rows = [json.dumps(line(split=name)) for name in ("train", "validation")]
    with pytest.raises(InputError, match="there are train, validation"):
        list(Folder(written(folder, *rows).path, "val").samples())


def test_pictures_that_are_all_missing_are_one_sentence(tmp_path):
    with pytest.raises(InputError, match="no expressions to evaluate: 1 pictures missing, looked"):
        list(written(tmp_path, json.dumps(line())).samples())


def test_an_id_that_stands_twice_is_refused(tmp_path):
    pictured(tmp_path)
    source = written(tmp_path, *[json.dumps(line(id="x"))] * 2)
    assert len(list(source.samples())) == 1
    assert "stands in line 1" in source.refused[0]


def test_an_outline_on_a_picture_that_exif_turns_is_refused(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 3
    pictured(tmp_path, exif=exif)
    with pytest.raises(InputError, match="turned by its EXIF"):
        list(written(tmp_path, json.dumps(line())).samples())


def masks() -> dict[str, Image.Image]:
    """The square in every way that a mask file is stored."""
    square = np.zeros(HW, np.uint8)
    square[3:9, 2:8] = 1
    white = Image.fromarray(square * 255)
    inverted = Image.fromarray(1 - square).convert("P")
    inverted.putpalette([255, 255, 255, 0, 0, 0])
    labels = Image.fromarray(square).convert("P")
    labels.putpalette([0, 0, 0, 128, 0, 0])
    black, all_white = Image.new("RGB", white.size), Image.new("RGB", white.size, "white")
    clear, bright = black.copy(), all_white.copy()
    clear.putalpha(white)
    bright.putalpha(white)
    backed = Image.merge("RGB", [white] * 3)
    backed.putalpha(255)
    found = {"grey": white, "labels": Image.fromarray(square), "palette": labels}
    found |= {"white first": inverted, "black in alpha": clear, "white in alpha": bright}
    return found | {"opaque": backed, "16 bit": Image.fromarray(square.astype(np.uint16))}


@pytest.mark.parametrize("name", list(masks()))
def test_a_mask_file_is_read_by_what_it_shows(tmp_path, name):
    pictured(tmp_path)
    masks()[name].save(tmp_path / "mask.png")
    (sample,) = written(tmp_path, json.dumps(line(mask="mask.png"))).samples()
    assert np.array_equal(sample.read_mask(HW), draw_outline(SQUARE, HW))


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
    source = Folder(folder)
    assert [sample.text for sample in source.samples()] == ["the dog", "outlined"]
    assert "line 1: square.png: mask is 5 x 5" in source.refused[0]


def test_samples_of_a_picture_stay_together():
    blank = np.zeros((2, 2, 3), np.uint8)
    given = [Sample(str(n), p, "x", blank, blank[..., 0] > 0) for n, p in enumerate("abab")]
    groups = list(by_picture(SampleList("list", given).samples()))
    assert [[sample.id for sample in group] for group in groups] == [["0", "2"], ["1", "3"]]
