"""`litelvlm annotate`: every picture answered once, whatever is in it and whenever it is killed."""

from __future__ import annotations

import io
import json
import os
import random
import signal
import subprocess
import sys
import tarfile
import time

import numpy as np
import pytest
from PIL import Image

from litelvlm.annotate.journal import Journal
from litelvlm.annotate.rows import Task, annotate
from litelvlm.annotate.sources import read_tasks, shards
from litelvlm.cli import main
from litelvlm.errors import InputError

COUNT = 20
MODEL = ["--model", "tiny-random", "--device", "cpu", "--threads", "1", "--budget", "5"]
SETTINGS = {"model": "tiny"}


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    """Rendered scenes with their own phrases; two damaged files, a bomb and a bad line."""
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
    Image.new("1", (10_100, 10_000)).save(folder / "bomb.png")
    for name in ("text.jpg", "empty.jpg", "bomb.png", "missing.jpg"):
        lines.append(json.dumps({"picture": name, "phrase": "a thing"}))
    lines += ["{not json", json.dumps({"picture": "00.png", "phrases": ["a cup", "", "..."]})]
    path = folder / "table.jsonl"
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def done(table, tmp_path_factory):
    """The folder of a run that nobody disturbed."""
    out = tmp_path_factory.mktemp("out")
    assert main(["annotate", str(table), "--out", str(out), *MODEL]) == 0
    return out


def rows_of(folder):
    with (folder / "journal.jsonl").open(encoding="utf-8") as file:
        found = [row for line in list(file)[1:] for row in json.loads(line)]
    return sorted(found, key=lambda row: (row["id"], row["number"]))


def same(found, expected):
    """Equal rows; a mask may differ by a few pixels, as sums in another order do."""
    from pycocotools import mask as coco

    measured = ("rle", "area", "box", "found")
    assert len(found) == len(expected)
    for row, other in zip(found, expected, strict=True):
        assert {k: v for k, v in row.items() if k not in measured} == {
            k: v for k, v in other.items() if k not in measured
        }
        assert (row["rle"] is None) == (other["rle"] is None)
        if row["rle"]:
            assert (coco.decode(row["rle"]) != coco.decode(other["rle"])).sum() <= 3


def test_every_picture_has_its_rows_and_bad_ones_an_error(done):
    rows = rows_of(done)
    assert len({(row["id"], row["number"]) for row in rows}) == len(rows)
    good = [row for row in rows if row["id"][:2].isdigit() and not row["id"].endswith("#25")]
    assert len({row["id"] for row in good}) == COUNT
    assert all(row["error"] is None and row["tokens_kept"] == 5 for row in good)
    told = {row["id"].partition("#")[0]: row["error"] for row in rows if row["error"]}
    assert "web page" in told["text.jpg"]
    assert "empty" in told["empty.jpg"]
    assert "megapixels" in told["bomb.png"]
    assert "no such file" in told["missing.jpg"]
    assert "row 24" in told["row 24"]
    mixed = [row["error"] for row in rows if row["id"] == "00.png#25"]
    assert mixed[0] is None
    assert all("no word" in error for error in mixed[1:])


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
    by_name = {(row["id"], row["phrase"]): row for row in rows if row["found"]}
    for one in annotations:
        row = by_name[names[one["image_id"]], labels[one["category_id"]]]
        mask = data.annToMask(one)
        assert mask.shape == (row["height"], row["width"])
        assert mask.sum() == row["area"] == one["area"]
        x, y, width, height = one["bbox"]
        assert mask[y : y + height, x : x + width].sum() == mask.sum()


def test_rows_are_what_the_pipeline_answers(pipe, picture, done):
    ((row, second),) = annotate(pipe, [Task("a", picture, ("a disc", "noise"))], budget=5)
    results = pipe(picture, ["a disc", "noise"], 5)
    same([row["rle"] and row, second], [row | {"rle": results[0].mask_rle}, second])
    assert row["area"] == results[0].mask.sum()
    assert row["box"] is None or row["found"]
    (over,) = annotate(pipe, [Task("a", picture, ("a disc",))], budget=10**6)
    assert "budget" in over[0]["error"]


