"""How long a visitor waits, in a real browser: from the click to the picture on screen.

    python tests/measure_browser.py [--model nano] [--visits 5] [--moves 10] [--json FILE]

Starts the demo, opens it in Chromium as a new visitor each time, uploads a picture, presses Find
("first answer": both encoders, the pruned and the unpruned run, all tabs), then moves the budget.
A time ends when the new picture is decoded and two frames have been drawn. Leave the computer
alone meanwhile.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import statistics
import sys
import tempfile
from pathlib import Path

from playwright.sync_api import sync_playwright
from served import ROOT, Server

FLAGS = [
    "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run",
    "--disable-background-networking",
]  # fmt: skip
# The page opens on an answer: the new one is what differs from what stood there at the click.
CLOCK = """() => {
  const shown = () => document.querySelector('#lv-masks .lv-compare');
  window.lv = {start: null, took: null};
  document.addEventListener('click', (event) => {
    const mark = event.target.closest('[data-lv-budget]');
    if (!mark && !event.target.closest('#lv-run')) return;
    window.lv = {
      start: performance.now(), took: null, seen: false, earlier: shown()?.innerHTML,
      want: mark ? mark.dataset.lvBudget + ' tokens' : '',
    };
  }, true);
  new MutationObserver(async () => {
    const lv = window.lv, now = shown();
    if (lv.start === null || lv.seen || !now || now.innerHTML === lv.earlier) return;
    if (!now.textContent.includes(lv.want)) return;
    lv.seen = true;
    await Promise.all([...now.querySelectorAll('img')].map((image) => image.decode()));
    requestAnimationFrame(() => requestAnimationFrame(() => {
      lv.took = performance.now() - lv.start;
    }));
  }).observe(document, {childList: true, subtree: true, characterData: true});
}"""


def took(page):
    """Milliseconds of the last click."""
    page.wait_for_function("window.lv.took !== null", timeout=120_000)
    return page.evaluate("window.lv.took")


def visit(browser, server, picture, phrase, moves):
    """(first answer, list of moves), milliseconds, of a new visitor."""
    page = browser.new_context(viewport={"width": 1280, "height": 900}).new_page()
    page.goto(server.url)
    page.wait_for_selector("#lv-run")
    page.evaluate(CLOCK)
    page.set_input_files("#lv-picture input[type=file]", str(picture))
    page.wait_for_selector("#lv-picture img")
    page.fill("#lv-phrases textarea", phrase)
    page.wait_for_timeout(500)
    page.click("#lv-run")
    first = took(page)
    marks = page.eval_on_selector_all(
        "[data-lv-budget]", "all => all.map(one => one.dataset.lvBudget)"
    )[:-1]
    times = []
    for number in range(moves):
        page.wait_for_timeout(700)
        page.click(f"[data-lv-budget='{marks[number % len(marks)]}']")
        times.append(took(page))
    page.context.close()
    return first, times


def summary(times):
    """Median, smallest and largest of milliseconds, in seconds."""
    return {
        "median_s": round(statistics.median(times) / 1e3, 3),
        "min_s": round(min(times) / 1e3, 3),
        "max_s": round(max(times) / 1e3, 3),
        "runs": len(times),
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="nano")
    parser.add_argument("--picture", type=Path, default=ROOT / "assets/examples/robots.jpg")
    parser.add_argument("--phrase", default="the jug")
    parser.add_argument("--visits", type=int, default=5)
    parser.add_argument("--moves", type=int, default=10)
    parser.add_argument("--threads", default=str(os.cpu_count()))
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    chromium = shutil.which("chromium") or shutil.which("chromium-browser")
    if chromium is None:
        sys.exit("no Chromium on PATH (Debian: apt-get install chromium)")
    firsts, moves = [], []
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as driver:
        server = Server(folder, model=args.model, threads=args.threads)
        try:
            browser = driver.chromium.launch(executable_path=chromium, args=FLAGS)
            visit(browser, server, args.picture, args.phrase, 2)  # the first visit loads the page
            for _ in range(args.visits):
                first, times = visit(browser, server, args.picture, args.phrase, args.moves)
                firsts.append(first)
                moves.extend(times)
            browser.close()
        finally:
            server.stop()
    report = {
        "model": args.model,
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, {args.threads} threads",
        "first_answer": summary(firsts),
        "slider_move": summary(moves),
    }
    print(json.dumps(report, indent=1))
    if args.json:
        args.json.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
