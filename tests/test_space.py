"""The folder of a Hugging Face Space: what it holds, and that it starts by itself."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from pathlib import Path

import httpx
import pytest
from PIL import Image
from served import free_port

from litelvlm import space
from litelvlm.cli import main
from litelvlm.errors import InputError
from litelvlm.space import Space, assemble, check_name, front_matter, requirements

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("space") / "space"
    assemble(path, Space("tiny-random"))
    return path


def matter(text):
    """The front matter as a flat dict of texts."""
    block = re.match(r"---\n(.*?)\n---\n", text, re.DOTALL).group(1)
    return dict(re.findall(r"^(\w+): ?(.*)$", block, re.MULTILINE))


def test_the_folder_holds_the_package_the_app_and_the_examples(folder):
    for name in ("app.py", "README.md", "requirements.txt", "litelvlm/pipeline.py"):
        assert (folder / name).is_file(), name
    assert (folder / "assets" / "examples" / "examples.json").is_file()
    assert not list(folder.rglob("__pycache__"))
    assert not list(folder.rglob("*.pyi"))


def test_the_app_of_the_space_is_that_of_the_repository():
    assert (ROOT / "app.py").read_text() == space.APP


def test_the_front_matter_keeps_to_the_rules_of_spaces(folder):
    fields = matter((folder / "README.md").read_text())
    assert fields["sdk"] == "gradio"
    assert fields["app_file"] == "app.py"
    assert len(fields["short_description"]) <= 60
    colours = {"red", "yellow", "green", "blue", "indigo", "purple", "pink", "gray"}
    assert {fields["colorFrom"], fields["colorTo"]} <= colours
    assert fields["python_version"].strip('"') in ("3.10", "3.12")
    assert "hardware" not in fields


def test_links_to_the_space_come_with_a_picture(tmp_path):
    main(
        ["space", "push", "ada/demo", "--model", "tiny-random", "--dry-run", str(tmp_path / "out")]
    )
    picture = matter((tmp_path / "out" / "README.md").read_text())["thumbnail"]
    start = "https://huggingface.co/spaces/ada/demo/resolve/main/"
    assert picture.startswith(start)
    with Image.open(tmp_path / "out" / picture.removeprefix(start)) as card:
        assert card.width >= 1200
        assert card.width / card.height == pytest.approx(1.91, abs=0.02)


def test_the_large_model_is_fetched_before_the_start_and_given_time():
    text = front_matter(Space("glamm-refseg", "gpu"))
    assert "preload_from_hub:\n  - MBZUAI/GLaMM-RefSeg\n" in text
    assert matter(text)["startup_duration_timeout"] == "1h"
    assert "preload_from_hub" not in front_matter(Space())


def test_the_front_matter_in_spaces_md_is_that_of_the_default_space():
    text = (ROOT / "Spaces.md").read_text()
    assert front_matter(Space()).strip() in text


def test_requirements_name_nothing_the_platform_brings_and_pin_no_torch():
    lines = (ROOT / "requirements.txt").read_text().splitlines()
    names = requirements(lines).split()
    bare = {re.split(r"[^\w.-]", name)[0] for name in names}
    assert not bare & {"gradio", "spaces", "huggingface_hub", "huggingface-hub"}
    assert "torch" in names
    assert "torchvision" in names
    assert requirements(["gradio[mcp]>=6", "a>=1 ; python_version>'3'", "# x", ""]) == "a>=1\n"


def test_a_folder_that_is_not_empty_is_left_alone(tmp_path):
    (tmp_path / "mine.txt").write_text("x")
    with pytest.raises(InputError, match="not empty"):
        assemble(tmp_path, Space("tiny-random"))
    assert [file.name for file in tmp_path.iterdir()] == ["mine.txt"]


@pytest.mark.parametrize("name", ["", "noslash", "a/b/c", "../x", "a/b c", "-a/b"])
def test_names_that_are_no_space_are_refused(name):
    with pytest.raises(InputError, match="USER/NAME"):
        check_name(name)


def test_unknown_models_and_hardware_are_refused():
    with pytest.raises(InputError, match="hardware"):
        Space(hardware="abacus")
    with pytest.raises(InputError, match="model"):
        Space(model="gpt")


def test_the_command_writes_the_folder_and_sends_nothing(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(space, "push", lambda *a, **k: pytest.fail("it would have been sent"))
    target = tmp_path / "out"
    code = main(["space", "push", "ada/demo", "--dry-run", str(target), "--model", "tiny-random"])
    assert code == 0
    assert "nothing was sent" in capsys.readouterr().out
    assert (target / "app.py").is_file()


def test_push_creates_the_space_sets_the_model_and_uploads(folder, monkeypatch):
    calls = []

    class Hub:
        def create_repo(self, name, **options):
            calls.append(("create", name, options["repo_type"], options["space_sdk"]))

        def add_space_variable(self, name, key, value):
            calls.append(("variable", key, value))

        def upload_folder(self, **options):
            calls.append(("upload", options["repo_id"], options["folder_path"]))

    monkeypatch.setattr("huggingface_hub.HfApi", Hub)
    where = space.push(folder, "ada/demo", Space("tiny-random"))
    assert where == "https://huggingface.co/spaces/ada/demo"
    assert calls == [
        ("create", "ada/demo", "space", "gradio"),
        ("variable", "LITELVLM_MODEL", "tiny-random"),
        ("upload", "ada/demo", folder),
    ]


def test_without_network_push_fails_in_one_line(folder, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_none")
    monkeypatch.setattr(
        "huggingface_hub.HfApi.create_repo",
        lambda *a, **k: (_ for _ in ()).throw(OSError("no route to host\nmore")),
    )
    with pytest.raises(InputError, match=r"Hugging Face: no route to host$"):
        space.push(folder, "ada/demo")


def test_the_folder_starts_by_itself(folder, tmp_path):
    """From the folder alone, as a Space does: no options, the model from the environment."""
    port = free_port()
    environment = {
        **{k: v for k, v in os.environ.items() if not k.startswith("PYTHON")},
        "LITELVLM_MODEL": "tiny-random",
        "GRADIO_SERVER_PORT": str(port),
        "GRADIO_TEMP_DIR": str(tmp_path / "uploads"),
        "OMP_NUM_THREADS": "1",
    }
    log = tmp_path / "log.txt"
    with log.open("w") as stream:
        process = subprocess.Popen(
            [sys.executable, "app.py"], cwd=folder, env=environment, stdout=stream, stderr=stream
        )
    try:
        deadline = time.monotonic() + 120
        answer = None
        while answer is None and time.monotonic() < deadline and process.poll() is None:
            try:
                answer = httpx.get(f"http://127.0.0.1:{port}/", timeout=5)
            except httpx.HTTPError:
                time.sleep(0.3)
        assert answer is not None, log.read_text()
        assert answer.status_code == 200
        assert "tiny-random" in answer.text
        assert "data-lv-example" in answer.text
    finally:
        process.terminate()
        process.wait(20)
