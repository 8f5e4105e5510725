"""The token map that answers: every patch at every budget, for the browser and as an animation."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import zlib
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import TYPE_CHECKING

import cv2
import numpy as np
from PIL import Image, ImageDraw

from litelvlm import viz
from litelvlm.pruning import Reason
from litelvlm.selecting import select, token_map
from litelvlm.ui.pictures import esc
from litelvlm.ui.work import LEAST, Answer, budgets

if TYPE_CHECKING:
    from litelvlm.pipeline import Pipeline
    from litelvlm.result import TokenMap

QUICK = frozenset({"similarity", "context", "last"})  # what rules read that may only rank scores
COARSE = 16  # step between budgets for rules that do more
GIF_SIDE = 400  # longest side, pixels
_WHY = {
    0: "dropped: other patches rank before it",
    Reason.SIMILARITY + 1: "kept: among the least similar to the phrase",
    Reason.CONTEXT + 1: "kept: context, whatever the phrase",
    Reason.RULE + 1: "kept: by the method’s own score",
    Reason.MERGED + 1: "kept: merged",
}


@dataclass(frozen=True)
class Play:
    """The selections of one phrase over the budgets.

    Attributes:
        budgets: ascending, the last is N.
        maps: one a budget.
    """

    budgets: tuple[int, ...]
    maps: tuple[TokenMap, ...]

    @property
    def table(self) -> np.ndarray:
        """(budgets, N) uint8: 0 for dropped, else 1 + `Reason`."""
        table = np.zeros((len(self.budgets), self.maps[0].frame.count), np.uint8)
        for row, chosen in zip(table, self.maps, strict=True):
            row[chosen.indices] = chosen.reason + 1
        return table

    @property
    def entry(self) -> np.ndarray:
        """(N,) int, the smallest of the budgets at which each patch is kept."""
        return np.asarray(self.budgets)[(self.table > 0).argmax(axis=0)]


def key(given: Answer, index: int) -> str:
    """What a `Play` belongs to: all of the question but its budget."""
    what = (given.model, given.picture.key, replace(given.ask, budget=None), index)
    return hashlib.sha256(repr(what).encode()).hexdigest()[:16]


def play(pipe: Pipeline, given: Answer, index: int) -> Play | None:
    """Select at every budget; None where the method does not choose before the language model."""
    rule, scene = given.ask.rule, given.scene
    if scene is None or rule.where != "before" or rule.name == "none":
        return None
    asked = given.ask.settle(scene.count, pipe.family.defaults)
    rows = 1 if asked.joint else len(asked.phrases)
    words = None
    if "similarity" in rule.needs:
        words = pipe.text_embeddings(asked.phrases, asked.text or pipe.family.defaults.text)
        words = words[None] if asked.joint else words[:, None]
    view = pipe.family.view(scene, rule.needs, words, rows)
    place = (0, index) if asked.joint else (index, 0)

    def at(budget: int) -> TokenMap:
        return token_map(scene.frame, select(view, replace(asked, budget=budget)), *place)

    least = min(LEAST, scene.count)
    maps = {n: at(n) for n in (*range(least, scene.count, COARSE), *budgets(scene.count)[:-1])}
    ranked = [set(maps[n].indices.tolist()) for n in sorted(maps)]
    if rule.needs <= QUICK and all(few <= more for few, more in pairwise(ranked)):
        maps |= {n: at(n) for n in range(least, scene.count) if n not in maps}
    maps[scene.count] = token_map(scene.frame)
    return Play(tuple(sorted(maps)), tuple(maps[n] for n in sorted(maps)))


def payload(played: Play, given: Answer, index: int) -> str:
    """All that the browser needs to answer about a patch, in a hidden element."""
    frame = played.maps[0].frame
    height, width = frame.image_hw
    context = given.pruned[index].token_map.context
    similarity = given.similarity[index]
    record = {
        "key": key(given, index),
        "grid": frame.grid,
        "boxes": np.round(frame.boxes() / [width, height, width, height], 5).tolist(),
        "budgets": played.budgets,
        "entry": played.entry.tolist(),
        "exact": len(played.budgets) == played.budgets[-1] - played.budgets[0] + 1,
        "table": base64.b64encode(zlib.compress(played.table.tobytes(), 6)).decode("ascii"),
        "why": [_WHY[code] for code in sorted(_WHY)],
        "colours": [viz.REASON_COLOURS[reason] for reason in sorted(viz.REASON_COLOURS)],
        "similarity": [f"{value:.4g}" for value in similarity],
        "similarityRank": ranks(similarity),
        "context": None if context is None else [f"{value:.4g}" for value in context],
        "contextRank": None if context is None else ranks(-context),
    }
    return f'<div data-lv-play="{esc(json.dumps(record, separators=(",", ":")))}"></div>'


def ranks(scores: np.ndarray) -> list[int]:
    """Place of every score, 1 = lowest; equal scores in patch order, as the selection has it."""
    return (np.argsort(np.argsort(scores, kind="stable"), kind="stable") + 1).tolist()


def canvas(given: Answer, index: int) -> str:
    """What lies over the token map and takes pointer and keys."""
    phrase = given.pruned[index].phrase
    return (
        f'<canvas class="lv-canvas" tabindex="0" role="application" '
        f"{_belongs(given, index)} "
        'aria-describedby="lv-readout" '
        f'aria-label="Patches of the token map of “{esc(phrase)}”: arrow keys move, '
        'Enter holds a patch to compare, Escape lets go"></canvas>'
    )


def cut(given: Answer, index: int) -> str:
    """What lies over the similarity map and outlines what the slider would keep."""
    return f'<canvas class="lv-cut" aria-hidden="true" {_belongs(given, index)}></canvas>'


def _belongs(given: Answer, index: int) -> str:
    return f'data-lv-key="{key(given, index)}" data-lv-budget-now="{given.ask.budget}"'


def readout() -> str:
    """The buttons and the line under the map."""
    return (
        '<div class="lv-patch-acts"><button type="button" data-lv-play-budget aria-pressed="false">'
        "▶ Play the budget</button>"
        '<button type="button" data-lv-hold>Hold this patch to compare</button>'
        '<span class="lv-play-budget" aria-hidden="true"></span></div>'
        '<div class="lv-readout" id="lv-readout" role="status">'
        "Point at a patch, tap it, or use the arrow keys: its scores, and why it was kept."
        "</div>"
    )


def gif(played: Play, given: Answer) -> bytes:
    """The token map from the smallest budget to all tokens and back, as an animated GIF."""
    image = given.picture.image
    scale = min(1.0, GIF_SIDE / max(image.shape[:2]))
    size = (round(image.shape[1] * scale), round(image.shape[0] * scale))
    small = cv2.resize(image, size, interpolation=cv2.INTER_AREA)
    total = played.budgets[-1]
    stops = np.unique(np.geomspace(played.budgets[0], total, 28).round().astype(int))
    places = sorted({int(np.searchsorted(played.budgets, stop)) for stop in stops})
    frames = []
    for place in places:
        layer = viz.token_layer(played.maps[place], small.shape[:2])
        frame = Image.fromarray(viz.compose(small, layer))
        draw = ImageDraw.Draw(frame)
        draw.rectangle((0, 0, 116, 20), fill=(13, 17, 27))
        draw.text((6, 5), f"{played.budgets[place]} of {total} tokens", fill=(255, 255, 255))
        frames.append(frame.quantize(64, dither=Image.Dither.NONE))
    stream = io.BytesIO()
    there_and_back = frames + frames[-2:0:-1]
    there_and_back[0].save(
        stream, "GIF", save_all=True, append_images=there_and_back[1:], duration=120, loop=0
    )
    return stream.getvalue()


CSS = """
.lv-canvas,.lv-cut{position:absolute;inset:0;width:100%;height:100%}
.lv-canvas{cursor:crosshair;outline-offset:-3px}
.lv-cut{pointer-events:none}
.lv-canvas:focus-visible{outline:3px solid var(--lv-accent)}
.lv-patch-acts{display:flex;flex-wrap:wrap;gap:8px;align-items:center;margin-top:10px}
.lv-patch-acts button{border:1px solid var(--lv-line);background:var(--lv-card);
 color:var(--lv-text);border-radius:8px;font-size:13px;padding:5px 12px;cursor:pointer}
