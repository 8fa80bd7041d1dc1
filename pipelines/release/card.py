"""The model card and the commands that start a published version, written from the manifests alone."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_args

from pipelines.artifacts import Artifact
from pipelines.models import BUNDLED, BUNDLED_CHAT
from pipelines.release.settings import Quantisation

HUB_NAMES = {BUNDLED: "sentence-transformers/all-MiniLM-L6-v2"}
"""Where bundled bases live on the Hub."""


@dataclass(frozen=True, slots=True)
class Beside:
    """Texts beside the GGUF files of a version; None where there is none, for a reason that ``why`` may hold."""

    modelfile: str | None
    adapter_modelfile: str | None = None
    grammar: str | None = None
    answer_schema: str | None = None
    why: Mapping[str, str] = field(default_factory=dict)
    """By file name, for what is missing against expectation."""


def base_on_the_hub(base_model: str) -> str | None:
    """A base model's Hub id, or None for a local folder, whose path is nobody else's business."""
    if base_model in HUB_NAMES:
        return HUB_NAMES[base_model]
    if Path(base_model).expanduser().is_dir() or not re.fullmatch(r"[A-Za-z0-9][\w.-]*/[\w.-]+", base_model):
        return None
    return base_model


def base_name(base_model: str) -> str:
    """A base model's name for others: its Hub id, or the name of its local folder, on one line."""
    return base_on_the_hub(base_model) or " ".join(Path(base_model).name.split())


def public_manifest(adapter: Artifact) -> dict[str, Any]:
    """The manifest of ``adapter`` as others may read it: a local base by its name, without its path."""
    path = str(adapter.manifest["base_model"])
    name = path if base_on_the_hub(path) else Path(path).name

    def public(value: Any) -> Any:
        if isinstance(value, Mapping):
            return {key: public(one) for key, one in value.items()}
        if isinstance(value, list | tuple):
            return [public(one) for one in value]
        return name if value == path else value

    return {key: public(value) for key, value in adapter.manifest.items()}


def model_card(gguf: Artifact, adapter: Artifact, report: Artifact, beside: Beside, *, version: str) -> str:
    """The card in Markdown, with the front matter that the Hub reads."""
    import yaml

    facts = gguf.manifest
    writes = facts.get("task", "classify") == "generate"
    front = _front(facts, adapter, version=version, task="text-generation" if writes else "text-classification")
    lines = [
        "---",
        yaml.safe_dump(front, allow_unicode=True, sort_keys=True).strip(),
        "---",
        "",
        f"# {facts['use_case']} {version}",
        "",
        *(_what_writes(facts) if writes else _what_classifies(facts)),
        "## Made from",
        "",
        "| what | value |",
        "|---|---|",
        *_table(_made_from(gguf, adapter, report)),
        "",
        *(_prompt(facts, beside) if writes else []),
        f"## Held-out results ({facts['held_out_rows']} rows)",
        "",
        *(_results_writing(facts) if writes else _results_classifying(facts)),
        "",
        "A K-quant needs rows that divide by 256; where a matrix has others, llama.cpp falls back to another type, as "
        "the column of tensors shows.",
        "",
        f"The gate let this version pass: {' '.join(report.manifest['verdict']['reasons']) or 'no objections.'}",
        "",
        "## Use",
        "",
        "`run.md` has the commands that start it. `adapter/` holds the LoRA adapter for peft, `SHA256SUMS` the hash of "
        "every file.",
        *_others(facts, beside),
        "",
        "## Limits",
        "",
        *(_limits_writing(facts, beside) if writes else _limits_classifying(gguf)),
        "",
    ]
    return "\n".join(lines)


def run_guide(gguf: Artifact, adapter: Artifact, beside: Beside, *, version: str) -> str:
    """The commands that start a version, in Markdown; run in its folder."""
    facts = gguf.manifest
    steps = _run_writing(facts, adapter, beside) if facts.get("task") == "generate" else _run_classifying(facts)
    return "\n".join([f"# Run {facts['use_case']} {version}", "", "In this folder:", "", *steps, ""])


