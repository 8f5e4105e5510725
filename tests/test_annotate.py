"""`litelvlm annotate`: every picture answered once, whatever is in it and whenever it is killed."""

from __future__ import annotations

import contextlib
import io
import json
import multiprocessing
import os
import random
import re
import signal
import struct
import time
import zlib

import numpy as np
import pytest
from PIL import Image

from litelvlm.annotate.journal import Journal
from litelvlm.annotate.rows import Task, annotate
from litelvlm.annotate.runner import kind_of
from litelvlm.cli import main
from litelvlm.errors import InputError

COUNT = 20
KILLS = int(os.environ.get("LITELVLM_KILLS", "4"))  # 20 before a release
MODEL = ["--model", "tiny-random", "--device", "cpu", "--threads", "1", "--budget", "5"]
SETTINGS = {"model": "tiny"}


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    """Rendered scenes with their own phrases; damaged, huge and missing files, a bad line."""
    from litelvlm.nano.scenes import make_scene

    folder = tmp_path_factory.mktemp("pictures")
    lines = []
    for number in range(COUNT):
        scene = make_scene(3_000_000 + number)
        Image.fromarray(scene.image).resize((60, 50)).save(folder / f"{number:02d}.png")
        phrases = [each.text for each in scene.expressions[:2]] or ["a thing"]
        lines.append(json.dumps({"picture": f"{number:02d}.png", "phrases": phrases}))
    (folder / "text.jpg").write_text("<html>")
    (folder / "empty.jpg").write_bytes(b"")
    Image.new("1", (10_100, 10_000)).save(folder / "large.png")
    (folder / "bomb.png").write_bytes(bomb())
    for name in ("text.jpg", "empty.jpg", "large.png", "bomb.png", "missing.jpg"):
        lines.append(json.dumps({"picture": name, "phrase": "a thing"}))
    lines += ["{not json", json.dumps({"picture": "00.png", "phrases": ["a cup", "", "..."]})]
    path = folder / "table.jsonl"
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def done(table, tmp_path_factory):
    """The folder of a run that nobody disturbed."""
    out = tmp_path_factory.mktemp("out")
    said = io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
        assert main(["annotate", str(table), "--out", str(out), *MODEL]) == 0
    (out / "said.txt").write_text(said.getvalue())
    return out


def bomb():
    """A PNG of a few kilobytes that says it is 60,000 pixels wide and high."""

    def chunk(kind, content):
        check = struct.pack(">I", zlib.crc32(kind + content))
        return struct.pack(">I", len(content)) + kind + content + check

    header = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    pixels = zlib.compress(bytes(1_000_000))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels)


def rows_in_order(folder):
    with (folder / "journal.jsonl").open(encoding="utf-8") as file:
        return [row for line in list(file)[1:] for row in json.loads(line)]


def rows_of(folder):
    return sorted(rows_in_order(folder), key=lambda row: (row["id"], row["number"]))


def same(found, expected):
    """Equal rows; a mask may differ by a few pixels, as sums in another order do."""
    from pycocotools import mask as coco

    measured = ("rle", "area", "box", "found", "confidence")
    assert len(found) == len(expected)
    for row, other in zip(found, expected, strict=True):
        assert {k: v for k, v in row.items() if k not in measured} == {
            k: v for k, v in other.items() if k not in measured
        }
        assert (row["rle"] is None) == (other["rle"] is None)
        if row["rle"]:
            assert row["confidence"] == pytest.approx(other["confidence"], abs=1e-3)
            assert (coco.decode(row["rle"]) != coco.decode(other["rle"])).sum() <= 3


def test_every_picture_has_its_rows_and_bad_ones_an_error(done):
    rows = rows_of(done)
    assert len({(row["id"], row["number"]) for row in rows}) == len(rows)
    good = [row for row in rows if row["id"][:2].isdigit() and not row["id"].endswith("#26")]
    assert len({row["id"] for row in good}) == COUNT
    assert all(row["error"] is None and row["tokens_kept"] == 5 for row in good)
    assert all(isinstance(row["confidence"], float) for row in good)
    told = {row["id"].partition("#")[0]: row["error"] for row in rows if row["error"]}
    assert "web page" in told["text.jpg"]
    assert "empty" in told["empty.jpg"]
    assert "megapixels" in told["large.png"]
    assert "megapixels" in told["bomb.png"]
    assert "no such file" in told["missing.jpg"]
    assert "row 25" in told["row 25"]
    mixed = [row["error"] for row in rows if row["id"] == "00.png#26"]
    assert mixed[0] is None
    assert all("no word" in error for error in mixed[1:])


