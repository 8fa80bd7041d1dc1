"""What a published version contains beside its GGUF files, written from the manifests alone.

Equal inputs give equal bytes: nothing in a bundle says when, where or by whom it was made, and a local base model is
known by its name and its hashes only.
"""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

from pipelines.artifacts import MANIFEST, Artifact
from pipelines.errors import ArtifactError, ExportError
from pipelines.fingerprint import folder_sha256s, text_hash, write_json_atomically
from pipelines.prompt import AnswerFormat
from pipelines.release.card import Beside, base_name, base_on_the_hub, model_card, public_manifest, run_guide
from pipelines.release.gguf import read_header
from pipelines.release.grammar import answer_schema, grammar
from pipelines.release.modelfile import adapter_modelfile, modelfile

__all__ = ["SUMS", "base_name", "base_on_the_hub", "bundle"]

SUMS = "SHA256SUMS"


def bundle(folder: Path, gguf: Artifact, adapter: Artifact, report: Artifact, *, version: str) -> None:
    """Fill ``folder``: the files of ``gguf``, ``adapter/`` with its own manifest, and what people need to run them.

    ``README.md`` (the card), ``run.md``, ``evaluation.json`` and ``SHA256SUMS`` are always there; ``Modelfile`` unless
    Ollama cannot render the prompts that a chat model was trained with, ``Modelfile.adapter`` where there is an adapter
    GGUF too, ``grammar.gbnf`` and ``answer.schema.json`` where an answer format is set (the schema alone where no
    grammar can enforce it). The card says why something is missing. All is flushed to the disk, and made read-only.

    Raises:
        ArtifactError: a chat template is not the one trained with.
        ExportError: the disk has no room for it.
    """
    copied = [gguf.path / name for name in gguf.manifest["files"]] + [*adapter.path.rglob("*")]
    needed, free = sum(path.stat().st_size for path in copied) + (1 << 20), shutil.disk_usage(folder).free
    if free < needed:
        raise ExportError(
            f"publishing copies {needed / 1e9:.3g} GB to {folder.parent}, and {free / 1e9:.3g} GB are free: make room, "
            f"remove old versions (python -m pipelines.release prune {gguf.manifest['use_case']} --keep 1), or leave "
            "out some of release.quantisations"
        )
    beside = _beside(gguf, adapter)
    for name in gguf.manifest["files"]:
        shutil.copyfile(gguf.path / name, folder / name)
    shutil.copytree(adapter.path, folder / "adapter", copy_function=shutil.copyfile)
    write_json_atomically(folder / "adapter" / MANIFEST, public_manifest(adapter))
    (folder / "evaluation.json").write_bytes((report.path / MANIFEST).read_bytes())
    texts = {
        "README.md": model_card(gguf, adapter, report, beside, version=version),
        "run.md": run_guide(gguf, adapter, beside, version=version),
        "Modelfile": beside.modelfile,
        "Modelfile.adapter": beside.adapter_modelfile,
        "grammar.gbnf": beside.grammar,
        "answer.schema.json": beside.answer_schema,
    }
    for name, text in texts.items():
        if text is not None:
            (folder / name).write_text(text, encoding="utf-8", newline="\n")
    sums = folder_sha256s(folder)
    (folder / SUMS).write_text("".join(f"{sums[name]}  {name}\n" for name in sorted(sums)), encoding="utf-8")
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            path.chmod(0o444)
            with path.open("rb") as file:
                os.fsync(file.fileno())


def _beside(gguf: Artifact, adapter: Artifact) -> Beside:
    """Texts of the files that not every version can have."""
    facts = gguf.manifest
    if facts.get("task", "classify") == "classify":
        return Beside(modelfile=modelfile(gguf, adapter, None))
    template = gguf.path / "chat_template.jinja"
    if text_hash(template.read_bytes().decode("utf-8")) != facts["template_hash"]:
        raise ArtifactError(f"{template} is not the chat template that the model was trained with; export it again")
    header = read_header(gguf.path / facts["quantisations"][facts["settings"]["serve"]]["file"])
    ollama, ollama_adapter, rules, schema = None, None, None, None
    why: dict[str, str] = {}
    try:
        ollama = modelfile(gguf, adapter, header)
        if "file" in (facts.get("adapter_gguf") or {}):
            ollama_adapter = adapter_modelfile(gguf, adapter, header)
    except ExportError as error:
        why["Modelfile"] = str(error)
    if facts["prompt"].get("answer_format"):
        answer_format = AnswerFormat.model_validate(facts["prompt"]["answer_format"])
        schema = json.dumps(answer_schema(answer_format), ensure_ascii=False, indent=2) + "\n"
        try:
            rules = grammar(answer_format)
        except ExportError as error:
            why["grammar.gbnf"] = str(error)
    return Beside(ollama, ollama_adapter, rules, schema, why)
