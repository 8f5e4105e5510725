"""Tables as text, for reports and the terminal."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence


def markdown_table(
    heads: Sequence[str], rows: Iterable[Sequence[object]], words: Collection[int] = (0,)
) -> list[str]:
    """Lines of a Markdown table: columns to the right, those numbered in `words` to the left."""
    marks = ["---" if column in words else "---:" for column in range(len(heads))]
    return [f"| {' | '.join(map(str, row))} |" for row in (heads, marks, *rows)]


def text_table(rows: Sequence[Sequence[str]]) -> str:
    """Columns aligned with spaces: the first to the left, the others to the right."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if column == 0 else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    )