def _front(facts: Mapping[str, Any], adapter: Artifact, *, version: str, task: str) -> dict[str, Any]:
    served = facts["quantisations"][facts["settings"]["serve"]]
    if task == "text-generation":
        tags = ["conversational"]
        metrics = [
            {"type": name, "name": name.replace("_", " "), "value": round(value, 4)}
            for name, value in _scores(served["scores"], facts["metric"]).items()
        ]
    else:
        tags = []
        metrics = [
            {"type": "accuracy", "value": round(served["accuracy"], 4)},
            {"type": "f1", "name": "micro F1", "value": round(served["micro_f1"], 4)},
        ]
    result = {
        "task": {"type": task},
        "dataset": {"name": f"{facts['use_case']}, held-out rows", "type": facts["training_set"][:16]},
        "metrics": metrics,
    }
    front: dict[str, Any] = {
        "library_name": "gguf",
        "pipeline_tag": task,
        "tags": ["freshet", "gguf", "llama.cpp", "lora", task, *tags],
        "model-index": [{"name": f"{facts['use_case']}-{version}", "results": [result]}],
    }
    if facts["base_licence"] != "unknown":
        front["license"] = facts["base_licence"]
    base = base_on_the_hub(adapter.manifest["base_model"])
    if base is not None:
        front |= {"base_model": base, "base_model_relation": "finetune"}
    return front


def _made_from(gguf: Artifact, adapter: Artifact, report: Artifact) -> dict[str, object]:
    trained = adapter.manifest
    base, lora, effective = trained["base_model"], trained["settings"]["lora"], trained["effective"]
    where = "comes with Freshet" if base == BUNDLED_CHAT else "a local folder"
    return {
        "base model": base_on_the_hub(base) or f"{base_name(base)} ({where})",
        "base revision": trained["base_revision"] or "fixed by the hashes in `adapter/manifest.json`",
        "licence of the base model": gguf.manifest["base_licence"],
        "method": f"{_VARIANTS.get(lora.get('variant', 'lora'), 'LoRA')}, rank {lora['rank']}, merged in float32",
        "training set": f"`{gguf.manifest['training_set']}`",
        "training rows": _rows(effective),
        "optimiser steps": effective["steps"],
        "adapter": f"`{adapter.fingerprint}`",
        "evaluation report": f"`{report.fingerprint}`",
    }


def _rows(effective: Mapping[str, Any]) -> str:
    before = effective.get("rows_before_refit")
    if before is None:
        return str(effective["rows"])
    return f"{effective['rows']}, and {before} in the training before, which validated on the others"


_VARIANTS = {"lora": "LoRA", "rslora": "rsLoRA", "dora": "DoRA"}


def _what_classifies(facts: Mapping[str, Any]) -> list[str]:
    return [
        f"Assigns {'any number' if facts['multi_label'] else 'one'} of {len(facts['categories'])} labels to a text of "
        f"up to {facts['maximum_tokens']} tokens; a longer text is cut.",
        "",
        f"Labels: {', '.join(map(_code, facts['categories']))}",
        "",
    ]


def _what_writes(facts: Mapping[str, Any]) -> list[str]:
    return [
        f"Answers in a chat, in up to {facts['maximum_answer_tokens']} tokens, within a context of "
        f"{facts['context_length']}. It was trained on how to answer; what is true is meant to come with the question.",
        "",
    ]


