"""``python -m pipelines.labels``: what a use case's labelled examples look like to us."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict

from pipelines.declaration import USE_CASES, load_declaration
from pipelines.environment import Environment
from pipelines.errors import ConfigError, FreshetError
from pipelines.labels.reading import read_examples
from pipelines.labels.reading.preview import Preview, preview

_SHOWN_CHARACTERS = 300  # of one turn


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; 0 when done, 2 when it cannot be."""
    parser = argparse.ArgumentParser(prog="python -m pipelines.labels", description="A use case's labelled examples.")
    commands = parser.add_subparsers(dest="command", required=True)
    look = commands.add_parser("preview", help="what is understood of the rows that there are; nothing is stored")
    look.add_argument("--limit", type=int, default=5, help="how many examples are shown (default: 5)")
    for command in (look,):
        command.add_argument("use_case")
        command.add_argument("--json", action="store_true", help="print JSON")
    given = parser.parse_args(arguments)
    try:
        found = _previewed(given.use_case, given.limit)
        answer, lines = asdict(found), _preview_lines(found)
    except FreshetError as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)  # noqa: T201 a command line speaks by printing
        return 2
    print(json.dumps(answer, ensure_ascii=False, indent=2) if given.json else "\n".join(lines))  # noqa: T201 likewise
    return 0


def _previewed(use_case: str, limit: int) -> Preview:
    declaration = load_declaration(use_case, USE_CASES)
    if declaration.labels is None:
        raise ConfigError(f"use case {use_case!r} has no labelled examples: give it 'labels'")
    base = declaration.base(Environment(), USE_CASES / use_case)
    return preview(read_examples(declaration.labels, base=base, task=declaration.task), limit)


def _preview_lines(found: Preview) -> Iterator[str]:
    for file in found.files:
        yield f"{file.file}: {file.rows} rows ({_counted(file.shapes) or 'none'})"
        for column, meaning in file.columns.items():
            yield f"  {column} = {meaning}"
        if file.ignored:
            yield f"  ignored: {', '.join(file.ignored)}"
        for problem, count in file.problems.items():
            yield f"  {count} cannot be read: {problem}"
    for example in found.examples:
        yield ""
        yield f"{example.location} ({example.shape})"
        for role, text in example.turns:
            cut = text if len(text) <= _SHOWN_CHARACTERS else f"{text[:_SHOWN_CHARACTERS]}…"
            first, *rest = cut.splitlines() or [""]
            yield f"  {role}: {first}"
            yield from (f"    {line}" for line in rest)


def _counted(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{count} {name}" for name, count in counts.items())


if __name__ == "__main__":
    sys.exit(main())
