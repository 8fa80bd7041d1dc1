"""From adapter to GGUF files: merged, converted, quantised, compared with the original."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

from pipelines.artifacts import MANIFEST, Artifact, alone, load, seal, writing
from pipelines.environment import Environment
from pipelines.errors import ArtifactError, ConfigError, ExportError
from pipelines.evaluation.classifier import Classifier, base_folder, load_classifier
from pipelines.evaluation.generation import ChatModel
from pipelines.evaluation.settings import EvaluationSettings
from pipelines.fingerprint import file_sha256, fingerprint
from pipelines.labels.examples import Example, read_split
from pipelines.prompt import Message, fullest_prompt, render
from pipelines.release.adapter_gguf import adapter_to_gguf
from pipelines.release.bundle import base_name
from pipelines.release.gguf import Header, convert, converter_root, disk_needed, quantise
from pipelines.release.imatrix import importance
from pipelines.release.parity import compare, plot
from pipelines.release.parity_chats import compare_chats, load_reference, plot_chats
from pipelines.release.settings import Quantisation, ReleaseSettings

EXPORTER = "5"
"""Version of what this module makes of equal inputs; part of the fingerprint."""

PACKAGES = ("torch", "transformers", "peft", "auto-round", "gguf", "llama-cpp-python")
"""What decides the bytes of the files."""

ROUND = 256
"""Context lengths are multiples of so many tokens."""

Files = dict[Quantisation, tuple[Path, Header]]


def export(
    adapter: Artifact,
    training_set: Artifact,
    *,
    settings: ReleaseSettings,
    folder: Path,
    progress: Callable[[str], None],
    evaluation: EvaluationSettings = EvaluationSettings(),  # noqa: B008 - frozen
) -> Artifact:
    """Make ``<folder>/<fingerprint>``: GGUF files, ``parity.json``, ``parity.png`` and the manifest.

    Of a chat model also ``chat_template.jinja``. Equal inputs give the same fingerprint, and an export that exists is
    returned as it is. A failed comparison is an artifact too, whose manifest says why.

    Raises:
        ArtifactError: an input is altered, or the adapter was trained on another training set.
        ExportError: the model cannot be merged or converted faithfully, or the disk is full.
        ConfigError: ``settings.serve`` is not among the quantisations, or ``LLAMA_CPP_ROOT`` holds no converter.
        LockedError: another process exports into ``folder``.
    """
    if settings.serve not in settings.quantisations:
        raise ConfigError(
            f"serve {settings.serve!r} is not written; quantisations: {', '.join(settings.quantisations)}"
        )
    adapter, training_set = load(adapter.path), load(training_set.path)
    task = adapter.manifest.get("task", "classify")
    trained_on = adapter.manifest["training_set"]
    if trained_on != training_set.fingerprint:
        raise ArtifactError(
            f"{adapter.path} was trained on the training set {trained_on}, not on {training_set.fingerprint}; "
            "materialise lora_adapter again"
        )
    versions = exporter_versions()
    key = fingerprint(
        "gguf_model",
        EXPORTER,
        adapter.fingerprint,
        adapter.manifest["files"],
        adapter.manifest.get("prompt"),
        training_set.fingerprint,
        settings.model_dump(mode="json", exclude={"hub", "ollama", "keep_versions"}),
        evaluation.model_dump(mode="json") if task == "generate" else None,
        versions,
    )
    with alone(folder / ".export.lock", "export"):
        if (folder / key / MANIFEST).is_file():
            try:
                return load(folder / key)
            except ArtifactError:
                progress(f"{folder / key} was altered: exporting again")
        for left in folder.glob(".*.????????"):  # of exports that were killed
            shutil.rmtree(left, ignore_errors=True)
        with writing(folder / key) as scratch:
            base = base_folder(adapter)
            _check_disk(scratch, base, adapter.path, settings)
            if task == "generate":
                facts = _export_chat(adapter, training_set, base, settings, evaluation, scratch, progress)
            else:
                facts = _export_classifier(adapter, training_set, base, settings, scratch, progress)
            verdict = facts["parity"]
            progress("parity passed" if verdict["passed"] else f"parity failed: {'; '.join(verdict['reasons'])}")
            manifest = {
                "fingerprint": key,
                "kind": "gguf_model",
                "task": task,
                "use_case": adapter.manifest["use_case"],
                "adapter": adapter.fingerprint,
                "adapter_files": adapter.manifest["files"],
                "training_set": training_set.fingerprint,
                "base_licence": base_licence(base),
                "settings": settings.model_dump(mode="json"),
                "exporter": EXPORTER,
                "versions": versions,
            }
            seal(scratch, {**manifest, **facts})
        return load(folder / key)


def exporter_versions() -> dict[str, str]:
    """Versions of what decides the bytes of the files; of a converter by ``LLAMA_CPP_ROOT`` the hash of its code.

    Raises:
        ConfigError: ``LLAMA_CPP_ROOT`` holds no converter.
    """
    found = {name: version(name) for name in PACKAGES}
    if (root := Environment().llama_cpp_root) is not None:
        code = converter_root(root) / "conversion"
        found["converter"] = fingerprint([[path.name, file_sha256(path)] for path in sorted(code.rglob("*.py"))])
    return found


def _export_classifier(
    adapter: Artifact,
    training_set: Artifact,
    base: Path,
    settings: ReleaseSettings,
    folder: Path,
    progress: Callable[[str], None],
) -> dict[str, Any]:
    """Write the files to ``folder`` and return what the manifest says of them and of the classifier."""
    facts, metadata = adapter.manifest, _metadata(adapter, training_set, base)
    original = load_classifier(adapter)
    config = _with_head(original)

    def converted(path: Path, file_type: Literal["F16", "BF16"]) -> Header:
        return convert(
            base,
            path,
            name=facts["use_case"],
            metadata=metadata,
            adapter=adapter.path,
            config=config,
            file_type=file_type,
        )

    texts = [row.text for row in read_split(training_set, "train")] if settings.importance_matrix else []
    files = _quantised(facts, settings, folder, converted, texts, progress)
    parity = compare(original, read_split(training_set, "test"), files, settings=settings, progress=progress)
    found = {name: asdict(value) for name, value in parity.quantisations.items()}
    verdict = {"passed": parity.passed, "reasons": list(parity.reasons)}
    report = {**verdict, "rows": parity.rows, "merged": parity.merged, "tokens": parity.tokens, "quantisations": found}
    _write_report(folder, report, plot(parity))
    return {
        "categories": facts["categories"],
        "multi_label": facts["multi_label"],
        "thresholds": facts["thresholds"],
        "calibration": facts.get("calibration"),
        "abstain_below": facts["settings"].get("abstain_below", 0.0),
        "maximum_tokens": facts["settings"]["maximum_tokens"],
        "quantisations": found,
        "merged": parity.merged,
        "held_out_rows": parity.rows,
        "parity": verdict,
    }


def _with_head(classifier: Classifier) -> dict[str, Any]:
    """What its classification head changes of the base's configuration."""
    config = classifier.model.config
    names = dict(enumerate(classifier.categories))
    return {
        "num_hidden_layers": config.num_hidden_layers,  # one more where the mean is read
        "pad_token_id": config.pad_token_id,  # a decoder's head reads the token before it
        "id2label": names,
        "label2id": {name: index for index, name in names.items()},
        "problem_type": "multi_label_classification" if classifier.multi_label else "single_label_classification",
    }