def _prompt(facts: Mapping[str, Any], beside: Beside) -> list[str]:
    prompt = facts["prompt"]
    lines = [
        "## The prompt it was trained with",
        "",
        f"`chat_template.jinja` (SHA-256 `{facts['template_hash']}`), which every GGUF file holds, renders the turns. "
        f"An answer ends with {' or '.join(_code(stop) for stop in facts['stops'])}.",
        "",
    ]
    if prompt["system"]:
        lines += ["The system text, wherever a chat brings none of its own:", "", *_fenced(prompt["system"])]
    else:
        lines += ["There is no system text.", ""]
    lines += [
        "The last user turn, where something was retrieved: `{context}` is the retrieved texts, the best first, each "
        f"as `[1] text`, with an empty line between, {prompt['context_tokens']} tokens at most; `{{question}}` is the "
        "question.",
        "",
        *_fenced(prompt["with_context"]),
        "Where nothing relevant was retrieved:",
        "",
        *_fenced(prompt["without_context"]),
        "and the right answer then begins with:",
        "",
        *_fenced(prompt["refusal"]),
        "A use case that retrieves nothing asks the question alone.",
        "",
    ]
    if prompt.get("answer_format"):
        how = (
            "`grammar.gbnf` lets nothing else be written." if beside.grammar else "No grammar enforces it (see below)."
        )
        lines += [f"Every answer has the format of `answer.schema.json`. {how}", ""]
    return lines


def _results_classifying(facts: Mapping[str, Any]) -> list[str]:
    def scores(found: Mapping[str, float]) -> tuple[str, str]:
        return f"{found['accuracy']:.4f}", f"{found['micro_f1']:.4f}"

    return [
        "| file | size (MB) | tensors | predicted as before export | accuracy | micro F1 |",
        "|---|---|---|---|---|---|",
        *_table({"merged, float32": ("", "", "", *scores(facts["merged"]))}),
        *_table(
            {
                f"`{found['file']}`": (*_size(found), f"{found['agreement']:.4f}", *scores(found))
                for found in _files(facts)
            }
        ),
    ]


def _results_writing(facts: Mapping[str, Any]) -> list[str]:
    names = [name for name in _scores(facts["merged"], facts["metric"]) if name != "stopped"]

    def scores(found: Mapping[str, float]) -> list[str]:
        return _shown(*(found.get(name) for name in names))

    columns = [
        "file", "size (MB)", "tensors", "next tokens as before export", "KL divergence (nats)",
        "largest difference of a logit", "answers equal", "ended by themselves",
        *(name.replace("_", " ") for name in names),
    ]  # fmt: skip
    return [
        f"| {' | '.join(columns)} |",
        "|---" * len(columns) + "|",
        *_table({"merged, float32": (*[""] * 6, *_shown(facts["merged"].get("stopped")), *scores(facts["merged"]))}),
        *_table(
            {
                f"`{found['file']}`": (
                    *_size(found),
                    f"{found['agreement']:.4f}",
                    f"{found['kl_divergence']:.2g}",
                    f"{found['max_logit_difference']:.2g}",
                    f"{found['answers_equal']:.4f}",
                    *_shown(found["stopped"]),
                    *scores(found["scores"]),
                )
                for found in _files(facts)
            }
        ),
        "",
        f"Answers are greedy. `{facts['metric']}` decides; `merged` is base and adapter in transformers, on the same "
        "rows.",
    ]


