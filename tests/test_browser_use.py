"""What the page gives to take away, run as given: it must answer as the page did."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from pycocotools import mask as coco
from test_browser import answered, browser, file, find, page, server, settled, shows, tab  # noqa: F401

pytestmark = pytest.mark.browser
ROOT = Path(__file__).parents[1]


def given(page, name):  # noqa: F811
    return page.inner_text(f"#{name} .cm-content").replace("\xa0", " ")


def run(arguments, folder):
    tools = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PATH": tools, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        arguments, cwd=folder, env=environment, capture_output=True, text=True, timeout=200
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


def saved(masks):
    return "; ".join(
        [
            "\nimport numpy, json",
            "from pycocotools import mask as coco",
            f"numpy.save('masks.npy', {masks})",
        ]
    )


def results_of_the_page(page, folder):  # noqa: F811
    """The masks in the page's own download."""
    page.click("#lv-prepare")
    page.wait_for_selector("#lv-downloads a[download='figure.svg']")
    with page.expect_download() as waiting:
        page.click("#lv-downloads a[download='result.json']")
    waiting.value.save_as(folder / "page.json")
    record = json.loads((folder / "page.json").read_text())
    return [coco.decode(r["mask_rle"]).astype(bool) for r in record["results"]]


@pytest.mark.parametrize("uploaded", [False, True])
def test_python_command_and_client_answer_as_the_page(page, file, tmp_path, uploaded):  # noqa: F811
    if uploaded:
        find(page, file, 'the disc\n-- it\'s a "wall"; $HOME')
        (tmp_path / "your-picture.jpg").write_bytes(Path(file).read_bytes())
    else:
        page.locator("[data-lv-example='1']").click()
        answered(page)
        settled(page)
    page.click("#lv-advanced button")
    page.get_by_label("Split").click()
    page.get_by_role("option", name="a quarter").click()
    settled(page)
    page.click("#lv-run")
    tab(page, "Use it")
    shows(page, "#lv-snippet", "0.25")
    settled(page)
    expected = results_of_the_page(page, tmp_path)
    assert any(mask.any() for mask in expected)

    code = given(page, "lv-snippet") + saved("[r.mask for r in results]")
    run([sys.executable, "-c", code], tmp_path)
    assert np.array_equal(np.load(tmp_path / "masks.npy"), expected)

    assert str(ROOT) not in given(page, "lv-command"), "no path of the server"
    run(["sh", "-c", given(page, "lv-command")], tmp_path)
    record = json.loads((tmp_path / "found" / "result.json").read_text())
    told = [coco.decode(r["mask_rle"]).astype(bool) for r in record["results"]]
    assert np.array_equal(told, expected)

    code = given(page, "lv-client") + saved(
        "[coco.decode(r['mask_rle']) for r in record['results']]"
    )
    run([sys.executable, "-c", code], tmp_path)
    assert np.array_equal(np.load(tmp_path / "masks.npy").astype(bool), expected)
