"""What stands around the commands: outputs, streams, lists, text forms, recovery."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from litelvlm import cli
from litelvlm.cli.options import numbers, words
from litelvlm.errors import InputError
from litelvlm.evaluation.records import Item, Store, Unit
from litelvlm.models.prompt import plain


@pytest.mark.parametrize("command", [["evaluate"], ["reversal"], ["card"], ["train"]])
def test_an_output_that_is_a_file_is_refused_before_anything_runs(tmp_path, capsys, command):
    file = tmp_path / "file"
    file.write_text("")
    for out in (file, file / "below"):
        assert cli.main([*command, "--out", str(out)]) == 2
        assert "is a file, expected a folder" in capsys.readouterr().err


def program(*given, **environment):
    command = [sys.executable, "-m", "litelvlm", *given]
    return subprocess.Popen(
        command, env={**os.environ, **environment}, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )


def test_a_terminal_without_our_characters_and_a_bad_backend_do_no_harm():
    process = program("info", PYTHONIOENCODING="ascii", MPLBACKEND="nonsense", WORLD_SIZE="2")
    out, err = process.communicate()
    assert (process.returncode, err) == (0, b"")
    assert b"selection methods" in out


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="Linux only")
def test_a_full_disk_behind_stdout_is_one_line():
    with open("/dev/full", "w") as full:
        command = [sys.executable, "-m", "litelvlm", "info"]
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "No space left" in done.stderr


def test_lists_take_commas_and_spaces():
    assert words(["a,b:x=1,y=2", "c", "d:z=3"]) == ["a", "b:x=1,y=2", "c", "d:z=3"]
    assert numbers("--budgets", ["192,64", "32"]) == [192, 64, 32]
    with pytest.raises(InputError, match="--budgets takes whole numbers"):
        numbers("--budgets", ["many"])


@pytest.mark.parametrize(
    ("given", "usual"),
    [
        ("the dog\u2019s nose", "the dog's nose"),
        ("straw\xadberry", "strawberry"),
        ("cafe\u0301", "caf\xe9"),
        ("\uff52\uff45\uff44 apple", "red apple"),
        ("\u201cred\u201d", '"red"'),
        ("\U0001f34e!", ""),
    ],
)
def test_a_phrase_is_read_in_its_usual_form(given, usual):
    assert plain(given) == usual


def test_a_run_that_was_cut_inside_a_character_goes_on(tmp_path):
    item = Item("1", "caf\xe9", "", 1, 2, None, None, True)
    units = [Unit("data", name, "none", 64, 0, (item,)) for name in ("a", "b")]
    store = Store(tmp_path, {"data": 1})
    store.add(units)
    whole = store.path.read_bytes()
    store.path.write_bytes(whole[: whole.rindex("\xe9".encode()) + 1])
    again = Store(tmp_path, {"data": 1})
    assert [again.done(unit.key) for unit in units] == [True, False]
    again.add(units[1:])
    assert Store(tmp_path, {"data": 1}).done(units[1].key)


def test_one_wrong_line_does_not_stop_an_evaluation(tmp_path, capsys):
    from PIL import Image

    Image.new("RGB", (64, 48), "red").save(tmp_path / "a.png")
    rows = [
        {"image": "a.png", "text": "the dog", "mask": [[float("nan"), 1, 9, 1, 9, 9]]},
        {"image": "a.png", "text": "the cat", "mask": [[1, 1], [9, 1], [9, 9]]},
    ]
    (tmp_path / "samples.jsonl").write_text("\n".join(map(json.dumps, rows)))
    given = ["--data", str(tmp_path), "--model", "tiny-random", "--methods", "grid,random"]
    given += ["--budgets", "16,8", "--quiet", "--out", str(tmp_path / "out")]
    assert cli.main(["evaluate", *given]) == 1
    assert "1 expressions refused" in capsys.readouterr().out
    assert "line 1: a polygon has x nan" in (tmp_path / "out/report.md").read_text()