@pytest.mark.parametrize("seed", range(4))
def test_killed_at_any_moment_nothing_is_lost_or_repeated(table, done, tmp_path, seed):
    command = [sys.executable, "-m", "litelvlm", "annotate", str(table), "--resume", "--batch", "2"]
    command += ["--out", str(tmp_path), *MODEL]
    journal = tmp_path / "journal.jsonl"
    rng = random.Random(seed)
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    while process.poll() is None and not journal.exists():
        time.sleep(0.01)
    wanted = rng.randrange(2, COUNT)
    while process.poll() is None and len(journal.read_bytes().splitlines()) < wanted:
        time.sleep(0.002)
    time.sleep(rng.random() * 0.05)
    process.send_signal(signal.SIGKILL)
    process.wait()
    with journal.open("ab") as file:  # as if the last write had been cut off
        file.write(b'[{"id": "half')
    before = journal.read_bytes().rpartition(b"\n")[0]
    subprocess.run(command, check=True, capture_output=True)
    assert journal.read_bytes().startswith(before)
    same(rows_of(tmp_path), rows_of(done))


def test_ray_gives_the_same_rows(table, done, tmp_path):
    pytest.importorskip("ray")
    out = tmp_path / "out"
    command = [sys.executable, "-m", "litelvlm", "annotate", str(table), "--ray", "--out", str(out)]
    env = os.environ | {"RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0"}
    finished = subprocess.run([*command, *MODEL], capture_output=True, text=True, env=env)
    assert finished.returncode == 0, finished.stderr[-2000:]
    same(rows_of(out), rows_of(done))


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


def test_sources_agree(tmp_path):
    pa = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    (tmp_path / "sub").mkdir()
    buffer = io.BytesIO()
    Image.new("RGB", (8, 6), "red").save(buffer, "PNG")
    for name in ("a.png", "sub/b.png"):
        (tmp_path / name).write_bytes(buffer.getvalue())
    (tmp_path / "notes.txt").write_text("no picture")
    tasks = list(read_tasks(str(tmp_path), ("a cup", "a dog")))
    assert [task.id for task in tasks] == ["a.png", "sub/b.png"]
    assert tasks[1].phrases == ("a cup", "a dog")

    rows = [{"id": "1", "picture": "a.png", "phrases": ["a cup", "a dog"]}]
    (tmp_path / "t.jsonl").write_text(json.dumps(rows[0]))
    (tmp_path / "t.csv").write_text('id,picture,phrases\n1,a.png,"[""a cup"", ""a dog""]"\n')
    parquet.write_table(pa.Table.from_pylist(rows), tmp_path / "t.parquet")
    found = [list(read_tasks(str(tmp_path / f"t.{kind}"))) for kind in ("jsonl", "csv", "parquet")]
    assert found[0] == found[1] == found[2] == [Task("1", f"{tmp_path}/a.png", tasks[0].phrases)]

    for number in range(2):
        with tarfile.open(tmp_path / f"s-{number:02d}.tar", "w") as tar:
            for name, content in (
                ("x/k.json", b'{"phrases": ["a cup"]}'),
                ("x/k.png", buffer.getvalue()),
                ("x/m.png", buffer.getvalue()),
            ):
                member = tarfile.TarInfo(name)
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
    pattern = str(tmp_path / "s-{00..01}.tar")
    assert len(shards(pattern)) == 2
    shard = list(read_tasks(pattern, ("a dog",)))
    assert [task.id for task in shard] == [f"s-0{n}.tar/x/{k}" for n in range(2) for k in "km"]
    assert [task.phrases for task in shard[:2]] == [("a cup",), ("a dog",)]
    assert shard[0].picture == buffer.getvalue()


@pytest.mark.parametrize(
    ("source", "phrases", "told"),
    [
        ("nowhere", ("a cup",), "no such folder"),
        ("nowhere.csv", (), "no such file"),
        ("nowhere-*.tar", (), "no such file"),
        (".", (), "--phrases"),
    ],
)
def test_sources_that_are_not_there_are_told(tmp_path, source, phrases, told):
    with pytest.raises(InputError, match=told):
        list(read_tasks(str(tmp_path / source), phrases))


def test_two_tasks_of_one_id_are_refused(tmp_path):
    row = json.dumps({"id": 1, "picture": "a.png", "phrase": "a cup"})
    (tmp_path / "t.jsonl").write_text(f"{row}\n{row}\n")
    with pytest.raises(InputError, match="two tasks have the id"):
        list(read_tasks(str(tmp_path / "t.jsonl")))


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