def test_the_end_of_a_run_counts_what_came_of_it_and_its_bar_tells_the_time_left(done):
    rows, said = rows_of(done), (done / "said.txt").read_text()
    assert re.search(r"%.* \d+/27 \[\d\d:\d\d<\d\d:\d\d, ", said)
    found, failed = sum(bool(row["found"]) for row in rows), 8
    head = f"27 pictures, {len(rows)} phrases, {found} found, {failed} failed; "
    assert re.search(re.escape(head) + r"\d+\.\d\d pictures a second\n", said)
    assert "  2 x a phrase has no word: '...'\n" in said
    assert "  1 x no such file\n" in said
    assert sum(int(n) for n in re.findall(r"^  (\d+) x ", said, re.M)) == failed


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        ("my photo.jpg: no such file", "no such file"),
        ("s3://bucket/a.jpg: no such file", "no such file"),
        ("a.png: 12 x 3456 pixels, at most 50", "# x # pixels, at most #"),
        ("RuntimeError: out of memory: 7 MB", "RuntimeError: out of memory: # MB"),
        ("x/t.jsonl, row 7: no name: line 1", "no name: line #"),
        ("a phrase has no word: 'a: b'", "a phrase has no word: '...'"),
    ],
)
def test_failures_of_one_kind_are_counted_together(error, kind):
    assert kind_of(error) == kind


def test_parquet_and_coco_open_and_say_the_same(done):
    import pandas
    from pycocotools.coco import COCO

    rows = rows_of(done)
    frame = pandas.read_parquet(done / "annotations.parquet")
    assert len(frame) == len(rows)
    assert frame["error"].notna().sum() == sum(row["error"] is not None for row in rows)
    found = frame[frame["found"].fillna(False).astype(bool)]
    data = COCO(str(done / "annotations.json"))
    names = {one["id"]: one["file_name"] for one in data.loadImgs(data.getImgIds())}
    labels = {one["id"]: one["name"] for one in data.loadCats(data.getCatIds())}
    annotations = data.loadAnns(data.getAnnIds())
    assert len(annotations) == len(found) > 0
    in_order = [row["confidence"] for row in rows_in_order(done) if row["found"]]
    assert list(found["confidence"]) == in_order
    by_name = {(row["id"], row["phrase"]): row for row in rows if row["found"]}
    for one in annotations:
        row = by_name[names[one["image_id"]], labels[one["category_id"]]]
        assert one["score"] == row["confidence"]
        mask = data.annToMask(one)
        assert mask.shape == (row["height"], row["width"])
        assert mask.sum() == row["area"] == one["area"]
        x, y, width, height = one["bbox"]
        assert mask[y : y + height, x : x + width].sum() == mask.sum()


def test_the_parquet_opens_with_datasets(done, tmp_path):
    datasets = pytest.importorskip("datasets")
    table = datasets.load_dataset(
        "parquet",
        data_files=str(done / "annotations.parquet"),
        split="train",
        cache_dir=str(tmp_path),
    )
    assert list(table["phrase"]) == [row["phrase"] for row in rows_in_order(done)]


def test_rows_are_what_the_pipeline_answers(pipe, picture, monkeypatch):
    monkeypatch.setattr(pipe.family, "confidence", {"found": -1.0, "unsure": -2.0})
    ((row, second),) = annotate(pipe, [Task("a", picture, ("a disc", "noise"))], budget=5)
    results = pipe(picture, ["a disc", "noise"], 5)
    same([row["rle"] and row, second], [row | {"rle": results[0].mask_rle}, second])
    assert row["area"] == results[0].mask.sum()
    assert row["confidence"] == pytest.approx(results[0].quality, abs=1e-3)
    assert row["verdict"] == results[0].verdict == "found"
    assert row["box"] is None or row["found"]
    (over,) = annotate(pipe, [Task("a", picture, ("a disc",))], budget=10**6)
    assert "budget" in over[0]["error"]


