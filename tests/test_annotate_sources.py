"""Where the tasks of `litelvlm annotate` come from, on a disk and behind an address."""

from __future__ import annotations

import io
import json
import tarfile

import fsspec
import numpy as np
import pytest
from PIL import Image

from litelvlm.annotate.rows import Task, decoded
from litelvlm.annotate.sources import read_tasks, shards
from litelvlm.cli import main
from litelvlm.errors import InputError

PHRASES = ("a cup", "a dog")


def png():
    buffer = io.BytesIO()
    Image.new("RGB", (8, 6), "red").save(buffer, "PNG")
    return buffer.getvalue()


def put(path, content):
    with fsspec.open(path, "wb", auto_mkdir=True) as file:
        file.write(content)


@pytest.fixture
def bucket(monkeypatch):
    """Address of an empty bucket that a server on this computer speaks S3 for."""
    server = pytest.importorskip("moto.server").ThreadedMotoServer("127.0.0.1", 0)
    pytest.importorskip("s3fs")
    server.start()
    host, port = server.get_host_and_port()
    asked = {"endpoint_url": f"http://{host}:{port}", "key": "any", "secret": "any"}
    monkeypatch.setitem(fsspec.config.conf, "s3", asked)
    name = f"pictures-{port}"
    fsspec.filesystem("s3").mkdir(name)
    yield f"s3://{name}"
    server.stop()


@pytest.fixture(params=["disk", "memory", "s3"])
def root(request, tmp_path):
    """A folder with two pictures and a file that is none, on every kind of file system."""
    places = {"disk": str(tmp_path), "memory": f"memory://{tmp_path.name}"}
    place = places.get(request.param) or f"{request.getfixturevalue('bucket')}/{tmp_path.name}"
    for name in ("a.png", "sub/b.png"):
        put(f"{place}/{name}", png())
    put(f"{place}/notes.txt", b"no picture")
    yield place
    system, path = fsspec.core.url_to_fs(place)
    system.rm(path, recursive=True)


def test_a_folder_gives_its_pictures(root):
    tasks = list(read_tasks(root, PHRASES))
    assert [(task.id, task.phrases) for task in tasks] == [
        ("a.png", PHRASES),
        ("sub/b.png", PHRASES),
    ]
    for task in tasks:
        assert np.array_equal(decoded(task).picture, np.full((6, 8, 3), (255, 0, 0)))


def test_tables_of_every_kind_give_the_same_tasks(root):
    pa = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    rows = [{"id": "1", "picture": "a.png", "phrases": list(PHRASES)}]
    put(f"{root}/t.jsonl", json.dumps(rows[0]).encode())
    put(f"{root}/t.csv", b'id,picture,phrases\n1,a.png,"[""a cup"", ""a dog""]"\n')
    whole = io.BytesIO()
    parquet.write_table(pa.Table.from_pylist(rows), whole)
    put(f"{root}/t.parquet", whole.getvalue())
    for kind in ("jsonl", "csv", "parquet"):
        (task,) = read_tasks(f"{root}/t.{kind}")
        assert task == Task("1", f"{root}/a.png", PHRASES)
        assert decoded(task).picture.shape == (6, 8, 3)


def test_shards_give_their_samples(root):
    for number in range(2):
        whole = io.BytesIO()
        with tarfile.open(fileobj=whole, mode="w") as tar:
            for name, content in (
                ("x/k.json", b'{"phrases": ["a cup"]}'),
                ("x/k.png", png()),
                ("x/m.png", png()),
                ("x/n.png", png()),
                ("x/n.txt", b"a cat\n\nthe sofa\n"),
            ):
                member = tarfile.TarInfo(name)
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
        put(f"{root}/s-{number:02d}.tar", whole.getvalue())
    for pattern in (f"{root}/s-{{00..01}}.tar", f"{root}/s-*.tar"):
        assert len(shards(pattern)) == 2
        tasks = list(read_tasks(pattern, ("a dog",)))
        assert [task.id for task in tasks] == [f"s-0{n}.tar/x/{k}" for n in range(2) for k in "kmn"]
        assert [task.phrases for task in tasks[:3]] == [
            ("a cup",),
            ("a dog",),
            ("a cat", "the sofa"),
        ]
        assert tasks[0].picture == png()


def test_pictures_behind_an_address_are_annotated(root, tmp_path):
    table = f"{root}/t.csv"
    put(table, b"picture,phrase\na.png,a cup\nsub/none.png,a dog\n")
    command = ["annotate", table, "--out", str(tmp_path / "out"), "--model", "tiny-random"]
    assert main([*command, "--device", "cpu", "--threads", "1"]) == 0
    lines = (tmp_path / "out/journal.jsonl").read_text().splitlines()[1:]
    (good,), (missing,) = (json.loads(line) for line in lines)
    assert good["error"] is None
    assert good["rle"]["size"] == [6, 8]
    told = f"{root}/sub/none.png"[-80:]  # the end of a long one
    assert missing["error"] == f"{told}: no such file"


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
