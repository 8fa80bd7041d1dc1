"""Ollama's Modelfiles of a published model, and how Ollama reads them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pipelines.artifacts import Artifact
from pipelines.errors import ArtifactError, ExportError
from pipelines.prompt import Message, template_hash
from pipelines.release.card import base_name
from pipelines.release.gguf import Header
from pipelines.release.gotemplate import GoTemplate, go_template
from pipelines.release.tokens import load_tokenizer

COMMANDS = ("from", "license", "template", "system", "adapter", "parameter")


def modelfile(gguf: Artifact, adapter: Artifact, header: Header | None) -> str:
    """The Modelfile that serves the merged model; for a classifier it says what little means anything for one.

    ``header`` is that of the served file; a classifier's is not needed.

    Raises:
        ExportError: Ollama cannot render the prompts that the model was trained with, with the reason.
        ArtifactError: the chat template of the adapter, the file and the manifest are not one.
    """
    facts = gguf.manifest
    served = facts["quantisations"][facts["settings"]["serve"]]["file"]
    if header is not None:
        return _chat_modelfile(gguf, adapter, header, [f"FROM ./{served}"])
    return (
        "# This file holds a text classifier (pooling type RANK), not a model that writes text. There is no template,\n"
        "# no stop token and nothing to chat with: what applies is the file, and how many tokens it was trained on.\n"
        "# Ollama has no call that returns label scores: use Freshet's GgufClassifier, or llama.cpp.\n"
        f"FROM ./{served}\n"
        f"PARAMETER num_ctx {facts['maximum_tokens']}\n"
    )


def adapter_modelfile(gguf: Artifact, adapter: Artifact, header: Header) -> str:
    """The Modelfile for people who hold the base already: its files in ./base, and the adapter's GGUF.

    Raises:
        ExportError, ArtifactError: as ``modelfile``.
    """
    base, revision = base_name(adapter.manifest["base_model"]), adapter.manifest["base_revision"]
    where = f"{base}, revision {revision}" if revision else f"{base}, with the hashes in adapter/manifest.json"
    opening = [
        "# ./base stands for the model that the adapter was trained on, unquantised: a folder of safetensors, or a",
        f"# GGUF file, of {where}. On any other base the adapter says nonsense.",
        "FROM ./base",
        f"ADAPTER ./{gguf.manifest['adapter_gguf']['file']}",
    ]
    return _chat_modelfile(gguf, adapter, header, opening)


def parsed(text: str) -> list[tuple[str, str]]:
    """Commands of a Modelfile and their arguments, read as Ollama's parser does; parameters by their own name.

    A value ends at the first line's end where its quotes are closed, and what cannot be printed is dropped.

    Raises:
        ExportError: Ollama would refuse it.
    """
    commands: list[tuple[str, str]] = []
    at = 0
    while at < len(text):
        if text[at] == "#":
            at = _line_end(text, at)
        elif text[at] in " \t\r\n":
            at += 1
        else:
            name, at = _word(text, at)
            if name.lower() not in COMMANDS:
                raise ExportError(f"{name!r} is no command of a Modelfile")
            name = "model" if name.lower() == "from" else name.lower()
            if name == "parameter":
                name, at = _word(text, at)
            value, at = _value(text, at)
            commands.append((name, value))
    if not any(name == "model" for name, _ in commands):
        raise ExportError("the Modelfile has no FROM")
    return commands


def _chat_modelfile(gguf: Artifact, adapter: Artifact, header: Header, opening: Sequence[str]) -> str:
    facts: Mapping[str, Any] = gguf.manifest
    tokenizer = load_tokenizer(adapter.path)
    hashes = {template_hash(tokenizer), facts["template_hash"], adapter.manifest["template_hash"]}
    if len(hashes) > 1 or header.chat_template != tokenizer.chat_template:
        raise ArtifactError(
            f"{adapter.path} and {gguf.path} hold other chat templates than their manifests state; export again"
        )

    def render(chat: Sequence[Message], generate: bool) -> str:
        turns = [{"role": message.role, "content": message.content} for message in chat]
        # No Modelfile can write the date: a template that asks for it fails here.
        return str(
            tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=generate, strftime_now=None)
        )

    bos = tokenizer.convert_ids_to_tokens(header.special["bos"]) if header.add_bos else None
    wanted = facts["prompt"]["system"]
    template = go_template(render, bos=bos, system=wanted)
    system = _statement("SYSTEM", template.system) if wanted else ""
    if system is None:
        template = go_template(render, bos=bos, system=wanted, own_system=True)
    written = _statement("TEMPLATE", template.text)
    stops = {text: _statement("PARAMETER stop", text) for text in facts["stops"]}
    if written is None or None in stops.values():
        raise ExportError(f"no Modelfile can hold the chat template, or the stop texts {list(stops)!r}")
    lines = [
        f"# Makes the prompts of chat_template.jinja ({facts['template_hash'][:12]}), which it was trained with, as",
        f"# {template.chats} chats showed when this was written. Retrieved text has to be put into the question as",
        "# README.md says; Freshet does that.",
        *_remarks(template),
        *opening,
        written,
        *(["# The system text is inside the template: no SYSTEM line can hold it."] if system is None else [system]),
        "# Texts that end an answer.",
        *(line for line in stops.values() if line is not None),
        "# The longest prompt of the evaluation, with as much retrieved text as there may ever be, and an answer.",
        f"PARAMETER num_ctx {facts['context_length']}",
        f"PARAMETER num_predict {facts['maximum_answer_tokens']}",
        "# As in the evaluation: the likeliest token each time.",
        "PARAMETER temperature 0",
        "PARAMETER repeat_penalty 1",
    ]
    text = "\n".join(line for line in lines if line) + "\n"
    read = dict(parsed(text))
    if read.get("template") != template.text or (system and read.get("system") != template.system):
        raise ExportError("the Modelfile does not read back as it was written")
    return text


def _remarks(template: GoTemplate) -> list[str]:
    remarks = []
    if not template.keeps_space:
        remarks.append("# Space around a turn's text was taken away in training. Ollama leaves it: send none.")
    if not template.keeps_reasoning:
        remarks.append(
            "# The original takes reasoning (such as <think>…</think>) out of earlier answers. Ollama leaves"
        )
        remarks.append("# it: prompts are the same only where answers have none, or what calls the model takes it out.")
    if not template.takes_system:
        remarks.append("# The chat template knows no system text: one that is sent is not shown to the model.")
    return remarks


def _statement(command: str, value: str) -> str | None:
    """The line (or lines) that Ollama reads ``value`` from, or None where there is none."""
    plain = not set(value) & set('"\r\n')
    for quotes in ('"', '"""', "") if plain else ('"""', '"', ""):
        line = f"{command} {quotes}{value}{quotes}"
        try:
            read = parsed(f"FROM a\n{line}\nPARAMETER b c\n")
        except ExportError:
            continue
        if [one for _, one in read] == ["a", value, "c"]:
            return line
    return None


def _line_end(text: str, at: int) -> int:
    return next((place for place in range(at, len(text)) if text[place] in "\r\n"), len(text))


def _word(text: str, at: int) -> tuple[str, int]:
    end = at
    while end < len(text) and (text[end].isascii() and (text[end].isalnum() or text[end] == "_")):
        end += 1
    if end == at or end == len(text) or text[end] not in " \t":
        raise ExportError(f"a Modelfile needs a word and a space at {text[at : at + 20]!r}")
    return text[at:end], end + 1


def _value(text: str, at: int) -> tuple[str, int]:
    held = ""
    for place in range(at, len(text)):
        character = text[place]
        if character in "\r\n":
            value = _without_quotes(held.strip())
            if value is not None:
                return value, place + 1
        if character.isprintable() or character in "\r\n\t":
            held += character
    value = _without_quotes(held.strip())
    if value is None:
        raise ExportError(f"a Modelfile's value is never closed: {held[:40]!r}")
    return value, len(text)


def _without_quotes(value: str) -> str | None:
    """``value`` without quotes around it; None where they are not closed."""
    for quotes in ('"""', '"'):
        if value.startswith(quotes):
            closed = len(value) >= 2 * len(quotes) and value.endswith(quotes)
            return value[len(quotes) : -len(quotes)] if closed else None
    return value
