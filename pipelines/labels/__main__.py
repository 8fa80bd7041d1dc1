"""``python -m pipelines.labels``: what a use case's labelled examples look like to us; deciding about single ones."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from pipelines.catalog import open_catalog
from pipelines.declaration import USE_CASES, Declaration, load_declaration
from pipelines.environment import Environment
from pipelines.errors import ConfigError, FreshetError
from pipelines.labels.examples import QUARANTINED, STATES
from pipelines.labels.reading import read_examples
from pipelines.labels.reading.preview import Preview, preview
from pipelines.labels.review import Decision, Listed, decide, import_edited, listed, undo
from pipelines.labels.settings import LabelSettings

_SHOWN_CHARACTERS = 300  # of one turn


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; 0 when done, 2 when it cannot be."""
    parser = argparse.ArgumentParser(prog="python -m pipelines.labels", description="A use case's labelled examples.")
    commands = parser.add_subparsers(dest="command", required=True)

    def command(name: str, does: str) -> argparse.ArgumentParser:
        made = commands.add_parser(name, help=does)
        made.add_argument("use_case")
        made.add_argument("--json", action="store_true", help="print JSON")
        return made

    look = command("preview", "what is understood of the rows that there are; nothing is stored")
    look.add_argument("--limit", type=int, default=5, help="how many examples are shown (default: 5)")
    show = command("list", "examples in quarantine, or in another state, newest first")
    show.add_argument("--limit", type=int, default=20, help="how many are shown (default: 20)")
    export = command("export", "the same as lines of JSON to edit: change 'row', or add a 'decision' and a 'note'")
    for each in (show, export):
        each.add_argument("--state", choices=STATES, default=QUARANTINED, help="default: quarantined")
        each.add_argument("--reason", help="only with this in a reason or warning")
        each.add_argument("--location", help="only from here: the beginning of file:row")
    take = command("import", "decide what an edited export says")
    release = command("release", "accept an example despite its reasons")
    reject = command("reject", "keep an example out for good")
    edit = command("edit", "put another row in an example's place")
    back = command("undo", "take a decision back")
    for each in (release, reject, edit, back):
        each.add_argument("example", help="its id, or the beginning of it")
    edit.add_argument("row", help="the row as a JSON object")
    for each in (release, reject, edit):
        each.add_argument("--note", help="why")
    for each in (release, reject, edit, take):
        each.add_argument("--author", help="who decides")
    for each in (export, take):
        each.add_argument("file", type=Path)
    given = parser.parse_args(arguments)
    try:
        answer, lines = _previewing(given) if given.command == "preview" else _reviewing(given)
    except FreshetError as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)  # noqa: T201 a command line speaks by printing
        return 2
    print(json.dumps(answer, ensure_ascii=False, indent=2) if given.json else "\n".join(lines))  # noqa: T201 likewise
    return 0


def _declared(use_case: str) -> tuple[Declaration, LabelSettings]:
    declaration = load_declaration(use_case, USE_CASES)
    if declaration.labels is None:
        raise ConfigError(f"use case {use_case!r} has no labelled examples: give it 'labels'")
    return declaration, declaration.labels


def _previewing(given: argparse.Namespace) -> tuple[Any, Iterator[str]]:
    declaration, labels = _declared(given.use_case)
    base = declaration.base(Environment(), USE_CASES / given.use_case)
    found = preview(read_examples(labels, base=base, task=declaration.task), given.limit)
    return asdict(found), _preview_lines(found)


def _reviewing(given: argparse.Namespace) -> tuple[Any, list[str]]:
    declaration, labels = _declared(given.use_case)
    catalog = open_catalog(Environment().catalog_url)
    try:
        return _REVIEWS[given.command](catalog, given, {"settings": labels, "task": declaration.task})
    finally:
        catalog.dispose()


def _list(catalog: Any, given: argparse.Namespace, _: Mapping[str, Any]) -> tuple[Any, list[str]]:
    found = _found(catalog, given, given.limit)
    lines = []
    for each in found:
        lines += [f"{each.example_id[:12]} {each.location}: {'; '.join([*each.reasons, *each.warnings]) or each.state}"]
        lines += [f"  {each.raw if len(each.raw) <= _SHOWN_CHARACTERS else f'{each.raw[:_SHOWN_CHARACTERS]}…'}"]
    return [asdict(each) for each in found], lines or [f"no example is {given.state} for that reason and place"]


def _export(catalog: Any, given: argparse.Namespace, _: Mapping[str, Any]) -> tuple[Any, list[str]]:
    found = _found(catalog, given, None)
    given.file.write_text("".join(f"{each.as_edited()}\n" for each in found), encoding="utf-8")
    return {"exported": len(found), "file": str(given.file)}, [f"{len(found)} examples in {given.file}"]


def _found(catalog: Any, given: argparse.Namespace, limit: int | None) -> list[Listed]:
    wanted = {"state": given.state, "reason": given.reason, "location": given.location}
    return listed(catalog, given.use_case, **wanted, limit=limit)


def _import(catalog: Any, given: argparse.Namespace, of_use_case: Mapping[str, Any]) -> tuple[Any, list[str]]:
    try:
        text = given.file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{given.file} cannot be read: {error}") from error
    counts = import_edited(catalog, given.use_case, text.split("\n"), **of_use_case, author=given.author)
    return counts, [f"{_counted(counts) or 'no rows'}; {_NEXT}"]


def _decide(catalog: Any, given: argparse.Namespace, of_use_case: Mapping[str, Any]) -> tuple[Any, list[str]]:
    said = {"author": given.author, "note": given.note}
    if given.command == "edit":
        said |= {"replacement": given.row}
    decision: Decision = "replace" if given.command == "edit" else given.command
    example_id = decide(catalog, given.use_case, given.example, decision, **of_use_case, **said)
    return {"example": example_id, "decision": decision}, [f"{decision}: {example_id[:12]}; {_NEXT}"]


def _undo(catalog: Any, given: argparse.Namespace, _: Mapping[str, Any]) -> tuple[Any, list[str]]:
    example_id = undo(catalog, given.use_case, given.example)
    return {"example": example_id, "decision": None}, [f"judged again: {example_id[:12]}; {_NEXT}"]


_NEXT = "it takes effect when labelled_examples is materialised next"
_REVIEWS: Mapping[str, Callable[[Any, argparse.Namespace, Mapping[str, Any]], tuple[Any, list[str]]]] = {
    "list": _list,
    "export": _export,
    "import": _import,
    "release": _decide,
    "reject": _decide,
    "edit": _decide,
    "undo": _undo,
}


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
