"""Answers and losses that a model gave before: one file of JSON lines a model, so that only what is new costs time."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from pathlib import Path
from typing import Any

from pipelines.artifacts import MANIFEST, load, seal, writing
from pipelines.errors import ArtifactError
from pipelines.evaluation.generation import Answer, ChatModel
from pipelines.evaluation.report import cell
from pipelines.fingerprint import fingerprint, text_hash
from pipelines.prompt import Message, render

ANSWERS = "answers"
"""Folder beside evaluation reports where answers are stored."""


def answers_of(
    model: ChatModel,
    chats: Sequence[Sequence[Message]],
    *,
    maximum_tokens: int,
    folder: Path,
    progress: Callable[[str], None],
) -> list[Answer]:
    """Greedy answers in the order of ``chats``; new ones are written to ``folder`` as they come.

    Raises:
        ArtifactError: a tensor of the adapter has no place in its base.
        ConfigError: not even one prompt fits the memory.
    """
    path = folder / f"{model.key}.jsonl"
    keys = [_key(model, chat) for chat in chats]
    held = {
        key: Answer(line["text"], line["stopped"], line["tokens"])
        for key, line in _read(path, "text").items()
        if line["maximum"] == maximum_tokens or (line["stopped"] and line["tokens"] <= maximum_tokens)
    }
    missing = sorted({key: number for number, key in enumerate(keys) if key not in held}.values())
    if len(missing) < len(chats):
        progress(f"{len(chats) - len(missing)} of {len(chats)} answers are known from before")

    def keep(found: Mapping[int, Answer]) -> None:
        new = {keys[missing[number]]: answer for number, answer in found.items()}
        held.update(new)
        _append(
            path,
            (
                {
                    "key": key,
                    "text": said.text,
                    "stopped": said.stopped,
                    "tokens": said.tokens,
                    "maximum": maximum_tokens,
                }
                for key, said in new.items()
            ),
        )

    if missing:
        model.answers(
            [chats[number] for number in missing], maximum_tokens=maximum_tokens, progress=progress, finished=keep
        )
    return [held[key] for key in keys]


def losses_of(model: ChatModel, chats: Sequence[Sequence[Message]], *, folder: Path) -> list[float | None]:
    """Mean loss of each chat's last answer (nats a token); None where the chat fills the model's window."""
    path = folder / f"{model.key}.jsonl"
    keys = [_key(model, chat, answer=True) for chat in chats]
    held = {key: line["loss"] for key, line in _read(path, "loss").items()}
    missing = [number for number, key in enumerate(keys) if key not in held]
    if missing:
        found = model.losses([chats[number] for number in missing])
        new = {keys[number]: loss if math.isfinite(loss) else None for number, loss in zip(missing, found, strict=True)}
        held.update(new)
        _append(path, ({"key": key, "loss": loss} for key, loss in new.items()))
    return [held[key] for key in keys]


def forget_others(folder: Path, models: Iterable[ChatModel]) -> None:
    """Delete what other models than these said."""
    keep = {f"{model.key}.jsonl" for model in models}
    for path in folder.glob("*.jsonl"):
        if path.name not in keep:
            path.unlink()


def stored_answers(folder: Path) -> int:
    """How many answers are stored in ``folder``, of all models."""
    return sum(len(_read(path, "text")) for path in folder.glob("*.jsonl"))


def erase_rows(report: Path, erased: AbstractSet[str], *, dry_run: bool) -> bool:
    """Take rows out of an evaluation report, by ``text_hash`` of their ids; whether there are any.

    What was measured and decided stands, and the report is sealed again as the same one. Where files of it had been
    altered it is not: all that shows rows is deleted, and the report stays refused.
    """
    kept: dict[str, list[str]] = {}
    shown: set[str] = set()
    for path in sorted(report.glob("*.jsonl")):
        lines = [(text, json.loads(text)) for text in path.read_text(encoding="utf-8").splitlines()]
        gone = [line for _, line in lines if text_hash(line["id"]) in erased]
        if gone:
            kept[path.name] = [text for text, line in lines if text_hash(line["id"]) not in erased]
            shown |= {
                f" | {cell(line['question'])} | {cell(line['reference'])} |" for line in gone if "question" in line
            }
    if not kept or dry_run:
        return bool(kept)
    samples = report / "samples.md"
    if samples.is_file():
        kept[samples.name] = [
            text for text in samples.read_text(encoding="utf-8").splitlines() if not any(row in text for row in shown)
        ]
    try:
        manifest = load(report).manifest
    except ArtifactError:
        for name in kept:
            (report / name).unlink()
        return True
    with writing(report) as scratch:
        shutil.copytree(report, scratch, dirs_exist_ok=True, ignore=shutil.ignore_patterns(MANIFEST, *kept))
        for name, lines_kept in kept.items():
            (scratch / name).write_text("".join(f"{text}\n" for text in lines_kept), encoding="utf-8", newline="\n")
        seal(scratch, {name: value for name, value in manifest.items() if name != "files"})
    return True


def _key(model: ChatModel, chat: Sequence[Message], *, answer: bool = False) -> str:
    return fingerprint(render(model.tokenizer, chat, answer=answer))


def _read(path: Path, field: str) -> dict[str, dict[str, Any]]:
    """Lines with ``field`` by their key; a line that was not written whole counts as missing."""
    found = {}
    for text in path.read_text(encoding="utf-8").split("\n") if path.is_file() else ():
        try:
            line = json.loads(text)
            if field in line:
                found[line["key"]] = line
        except (ValueError, KeyError, TypeError):
            continue
    return found


def _append(path: Path, lines: Iterable[Mapping[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8", newline="\n") as file:
        file.writelines("\n" + json.dumps(line, ensure_ascii=False) for line in lines)  # first, after a torn line
