"""The tab of the budget curve: agreement and time over budgets, a line a method."""

from __future__ import annotations

from collections.abc import Sequence

from litelvlm.methods import METHODS
from litelvlm.ui import charts
from litelvlm.ui.pictures import esc
from litelvlm.ui.work import Sweep, budgets


def html(given: Sweep, total: int, cancelled: bool = False) -> str:
    """Agreement and prefill time over budgets; of a cancelled curve the points there are."""
    names = [METHODS[line.method].title for line in given.curves]
    ticks = budgets(total)
    slowest = max(
        [given.unpruned_ms, 1e-3] + [ms for line in given.curves for _, _, ms in line.points]
    )
    agreement = charts.lines(
        [(n, [(b, s) for b, s, _ in c.points]) for n, c in zip(names, given.curves, strict=True)],
        title="Agreement with the unpruned answer",
        ticks=ticks,
        top=1.0,
        digits=2,
    )
    time = charts.lines(
        [(n, [(b, ms) for b, _, ms in c.points]) for n, c in zip(names, given.curves, strict=True)],
        title="Prefill of the language model, ms",
        ticks=ticks,
        top=slowest * 1.15,
        level=(given.unpruned_ms, "all tokens"),
        digits=1 if slowest < 20 else 0,
    )
    keys = " ".join(
        f'<span class="lv-keyed">{charts.line_key(number)} {esc(name)}</span>'
        for number, name in enumerate(names)
    )
    done = 100 * given.done / max(1, given.total)
    bar = (
        f'<div class="lv-progress" role="progressbar" aria-valuenow="{done:.0f}" aria-valuemin="0" '
        f'aria-valuemax="100" aria-label="Budget curve"><i style="width:{done:.1f}%"></i></div>'
        if given.done < given.total and not cancelled
        else ""
    )
    state = "Cancelled after " if cancelled else ""
    return (
        f'{bar}<div class="lv-key-line">{keys}</div><div class="lv-charts">{agreement}{time}</div>'
        f'<p class="lv-caption">{state}{given.done} of {given.total} points; a click '
        "on one sets the budget. Mean over "
        f"{len(given.phrases)} phrase{'s' if len(given.phrases) != 1 else ''}; random draws "
        "anew three times; time is the median of three. Agreement is with this model’s own "
        f"unpruned answer, not with the truth.</p>{_table(given, names)}"
    )


def _table(given: Sweep, names: Sequence[str]) -> str:
    rows = [
        f"<tr><td>{esc(name)}</td><td>{budget}</td><td>{score:.3f}</td><td>{ms:.1f}</td></tr>"
        for name, line in zip(names, given.curves, strict=True)
        for budget, score, ms in line.points
    ]
    if not rows:
        return ""
    return (
        "<details class='lv-details'><summary>The numbers</summary><table><tr><th>method</th>"
        "<th>tokens</th><th>agreement</th><th>prefill, ms</th></tr>"
        f"{''.join(rows)}</table></details>"
    )


CSS = """
:root{--lv-ink-4:#8a6d00;--lv-ink-5:#5b54c9;--lv-ink-6:#566174}
.dark{--lv-ink-4:#d3b13c;--lv-ink-5:#a29df5;--lv-ink-6:#a3aec0}
.lv-line.lv-ink-4{stroke:var(--lv-ink-4)}.lv-line.lv-ink-5{stroke:var(--lv-ink-5)}
.lv-line.lv-ink-6{stroke:var(--lv-ink-6)}.lv-dot.lv-ink-4{fill:var(--lv-ink-4)}
.lv-dot.lv-ink-5{fill:var(--lv-ink-5)}.lv-dot.lv-ink-6{fill:var(--lv-ink-6)}
.lv-point{cursor:pointer;outline:none}
.lv-hit{fill:transparent}
.lv-point:hover .lv-hit,.lv-point:focus-visible .lv-hit{fill:var(--lv-accent);fill-opacity:.25}
.lv-now path{stroke:var(--lv-text);stroke-width:1.2;stroke-dasharray:3 3}
.lv-chart .lv-now text{fill:var(--lv-text);font-weight:600}
.lv-rivals{display:grid;grid-template-columns:repeat(auto-fit,minmax(150px,1fr));gap:10px 14px}
.lv-rival{min-width:0}
.lv-rival .lv-stage+.lv-stage{margin-top:6px}
.lv-rival h4{margin:8px 0 4px}
"""

# The budget line follows the slider; a point takes keys as it takes clicks.
SCRIPT = """
(() => {
  const place = () => {
    const range = document.querySelector('#lv-budget input[type=range]');
    if (!range) return;
    document.querySelectorAll('.lv-now').forEach((line) => {
      if (line.dataset.lvShown === range.value) return;
      line.dataset.lvShown = range.value;
      const [low, high, left, right] = line.dataset.lvAxis.split(' ').map(Number);
      const share = Math.log(range.value / low) / Math.log(high / low);
      const x = left + (right - left) * Math.min(1, Math.max(0, share));
      line.setAttribute('transform', `translate(${x} 0)`);
      line.querySelector('text').textContent = range.value;
    });
  };
  document.addEventListener('input', place, true);
  document.addEventListener('keydown', (event) => {
    const point = event.target.closest && event.target.closest('.lv-point');
    if (!point || (event.key !== 'Enter' && event.key !== ' ')) return;
    event.preventDefault();
    point.dispatchEvent(new MouseEvent('click', {bubbles: true}));
  }, true);
  new MutationObserver(place).observe(document, {childList: true, subtree: true});
})();
"""
