"""One question, one answer, whichever door it comes through; and the commands that are shown."""

from __future__ import annotations

import json
import re
import shlex
from dataclasses import replace
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import litelvlm
from litelvlm import cli
from litelvlm.config import SelectionConfig
from litelvlm.data.samples import Sample
from litelvlm.evaluate import evaluate
from litelvlm.ui import callbacks, handout
from litelvlm.ui.callbacks import Controls
from litelvlm.ui.desk import Desk
from litelvlm.ui.settings import Settings

ROOT = Path(__file__).parents[1]


@pytest.fixture
def own(pipe, monkeypatch):
    """A model whose own choices differ from every default of the code."""
    choices = SelectionConfig("released", "released", "original", "attention", "templates")
    monkeypatch.setattr(pipe.family, "defaults", replace(choices, view="letterbox"))
    monkeypatch.setattr(litelvlm, "load", lambda *_, **__: pipe, raising=False)
    return pipe


@pytest.fixture
def file(picture, tmp_path):
    path = tmp_path / "wide.png"
    Image.fromarray(np.concatenate([picture, picture[:, ::-1]], axis=1)).save(path)
    return str(path)


OPTIONS = (
    {},
    {"method": "grid"},
    {"split": 0.25, "order": "raster"},
    {"positions": "compact", "context": "released", "text": "phrase"},
    {"method": "fastv"},
)


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_every_door_gives_the_same_mask_and_tokens(own, file, capsys, options):
    phrases = ["the disc", "noise on the left"]
    python = own(file, phrases, 16, **options)
    expected = [(item.mask_rle, item.token_map.indices.tolist()) for item in python]

    words = [word for name, value in options.items() for word in (f"--{name}", str(value))]
    assert cli.main(["ground", file, *phrases, "--budget", "16", "--json", *words]) == 0
    command = json.loads(capsys.readouterr().out)
    assert command["settings"] == json.loads(json.dumps(python.settings))

    desk = Desk(Settings(models=("tiny-random",)), lambda name: own)
    page = callbacks.ground(desk, None, Controls(None, file, "\n".join(phrases), 16, **options))
    page_record = handout.to_json(page.session)
    for record in (command, page_record):
        got = [(item["mask_rle"], item["tokens"]) for item in record["results"]]
        assert got == expected
    kept = (
        own.select(own.encode(file), phrases, 16, **options) if "fastv" not in str(options) else []
    )
    for token_map, (_, tokens) in zip(kept, expected, strict=False):
        assert token_map.indices.tolist() == tokens


def test_an_evaluation_asks_as_python_does(own, file):
    target = np.zeros(np.asarray(Image.open(file)).shape[:2], bool)
    target[20:60, 40:90] = True
    mask = own(file, "the disc", 16)[0].mask
    picture = np.asarray(Image.open(file))
    sample = Sample("one", "wide", "the disc", picture, target)
    units = evaluate(own, [sample], ["litelvlm"], [16])
    (item,) = next(unit for unit in units if unit.variant == "litelvlm").items
    assert (item.intersection, item.union) == ((mask & target).sum(), (mask | target).sum())


def shown_commands():
    """(page, command line) of every `litelvlm ...` in a bash block of the documents."""
    pages = [ROOT / "README.md", ROOT / "Spaces.md", *sorted((ROOT / "docs").glob("*.md"))]
    pages += sorted((ROOT / "assets").glob("*/README.md"))
    for page in pages:
        for block in re.findall(r"```(?:bash|sh)?\n(.*?)```", page.read_text("utf-8"), re.DOTALL):
            for line in block.replace("\\\n", " ").splitlines():
                line = line.partition("   #")[0].partition("  # ")[0].strip()
                if line.startswith("litelvlm "):
                    yield page.relative_to(ROOT).as_posix(), line


@pytest.mark.parametrize(("page", "line"), list(shown_commands()))
def test_every_command_line_that_is_shown_is_understood(page, line, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    _, name, *words = shlex.split(line)
    seen = []
    monkeypatch.setattr(
        import_module(f"litelvlm.cli.{name}"), "run", lambda args: seen.append(args)
    )
    cli.main([name, *words])
    assert seen, f"{page}: {line}"