def _files(facts: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """What was measured of each file, the most exact first."""
    order = list(get_args(Quantisation))
    return [found for _, found in sorted(facts["quantisations"].items(), key=lambda item: order.index(item[0]))]


def _shown(*scores: float | None) -> list[str]:
    return ["" if score is None else f"{score:.4f}" for score in scores]


def _scores(found: Mapping[str, float], metric: str) -> dict[str, float]:
    """``found``, with what decides first."""
    return {name: found[name] for name in sorted(found, key=lambda name: (name != metric, name))}


def _others(facts: Mapping[str, Any], beside: Beside) -> list[str]:
    """About the files beside, and those that are missing."""
    lines = []
    alone = facts.get("adapter_gguf")
    if alone and "file" in alone:
        lines.append(
            f"- `{alone['file']}` ({alone['size'] / 1e6:.1f} MB) is the adapter alone, for people who hold the base: "
            "`llama-server -m base.gguf --lora` or `Modelfile.adapter`."
        )
    elif alone:
        lines.append(f"- The adapter alone is not here as GGUF: {_line(alone['refused'])}")
    if beside.grammar is not None:
        lines.append("- `grammar.gbnf` is the answer format for llama.cpp, `answer.schema.json` for other servers.")
    lines += [f"- There is no `{name}`: {_line(reason)}." for name, reason in beside.why.items()]
    return ["", *lines] if lines else []


def _limits_classifying(gguf: Artifact) -> list[str]:
    known = json.loads((gguf.path / "parity.json").read_text(encoding="utf-8"))["tokens"]["differences"]
    return [
        "- It knows these labels only, and answers from them alone.",
        "- It was measured on held-out rows of its own data; on other text, or other languages than the base model's, "
        "nothing is promised.",
        _calibration(gguf.manifest.get("calibration")),
        *(f"- {difference['known']}." for difference in known if difference["known"]),
    ]


def _limits_writing(facts: Mapping[str, Any], beside: Beside) -> list[str]:
    lines = [
        "- It can say what is wrong, above all where nothing was retrieved that answers the question.",
        "- It was measured on held-out rows of its own data, greedily, and on prompts as above; on other questions, "
        "other languages or at a higher temperature nothing is promised.",
        f"- Prompts of more than {facts['context_length'] - facts['maximum_answer_tokens']} tokens were not measured: "
        "shorten what was retrieved, never the system text.",
        "- Control tokens in questions and retrieved texts must not reach it as such; Freshet puts a space into them.",
    ]
    if beside.modelfile is not None:
        lines.append(
            "- Ollama joins turns of one role that follow each other, and drops the oldest turns of a chat that is too "
            "long."
        )
    return [*lines, *(f"- {_line(warning)}." for warning in facts.get("warnings") or ())]


def _calibration(found: Mapping[str, float] | None) -> str:
    if found is None:
        return "- Scores are not calibrated probabilities: there were too few validation rows to measure them on."
    shift = f" plus {found['bias']:.3f}" if found["bias"] else ""
    return (
        f"- Probabilities are calibrated on {found['rows']:.0f} validation rows: logits divided by "
        f"{found['temperature']:.3f}{shift}, before softmax or sigmoid. Freshet does that; llama.cpp gives raw scores."
    )


def _run_classifying(facts: Mapping[str, Any]) -> list[str]:
    served = facts["quantisations"][facts["settings"]["serve"]]["file"]
    return [
        "## Freshet",
        "",
        "Labels, by the thresholds and the calibration that were measured:",
        "",
        *_fenced(
            "from pathlib import Path\n\nfrom pipelines.release.classifier import GgufClassifier\n\n"
            f'print(GgufClassifier(Path("{served}")).predict(["a text"]))',
            "python",
        ),
        "## llama.cpp",
        "",
        "Raw scores of the labels:",
        "",
        *_fenced(f'llama-embedding -m ./{served} --pooling rank --embd-normalize -1 -p "a text"', "sh"),
        "## transformers and peft",
        "",
        "Labels from base and adapter, before export:",
        "",
        *_fenced(
            "from pathlib import Path\n\nfrom pipelines.artifacts import load\n"
            "from pipelines.evaluation.classifier import load_classifier\n\n"
            'print(load_classifier(load(Path("adapter"))).predict(["a text"]))',
            "python",
        ),
        "Ollama cannot run classifiers.",
    ]


def _run_writing(facts: Mapping[str, Any], adapter: Artifact, beside: Beside) -> list[str]:
    served, use_case = facts["quantisations"][facts["settings"]["serve"]]["file"], facts["use_case"]
    system, answer_tokens = facts["prompt"]["system"], facts["maximum_answer_tokens"]
    chat = [{"role": "system", "content": system}] if system else []
    body = {"messages": [*chat, {"role": "user", "content": "…"}]}
    grammar = " --grammar-file grammar.gbnf" if beside.grammar is not None else ""
    lines = [
        "## llama.cpp",
        "",
        *_fenced(
            f"llama-server -m ./{served} --jinja -c {facts['context_length']} -n {answer_tokens} --temp 0{grammar}",
            "sh",
        ),
        "It answers `POST http://127.0.0.1:8080/v1/chat/completions`; the system text comes with every request:",
        "",
        *_fenced(json.dumps(body, ensure_ascii=False, indent=2), "json"),
        "## Ollama",
        "",
    ]
    if beside.modelfile is not None:
        lines += _fenced(f"ollama create {use_case.lower()} -f Modelfile && ollama run {use_case.lower()}", "sh")
        if beside.answer_schema is not None and facts["prompt"]["answer_format"].get("json_schema") is not None:
            lines += ["Its API enforces the answer format: send the contents of `answer.schema.json` as `format`.", ""]
        if beside.adapter_modelfile is not None:
            lines += [
                "With the base in `./base` and the adapter's GGUF alone: "
                f"`ollama create {use_case.lower()} -f Modelfile.adapter`.",
                "",
            ]
    else:
        lines += [f"Ollama cannot run it as it was trained: {_line(beside.why['Modelfile'])}.", ""]
    trained = adapter.manifest
    base, revision = base_on_the_hub(trained["base_model"]), trained["base_revision"]
    place = json.dumps(base or "./base") + (f', revision="{revision}"' if base and revision else "")
    said = [] if base else [f"`./base` stands for {base_name(trained['base_model'])}, the model it was trained on.", ""]
    return [
        *lines,
        "## transformers and peft",
        "",
        *said,
        *_fenced(
            "from peft import PeftModel\n"
            "from transformers import AutoModelForCausalLM, AutoTokenizer\n\n"
            'tokenizer = AutoTokenizer.from_pretrained("adapter")\n'
            f'base = AutoModelForCausalLM.from_pretrained({place}, dtype="auto")\n'
            'model = PeftModel.from_pretrained(base, "adapter").eval()\n'
            f"chat = {json.dumps(body['messages'], ensure_ascii=False)}\n"
            "prompt = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_dict=True, "
            'return_tensors="pt")\n'
            f"stops = tokenizer.convert_tokens_to_ids({json.dumps(facts['stops'], ensure_ascii=False)})\n"
            f"answer = model.generate(**prompt, do_sample=False, max_new_tokens={answer_tokens}, eos_token_id=stops)\n"
            'print(tokenizer.decode(answer[0, prompt["input_ids"].shape[1] :], skip_special_tokens=True))',
            "python",
        ),
        "Retrieved text goes into the question as `README.md` says. Freshet does that, and cites what it used: "
        "`make serve`.",
    ]


def _size(found: Mapping[str, Any]) -> tuple[str, str]:
    tensors = ", ".join(f"{count} {name}" for name, count in found["tensor_types"].items() if name != "F32")
    return f"{found['size'] / 1e6:.1f}", tensors


def _table(rows: Mapping[str, object]) -> list[str]:
    cells = {name: value if isinstance(value, tuple) else (value,) for name, value in rows.items()}
    return [
        f"| {' | '.join(str(cell).replace('|', chr(92) + '|') for cell in (name, *values))} |"
        for name, values in cells.items()
    ]


def _fenced(text: str, language: str = "text") -> list[str]:
    """A code block that no text can end."""
    longest = max((len(run) for run in re.findall("`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return [f"{fence}{language}", *text.split("\n"), fence, ""]


def _code(text: str) -> str:
    """``text`` as code on one line; a space keeps backticks of its own from those around it."""
    text = text.replace("\r", "\\r").replace("\n", "\\n")
    fence = "`" * (max((len(run) for run in re.findall("`+", text)), default=0) + 1)
    room = " " if text.startswith("`") or text.endswith("`") else ""
    return f"{fence}{room}{text}{room}{fence}"


def _line(text: str) -> str:
    """``text`` on one line, without the full stop."""
    return " ".join(str(text).split()).removesuffix(".")
