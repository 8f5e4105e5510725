"""The built package holds the code and what the code needs."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def names(tmp_path_factory):
    """Names of the files in a freshly built wheel."""
    folder = tmp_path_factory.mktemp("wheel")
    command = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "-q",
        "--no-deps",
        "-w",
        str(folder),
        str(ROOT),
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode and "No matching distribution" in done.stderr:
        pytest.skip("the build tool cannot be fetched")
    assert done.returncode == 0, done.stderr[-2000:]
    (wheel,) = folder.glob("*.whl")
    return set(zipfile.ZipFile(wheel).namelist())


def test_every_module_is_in_the_wheel(names):
    modules = {f.relative_to(ROOT).as_posix() for f in (ROOT / "litelvlm").rglob("*.py")}
    assert modules <= names


@pytest.mark.parametrize("folder", ["sprites", "backgrounds", "examples", "nano"])
def test_the_assets_are_in_the_wheel(names, folder):
    kept = {".webp", ".jpg", ".png", ".json", ".safetensors"}
    files = [f for f in (ROOT / "assets" / folder).iterdir() if f.suffix in kept]
    assert files
    assert {f"litelvlm/assets/{folder}/{f.name}" for f in files} <= names


def test_tests_and_demo_are_not_in_the_wheel(names):
    assert not [name for name in names if name.startswith(("tests/", "app.py"))]