.lv-patch-acts button:hover{border-color:var(--lv-accent)}
.lv-play-budget{font-size:13px;font-variant-numeric:tabular-nums;color:var(--lv-soft)}
.lv-readout{display:grid;grid-template-columns:repeat(auto-fit,minmax(220px,1fr));gap:8px 20px;
 margin-top:8px;font-size:13px;line-height:1.5;color:var(--lv-soft);min-height:64px;
 font-variant-numeric:tabular-nums}
.lv-readout b{color:var(--lv-text)}
"""

SCRIPT = r"""
(() => {
  let data = null, at = null, held = null, timer = 0, live = null;
  const $ = (what) => document.querySelector(what);
  const current = (c) => c && data && c.dataset.lvKey === data.key ? c : null;
  const canvas = () => current($('#lv-tokens .lv-canvas'));
  const cut = () => current($('#lv-sim .lv-cut'));
  const now = (c) => live ?? Number(c.dataset.lvBudgetNow);
  const row = (budget) => {
    let i = data.budgets.length - 1;
    while (i > 0 && data.budgets[i] > budget) i--;
    return i;
  };
  const code = (patch, budget) => data.table[row(budget) * data.boxes.length + patch];
  const clear = (c, ratio) => {
    const w = c.clientWidth * ratio, h = c.clientHeight * ratio;
    if (c.width !== Math.round(w)) c.width = Math.round(w);
    if (c.height !== Math.round(h)) c.height = Math.round(h);
    const pen = c.getContext('2d');
    pen.clearRect(0, 0, c.width, c.height);
    return pen;
  };
  const place = (p, c) =>
    data.boxes[p].map((v, i) => Math.round(v * (i % 2 ? c.height : c.width)));
  const drawCut = () => {
    const c = cut();
    if (!c) return;
    const ratio = window.devicePixelRatio || 1, pen = clear(c, ratio);
    if (live !== null) c.dataset.lvLive = live; else delete c.dataset.lvLive;
    if (live === null) return;
    const columns = data.grid[1], n = data.boxes.length;
    pen.fillStyle = '#fff';
    const line = 3 * ratio, alike = (p) => code(p, live) === 1;
    for (let p = 0; p < n; p++) {
      if (!alike(p)) continue;
      const [x0, y0, x1, y1] = place(p, c), column = p % columns;
      if (column && !alike(p - 1)) pen.fillRect(x0, y0, line, y1 - y0);
      if (column < columns - 1 && !alike(p + 1)) pen.fillRect(x1 - line, y0, line, y1 - y0);
      if (p >= columns && !alike(p - columns)) pen.fillRect(x0, y0, x1 - x0, line);
      if (p + columns < n && !alike(p + columns)) pen.fillRect(x0, y1 - line, x1 - x0, line);
    }
  };
  const draw = () => {
    drawCut();
    const c = canvas();
    if (!c) return;
    const ratio = window.devicePixelRatio || 1, pen = clear(c, ratio);
    const image = c.parentElement.querySelector('img');
    image.style.visibility = live === null ? '' : 'hidden';
    const box = (p) => place(p, c);
    if (live !== null) {
      pen.fillStyle = 'rgba(120,124,134,.6)';
      pen.fillRect(0, 0, c.width, c.height);
      data.boxes.forEach((_, p) => {
        const [x0, y0, x1, y1] = box(p), kind = code(p, live);
        pen.clearRect(x0, y0, x1 - x0, y1 - y0);
        const rgb = kind ? data.colours[kind - 1].join(',') : '';
        pen.fillStyle = kind ? `rgba(${rgb},.23)` : 'rgba(13,17,27,.675)';
        pen.fillRect(x0, y0, x1 - x0, y1 - y0);
        if (!kind) return;
        pen.strokeStyle = `rgb(${rgb})`;
        pen.lineWidth = ratio;
        pen.strokeRect(x0 + .5, y0 + .5, x1 - x0 - 1, y1 - y0 - 1);
        if (kind === 1) {
          pen.fillStyle = `rgb(${rgb})`;
          pen.beginPath();
          pen.arc((x0 + x1) / 2, (y0 + y1) / 2, Math.max(1, (x1 - x0) / 8), 0, 7);
          pen.fill();
        }
      });
    }
    [[held, '#ffd54a'], [at, '#fff']].forEach(([p, colour]) => {
      if (p === null) return;
      const [x0, y0, x1, y1] = box(p);
      pen.lineWidth = 4 * ratio; pen.strokeStyle = 'rgba(0,0,0,.75)';
      pen.strokeRect(x0, y0, x1 - x0, y1 - y0);
      pen.lineWidth = 2 * ratio; pen.strokeStyle = colour;
      pen.strokeRect(x0, y0, x1 - x0, y1 - y0);
    });
    const shown = $('#lv-tokens .lv-play-budget');
    if (shown) {
      const kept = live === null ? '' : `${data.budgets[row(live)]} of ${data.boxes.length} tokens`;
      if (shown.textContent !== kept) shown.textContent = kept;
    }
    if (live !== null) c.dataset.lvLive = live; else delete c.dataset.lvLive;
    say(c);
  };
  const lines = (p, c) => {
    const n = data.boxes.length, columns = data.grid[1];
    const tried = data.exact ? '' : `, the first of ${data.budgets.length} budgets tried`;
    const parts = [
      `Patch ${p}, row ${Math.floor(p / columns) + 1}, column ${p % columns + 1}`,
      `Similarity ${data.similarity[p]}, rank ${data.similarityRank[p]} of ${n}, lowest first`,
    ];
    if (data.context) {
      parts.push(`Context ${data.context[p]}, rank ${data.contextRank[p]} of ${n}, highest first`);
    }
    const first = data.entry[p] === data.budgets[0] ? ' or fewer' : tried;
    parts.push(`With ${data.budgets[row(now(c))]} tokens ${data.why[code(p, now(c))]}`);
    parts.push(`Enters at ${data.entry[p]} tokens${first}`);
    return parts;
  };
  const say = (c) => {
    const out = $('#lv-readout');
    if (!out || at === null) return;
    const patches = held !== null && held !== at ? [held, at] : [at];
    const text = patches.map((p) => lines(p, c));
    const sign = JSON.stringify(text);
    if (out.dataset.lvSign === sign) return;
    out.dataset.lvSign = sign;
    out.replaceChildren(...text.map((parts, i) => {
      const block = document.createElement('div');
      parts.forEach((part, j) => {
        const line = document.createElement(j ? 'div' : 'b');
        line.textContent = part + (j === 0 && patches.length > 1 && i === 0 ? ' (held)' : '');
        block.append(line);
      });
      return block;
    }));
  };
  const inside = (p) => {  // not wholly in the padding
    const [x0, y0, x1, y1] = data.boxes[p];
    return x1 > 0 && x0 < 1 && y1 > 0 && y0 < 1;
  };
  const under = (event, c) => {
    const r = c.getBoundingClientRect();
    const x = (event.clientX - r.left) / r.width, y = (event.clientY - r.top) / r.height;
    const p = data.boxes.findIndex(([x0, y0, x1, y1]) => x >= x0 && x < x1 && y >= y0 && y < y1);
    return p < 0 ? null : p;
  };
  const choose = (p) => { if (p !== null && p !== at) { at = p; draw(); } };
  const hold = () => { held = held === at ? null : at; draw(); };
  const stop = () => {
    clearInterval(timer);
    timer = 0;
    const button = $('[data-lv-play-budget]');
    if (button) {
      button.textContent = '▶ Play the budget';
      button.setAttribute('aria-pressed', 'false');
    }
  };
  const start = () => {
    const last = data.budgets[data.budgets.length - 1], step = Math.max(1, Math.round(last / 72));
    let budget = data.budgets[0], way = step;
    const button = $('[data-lv-play-budget]');
    button.textContent = '■ Stop';
    button.setAttribute('aria-pressed', 'true');
    live = budget;
    timer = setInterval(() => {
      if (!canvas()) { stop(); live = null; return; }
      budget = Math.min(last, budget + way);
      if (budget === last) way = -step;
      if (budget < data.budgets[0]) { stop(); live = null; } else live = budget;
      draw();
    }, 70);
    draw();
  };
  const on = (name, act) => document.addEventListener(name, act, true);
  const mine = (event) => { const c = canvas(); return c && event.target === c ? c : null; };
  on('pointermove', (event) => { const c = mine(event); if (c) choose(under(event, c)); });
  on('click', (event) => {
    const c = mine(event), touch = event.pointerType === 'touch';
    if (c) { choose(under(event, c)); if (!touch) hold(); return; }
    if (!event.target.closest || !canvas()) return;
    if (event.target.closest('[data-lv-hold]') && at !== null) hold();
    if (event.target.closest('[data-lv-play-budget]')) {
      if (timer) { stop(); live = null; draw(); } else start();
    }
  });
  on('focusin', (event) => {
    if (mine(event) && at === null) choose(data.boxes.findIndex((_, p) => inside(p)));
  });
  on('keydown', (event) => {
    const c = mine(event);
    if (!c) return;
    const columns = data.grid[1], n = data.boxes.length;
    const step = {ArrowLeft: -1, ArrowRight: 1, ArrowUp: -columns, ArrowDown: columns}[event.key];
    const to = at + step;
    if (step) { if (to >= 0 && to < n && inside(to)) choose(to); }
    else if (event.key === 'Enter') hold();
    else if (event.key === 'Escape') { held = null; draw(); }
    else return;
    event.preventDefault();
  });
  on('input', (event) => {
    if (!event.target.closest || !event.target.closest('#lv-budget')) return;
    if (!canvas() && !cut()) return;
    stop();
    const value = Number(event.target.value);
    if (value >= data.budgets[0]) { live = value; draw(); }
  });
  addEventListener('resize', draw);
  let seen = null, drawn = [];
  const mark = () => {
    [canvas(), cut()].forEach((c) => { if (c) c.dataset.lvReady = '1'; });
    draw();
  };
  const take = async (element) => {
    const record = JSON.parse(element.dataset.lvPlay);
    const packed = Uint8Array.from(atob(record.table), (letter) => letter.charCodeAt(0));
    const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream('deflate'));
    record.table = new Uint8Array(await new Response(stream).arrayBuffer());
    if (data === null || data.key !== record.key) { at = held = live = null; stop(); }
    data = record;
    mark();
  };
  // Gradio patches what it drew before, so what counts is the content, not the element.
  new MutationObserver(() => {
    const element = $('#lv-play [data-lv-play]');
    if (element && element.dataset.lvPlay !== seen) {
      seen = element.dataset.lvPlay;
      take(element);
    }
    const both = ['#lv-tokens .lv-canvas', '#lv-sim .lv-cut'].map($);
    const found = both.flatMap((c) => c ? [c, c.dataset.lvKey, c.dataset.lvBudgetNow] : [c]);
    if (found.length !== drawn.length || found.some((what, i) => what !== drawn[i])) {
      drawn = found;
      stop();
      live = null;  // the answer for the budget of the slider has come
      mark();
    }
  }).observe(document, {
    childList: true, subtree: true, attributes: true,
    attributeFilter: ['data-lv-play', 'data-lv-key', 'data-lv-budget-now'],
  });
})();
"""