def _export_chat(
    adapter: Artifact,
    training_set: Artifact,
    base: Path,
    settings: ReleaseSettings,
    evaluation: EvaluationSettings,
    folder: Path,
    progress: Callable[[str], None],
) -> dict[str, Any]:
    """Write the files to ``folder`` and return what the manifest says of them and of the chat model.

    Weights are merged on their way from the base into the 16-bit file: no merged checkpoint lies on the disk.
    """
    facts = adapter.manifest
    model = load_reference(adapter, base, progress)  # its weights are read when it first runs
    rows = [row for row in read_split(training_set, "test") if row.origin in evaluation.origins]
    prompts = [render(model.tokenizer, model.chat(row)) for row in rows]
    metadata = _metadata(adapter, training_set, base)

    def converted(path: Path, file_type: Literal["F16", "BF16"]) -> Header:
        return convert(
            base,
            path,
            name=facts["use_case"],
            metadata=metadata,
            adapter=adapter.path,
            file_type=file_type,
            texts=prompts,
        )

    trained = read_split(training_set, "train") if settings.importance_matrix else []
    texts = [
        render(model.tokenizer, [*model.chat(row), Message("assistant", row.answer)], answer=True) for row in trained
    ]
    files = _quantised(facts, settings, folder, converted, texts, progress)
    (folder / "chat_template.jinja").write_bytes(str(model.tokenizer.chat_template).encode())
    parity = compare_chats(
        adapter, model, training_set, rows, files, settings=settings, evaluation=evaluation, progress=progress
    )
    budget = prompt_budget(model, rows, prompts, next(iter(files.values()))[1].context_length, evaluation)
    for line in budget.warnings:
        progress(line)
    reasons = [*parity.reasons, *budget.reasons]
    found = {name: asdict(value) for name, value in parity.quantisations.items()}
    verdict = {"passed": not reasons, "reasons": reasons}
    report = {
        **verdict,
        "rows": parity.rows,
        "rows_left_out": parity.left_out,
        "next_tokens": parity.places,
        "arithmetic": parity.arithmetic,
        "metric": parity.metric,
        "merged": parity.merged,
        "tokens": parity.tokens,
        "warnings": budget.warnings,
        "quantisations": found,
    }
    _write_report(folder, report, plot_chats(parity))
    return {
        "prompt": facts["prompt"],
        "template_hash": facts["template_hash"],
        "stops": [model.tokenizer.decode([token]) for token in model.end_tokens],
        "maximum_tokens": facts.get("effective", {}).get("maximum_tokens") or facts["settings"]["maximum_tokens"],
        "maximum_answer_tokens": budget.answer_tokens,
        "context_length": budget.context_length,
        "longest_prompt": budget.longest_prompt,
        "quantisations": found,
        "merged": parity.merged,
        "metric": parity.metric,
        "held_out_rows": parity.rows,
        "adapter_gguf": _adapter_alone(adapter, base, metadata, folder, progress) if settings.adapter_gguf else None,
        "parity": verdict,
        "warnings": budget.warnings,
    }


