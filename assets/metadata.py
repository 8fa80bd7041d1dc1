"""How results are shown in the Dagster UI."""

import base64
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

import dagster as dg


def picture(png: bytes, caption: str) -> dg.MarkdownMetadataValue:
    """A PNG shown in place."""
    return dg.MetadataValue.md(f"![{caption}](data:image/png;base64,{base64.b64encode(png).decode('ascii')})")


def table(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> dg.MarkdownMetadataValue:
    """A table in Markdown; cells are cut to 300 characters and cannot break out of their row."""
    lines = ["| " + " | ".join(columns) + " |", "|" + "---|" * len(columns)]
    lines += ["| " + " | ".join(_cell(value) for value in row) + " |" for row in rows]
    return dg.MetadataValue.md("\n".join(lines))


def counts(values: Mapping[str, int]) -> dg.MarkdownMetadataValue:
    """A table of counts, the largest first."""
    return table(("what", "count"), [*Counter(values).most_common()])


def _cell(value: object) -> str:
    text = f"{value:.3f}" if isinstance(value, float) else str(value)
    return " ".join(text[:300].replace("|", "\\|").split())
