"""What every benchmark prints and writes: the machine, the versions, a row for each contender, and the figures."""

from __future__ import annotations

import platform
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from pipelines.environment import available_cores
from pipelines.fingerprint import write_json_atomically


def report(
    name: str,
    rows: Sequence[Mapping[str, Any]],
    figures: Mapping[str, float],
    *,
    packages: Sequence[str],
    json_file: Path | None,
    **more: Any,
) -> None:
    """Print ``rows`` as a table and the ``figures``, and write everything to ``json_file`` where one is given."""
    result = {
        "name": name,
        "machine": machine(),
        "versions": {package: _version(package) for package in packages},
        "rows": [dict(row) for row in rows],
        "figures": dict(figures),
        **more,
    }
    print(f"\n{name}: {result['machine']['cpu']}, {result['machine']['cores']} cores")
    print(table(rows))
    for figure, value in figures.items():
        print(f"{figure}: {value:.4g}")
    if json_file is not None:
        write_json_atomically(json_file, result)


def machine() -> dict[str, Any]:
    """What the figures were measured on; ``cores`` are those that this process may use."""
    return {
        "cpu": _cpu(),
        "cores": available_cores(),
        "system": platform.platform(terse=True),
        "python": platform.python_version(),
    }


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """The rows in columns, as Markdown."""
    columns = list(dict.fromkeys(column for row in rows for column in row))
    cells = [columns, *([_cell(row.get(column)) for column in columns] for row in rows)]
    widths = [max(len(row[index]) for row in cells) for index in range(len(columns))]
    lines = [
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |" for row in cells
    ]
    return "\n".join([lines[0], "|" + "|".join("-" * (width + 2) for width in widths) + "|", *lines[1:]])


def _cell(value: Any) -> str:
    return "" if value is None else f"{value:.4g}" if isinstance(value, float) else str(value)


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "missing"