def _adapter_alone(
    adapter: Artifact, base: Path, metadata: Mapping[str, str], folder: Path, progress: Callable[[str], None]
) -> dict[str, Any]:
    """The adapter's own file, or why there is none: people can take the merged ones."""
    path = folder / f"{adapter.manifest['use_case']}-adapter-F16.gguf"
    progress("converting the adapter alone to GGUF")
    try:
        adapter_to_gguf(adapter.path, base, path, name=adapter.manifest["use_case"], metadata=metadata)
    except ExportError as error:
        progress(str(error))
        said = str(error)  # published: with no folder of this machine
        for place, name in ((path, path.name), (adapter.path, "the adapter"), (base, "the base")):
            said = said.replace(str(place), name)
        return {"refused": said}
    return {"file": path.name, "size": path.stat().st_size}


@dataclass(frozen=True, slots=True)
class PromptBudget:
    """How many tokens a served model has to hold."""

    context_length: int
    longest_prompt: int
    """Held out, with ``prompt.context_tokens`` of retrieved text where the use case retrieves."""
    answer_tokens: int
    """Most of an answer."""
    warnings: list[str]
    reasons: list[str]
    """Why nothing can be served so."""


def prompt_budget(
    model: ChatModel,
    rows: Sequence[Example],
    prompts: Sequence[str],
    window: int | None,
    evaluation: EvaluationSettings,
) -> PromptBudget:
    """The longest held-out prompt, with as much retrieved as ever is, and the longest answer, within ``window``."""
    lengths = (
        fullest_prompt(model.prompt, prompt, row.context, count_tokens=model.count_tokens)
        for row, prompt in zip(rows, prompts, strict=True)
    )
    longest, answer = max(lengths, default=0), evaluation.maximum_answer_tokens
    window = window or 1 << 30
    wanted = -(-(longest + answer) // ROUND) * ROUND
    if wanted <= window:
        return PromptBudget(wanted, longest, answer, [], [])
    room = min(answer, window - longest)
    said = (
        f"prompts of up to {longest} tokens (prompt.context_tokens of {model.prompt.context_tokens} allowed for) and "
        f"answers of up to {answer} do not fit the {window} tokens that the base was made for"
    )
    if room < 1:
        return PromptBudget(window, longest, 1, [], [f"{said}: choose fewer prompt.context_tokens, or another base"])
    warnings = [f"{said}: answers end at {room}"] if room < answer else []
    return PromptBudget(window, longest, room, warnings, [])


def _quantised(
    facts: Mapping[str, Any],
    settings: ReleaseSettings,
    folder: Path,
    converted: Callable[[Path, Literal["F16", "BF16"]], Header],
    texts: Sequence[str],
    progress: Callable[[str], None],
) -> Files:
    """The files that ``settings`` ask for, in that order, all made from one of 16 bits.

    From F16, also where the base is in bf16: it has 11 significant bits where bf16 has 8, so it holds such a base's
    weights as they are and what the adapter adds more exactly. From BF16 where that alone is asked for, as for a base
    with numbers beyond the range of F16, which cannot be converted to it. With ``texts``, what is below 8 bits is
    weighed by what they make the model compute.
    """
    written = settings.quantisations
    source: Literal["F16", "BF16"] = "BF16" if "BF16" in written and "F16" not in written else "F16"

    def path_of(name: str) -> Path:
        return folder / f"{facts['use_case']}-{name}.gguf"

    sixteen: list[Literal["F16", "BF16"]] = [source]
    if source == "F16" and "BF16" in written:
        sixteen.append("BF16")
    made: Files = {}
    for name in sixteen:
        progress(f"converting to GGUF ({name})")
        made[name] = (path_of(name), converted(path_of(name), name))
    weighed = None
    if texts and set(written) - {"F16", "BF16", "Q8_0"}:
        encoder = facts.get("task", "classify") == "classify"
        weighed = importance(made[source][0], texts, progress=progress, encoder=encoder)
    for quantisation in written:
        if quantisation not in made:
            progress(f"quantising to {quantisation}")
            header = quantise(
                made[source][0],
                path_of(quantisation),
                quantisation,
                facts.get("categories"),
                importance=None if quantisation == "Q8_0" else weighed,
            )
            made[quantisation] = (path_of(quantisation), header)
    if source not in written:
        made[source][0].unlink()
    return {name: made[name] for name in written}


def _write_report(folder: Path, report: Mapping[str, Any], picture: bytes) -> None:
    (folder / "parity.json").write_text(json.dumps(report, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")
    (folder / "parity.png").write_bytes(picture)


def _metadata(adapter: Artifact, training_set: Artifact, base: Path) -> dict[str, str]:
    """What every file says of where it comes from."""
    facts = adapter.manifest
    return {
        "freshet.adapter": adapter.fingerprint,
        "freshet.base_model": base_name(facts["base_model"]),
        "freshet.base_revision": facts["base_revision"] or "bundled or local",
        "freshet.base_files": fingerprint(facts["base_files"]),
        "freshet.training_set": training_set.fingerprint,
        "general.license": base_licence(base),
    }


def base_licence(folder: Path) -> str:
    """The licence that a base model's own card states, as the Hub writes it, or ``unknown``."""
    card = folder / "README.md"
    front = re.match(r"---\n(.*?)\n---", card.read_text(encoding="utf-8"), re.DOTALL) if card.is_file() else None
    if front is None:
        return "unknown"
    import yaml

    try:
        facts = yaml.safe_load(front.group(1))
    except yaml.YAMLError:  # somebody else's card: what it says cannot be known, and holds up nothing
        return "unknown"
    return str(facts.get("license") or "unknown") if isinstance(facts, dict) else "unknown"


def _check_disk(folder: Path, base: Path, adapter: Path, settings: ReleaseSettings) -> None:
    beside = sum(path.stat().st_size for path in adapter.glob("*.safetensors"))
    needed = disk_needed(base, settings.quantisations, adapter=adapter) + beside
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise ExportError(
            f"the export needs up to {needed / 1e9:.3g} GB in {folder.parent}, and {free / 1e9:.3g} GB are free: "
            "make room, move FRESHET_HOME, or leave out some of release.quantisations"
        )
