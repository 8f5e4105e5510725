"""Small charts as SVG text: numbers in, markup out. Colours come from the page's style sheet."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from litelvlm.ui.pictures import esc
from litelvlm.viz import ColourScale

_DASHES = ("", "6 4", "2 3", "9 3 2 3")
_INKS = 7


def svg(width: int, height: int, body: str, label: str, kind: str = "", role: str = "img") -> str:
    """An SVG element that scales with its column and says what it shows."""
    return (
        f'<svg class="lv-chart {kind}" viewBox="0 0 {width} {height}" role="{role}" '
        f'aria-label="{esc(label)}">{body}</svg>'
    )


def colour_bar(scale: ColourScale, threshold: float | None) -> str:
    """The colours of a heat map with its range, its middle and the cut."""
    left, right = 14, 446

    def place(value: float) -> float:
        span = scale.high - scale.low or 1.0
        return left + (right - left) * (value - scale.low) / span

    stops = "".join(
        f'<stop offset="{share:.3f}" stop-color="rgb({r},{g},{b})"/>'
        for share in np.linspace(0, 1, 13)
        for r, g, b in [scale.rgb(np.array(scale.low + share * (scale.high - scale.low)))]
    )
    body = (
        f'<defs><linearGradient id="lv-scale">{stops}</linearGradient></defs>'
        f'<rect x="{left}" y="26" width="{right - left}" height="14" rx="3" fill="url(#lv-scale)"/>'
        f'<text x="{left}" y="56">{scale.low:.4g}</text>'
        f'<text x="{right}" y="56" text-anchor="end">{scale.high:.4g}</text>'
    )
    middle = place(scale.centre)
    if left + 50 < middle < right - 50:
        body += (
            f'<path d="M{middle:.1f} 40v5" class="lv-tick"/><text x="{middle:.1f}" y="56" '
            f'text-anchor="middle">{scale.centre:.4g}</text>'
        )
    if threshold is not None:
        cut = place(threshold)
        anchor = "start" if cut < 90 else "end" if cut > right - 90 else "middle"
        body += (
            f'<path d="M{cut:.1f} 21v24" class="lv-cut-line"/><text x="{cut:.1f}" y="15" '
            f'text-anchor="{anchor}" class="lv-strong">cut at {threshold:.4g}</text>'
        )
    words = f"Colour bar from {scale.low:.4g} to {scale.high:.4g}"
    words += f", cut at {threshold:.4g}" if threshold is not None else ""
    return svg(460, 62, body, words)


def histogram(values: np.ndarray, inside: np.ndarray, threshold: float | None) -> str:
    """How the similarity is spread over patches inside and outside the mask.

    Args:
        values: (N,) float.
        inside: (N,) bool.
        threshold: the cut, or None.
    """
    low, high = float(values.min()), float(values.max())
    edges = np.linspace(low, high if high > low else low + 1.0, 25)
    shares = []
    for group in (values[inside], values[~inside]):
        counts = np.histogram(group, edges)[0]
        shares.append(counts / max(1, len(group)))
    top = max(float(np.max(shares)), 1e-9)
    left, right, base, tall = 14, 446, 118, 100
    step = (right - left) / (len(edges) - 1)
    body = f'<path d="M{left} {base}H{right}" class="lv-axis"/>'
    for name, heights, shift in (("outside", shares[1], 0.5), ("inside", shares[0], 0.08)):
        for number, share in enumerate(heights):
            size = tall * share / top
            body += (
                f'<rect class="lv-bar-{name}" x="{left + step * (number + shift):.1f}" '
                f'y="{base - size:.1f}" width="{step * 0.42:.1f}" height="{size:.1f}"/>'
            )
    if threshold is not None:
        cut = left + (right - left) * (threshold - low) / (edges[-1] - low)
        body += f'<path d="M{cut:.1f} 8V{base}" class="lv-cut-line"/>'
    body += f'<text x="{left}" y="134">{low:.4g}</text>'
    body += f'<text x="{right}" y="134" text-anchor="end">{edges[-1]:.4g}</text>'
    words = (
        f"Histogram of similarity: {int(inside.sum())} patches inside the mask, "
        f"{int((~inside).sum())} outside"
    )
    return svg(460, 138, body, words)


def lines(
    curves: Sequence[tuple[str, Sequence[tuple[float, float]]]],
    *,
    title: str,
    ticks: Sequence[int],
    top: float,
    level: tuple[float, str] | None = None,
    digits: int = 0,
) -> str:
    """Lines over the token budget; a click on a point sets the page's budget to its own.

    Args:
        curves: (name, (budget, value) points) of each line.
        title: what the values are.
        ticks: budgets to mark, ascending.
        top: upper end of the value axis; the lower end is 0.
        level: (value, name) of a horizontal line of reference.
        digits: decimals of the value axis.
    """
    width, height, left, right, base, upper = 400, 250, 40, 388, 208, 34

    def x(budget: float) -> float:  # logarithmic: budgets double from mark to mark
        low, high = np.log(ticks[0]), np.log(ticks[-1])
        return left + (right - left) * float((np.log(budget) - low) / ((high - low) or 1.0))

    def y(value: float) -> float:
        return base - (base - upper) * min(value, top) / top

    body = f'<text x="{left}" y="16" class="lv-strong">{esc(title)}</text>'
    for share in (0, 0.25, 0.5, 0.75, 1):
        at = y(top * share)
        body += f'<path d="M{left} {at:.1f}H{right}" class="lv-grid"/>'
        body += f'<text x="{left - 6}" y="{at + 4:.1f}" text-anchor="end">'
        body += f"{top * share:.{digits}f}</text>"
    for tick in ticks:
        body += f'<text x="{x(tick):.1f}" y="{base + 18}" text-anchor="middle">{tick}</text>'
    body += (
        f'<text x="{(left + right) / 2:.0f}" y="{base + 37}" text-anchor="middle">'
        "image tokens kept</text>"
    )
    if level is not None and level[0] <= top:
        at = y(level[0])
        body += f'<path d="M{left} {at:.1f}H{right}" class="lv-level"/>'
        body += f'<text x="{right}" y="{at - 5:.1f}" text-anchor="end">{esc(level[1])}</text>'
    body += (  # the page's script puts it where the slider stands
        f'<g class="lv-now" data-lv-axis="{ticks[0]} {ticks[-1]} {left} {right}">'
        f'<path d="M0 {upper}V{base}"/><text y="{upper - 4}" text-anchor="middle"></text></g>'
    )
    for number, (name, points) in enumerate(curves):
        path = " ".join(f"{x(a):.1f},{y(b):.1f}" for a, b in points)
        body += f'<polyline points="{path}" {_line(number)}/>'
        for budget, value in points:
            told = f"{esc(name)}, {budget} tokens: {value:.2f}"
            body += (
                f'<g class="lv-point" role="button" tabindex="{-1 if number else 0}" '
                f'data-lv-budget="{budget}" aria-label="{told}"><title>{told}</title>'
                f'<circle cx="{x(budget):.1f}" cy="{y(value):.1f}" r="11" class="lv-hit"/>'
                f"{_marker(number, x(budget), y(value))}</g>"
            )
    names = ", ".join(name for name, _ in curves)
    words = f"{title} over image tokens kept, for {names}"
    return svg(width, height, body, words, "lv-half", role="group")


def _line(number: int) -> str:
    dash = _DASHES[number % len(_DASHES)]
    return f'class="lv-line lv-ink-{number % _INKS}" stroke-dasharray="{dash}"'


def _marker(number: int, x: float, y: float) -> str:
    ink = f'class="lv-dot lv-ink-{number % _INKS}"'
    if number % 3 == 1:
        return f'<rect x="{x - 4:.1f}" y="{y - 4:.1f}" width="8" height="8" {ink}/>'
    if number % 3 == 2:
        return f'<path d="M{x:.1f} {y - 5:.1f}l5 9h-10z" {ink}/>'
    return f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4" {ink}/>'


def line_key(number: int) -> str:
    """A sample of line `number`, for a legend in HTML."""
    return (
        '<svg class="lv-key" viewBox="0 0 34 12" aria-hidden="true">'
        f'<path d="M1 6H33" {_line(number)}/>{_marker(number, 17, 6)}</svg>'
    )