def test_killed_at_any_moment_nothing_is_lost_or_repeated(table, done, tmp_path):
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["litelvlm.cli.annotate", "litelvlm.loading", "open_clip"])
    command = ["annotate", str(table), "--resume", "--batch", "1", "--out", str(tmp_path), *MODEL]
    journal, rng, before = tmp_path / "journal.jsonl", random.Random(0), b""
    kills = 0
    for _ in range(KILLS):
        process = context.Process(target=main, args=(command,))
        process.start()
        wanted = before.count(b"\n") + rng.randrange(1 + COUNT // KILLS)
        while process.is_alive() and (
            not journal.exists() or journal.read_bytes().count(b"\n") < wanted
        ):
            time.sleep(0.001)
        time.sleep(rng.random() * 0.02)
        process.kill()
        process.join()
        kills += process.exitcode == -signal.SIGKILL
        with journal.open("ab") as file:  # as if the last write had been cut off
            file.write(b'[{"id": "half')
        kept = journal.read_bytes().rpartition(b"\n")[0] + b"\n"
        assert kept.startswith(before)
        before = kept
    print(f"killed {kills} times")
    assert kills > KILLS // 2
    assert main(command) == 0
    assert journal.read_bytes().startswith(before)
    same(rows_of(tmp_path), rows_of(done))


def test_ray_gives_the_same_rows(table, done, tmp_path):
    ray = pytest.importorskip("ray")
    with ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False):
        assert main(["annotate", str(table), "--ray", "--out", str(tmp_path), *MODEL]) == 0
    same(rows_of(tmp_path), rows_of(done))


def test_a_journal_is_not_mixed_with_another_run(tmp_path):
    Journal(tmp_path, SETTINGS).close()
    with pytest.raises(InputError, match="--resume"):
        Journal(tmp_path, SETTINGS)
    with pytest.raises(InputError, match="model 'tiny', not 'large'"):
        Journal(tmp_path, {"model": "large"}, resume=True)
    again = Journal(tmp_path, SETTINGS, resume=True)
    again.add([[{"id": "ä\ud800", "number": 0}]])
    again.close()
    assert Journal(tmp_path, SETTINGS, resume=True).done == {"ä\ud800"}


@pytest.mark.parametrize(
    ("other", "told"),
    [
        (["--dtype", "bfloat16"], "dtype None, not 'bfloat16'"),
        (["--revision", "v2"], "revision None, not 'v2'"),
        (["--random-weights"], "random_weights False, not True"),
        (["--bits", "8"], "bits None, not 8"),
        (["--budget", "6"], "budget 5, not 6"),
    ],
)
def test_a_run_is_not_resumed_with_a_model_that_answers_otherwise(table, done, capsys, other, told):
    before = (done / "journal.jsonl").read_bytes()
    assert main(["annotate", str(table), "--out", str(done), "--resume", *MODEL, *other]) == 2
    assert f"holds a run with {told}; use another folder" in capsys.readouterr().err
    assert (done / "journal.jsonl").read_bytes() == before


def test_one_failing_picture_does_not_take_others_along(pipe, picture, monkeypatch):
    odd = np.zeros((7, 9, 3), np.uint8)
    whole = type(pipe.family).encode

    def encode(self, images, *rest):
        if any(image.shape == odd.shape for image in images):
            raise RuntimeError("an odd picture")
        return whole(self, images, *rest)

    monkeypatch.setattr(type(pipe.family), "encode", encode)
    tasks = [
        Task("a", picture, ("a disc",)),
        Task("b", odd, ("a disc",)),
        Task("c", picture, ("x",)),
    ]
    rows = annotate(pipe, tasks)
    assert [each[0]["error"] for each in rows] == [None, "RuntimeError: an odd picture", None]


def test_names_that_are_not_unicode_reach_the_table(pipe, picture, tmp_path):
    import pandas

    from litelvlm.annotate.export import write_coco, write_parquet

    rows = annotate(pipe, [Task("b\udcff.png", picture, ("a disc \ud800",))])
    write_parquet(rows, tmp_path / "t.parquet")
    write_coco(lambda: rows, tmp_path / "t.json")
    assert list(pandas.read_parquet(tmp_path / "t.parquet")["id"]) == ["b?.png"]


def test_a_budget_that_the_model_does_not_have_is_told_at_once(table, tmp_path):
    command = ["annotate", str(table), "--out", str(tmp_path), *MODEL[:-1], "100000"]
    assert main(command) == 2
