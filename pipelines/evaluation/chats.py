"""Chat models on the same held-out rows: answers, their metrics, and both as people read them."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from pipelines.artifacts import Artifact
from pipelines.evaluation.answers import (
    Kind,
    balanced,
    common_words,
    exact_match,
    refusal_score,
    row_kind,
    supported_score,
    token_f1,
)
from pipelines.evaluation.gate import REGRESSION, OnSlice, decide
from pipelines.evaluation.generation import Answer, ChatModel, base_chat_model, load_chat_model
from pipelines.evaluation.metrics import Difference, Measured, measured_rows, paired_bootstrap_rows
from pipelines.evaluation.plots import metric_bars, slice_differences
from pipelines.evaluation.report import Judged, as_champion, cell, slices_of
from pipelines.evaluation.settings import EvaluationSettings, GenerationMetric, deciding_metric
from pipelines.evaluation.stored import answers_of, forget_others, losses_of
from pipelines.evaluation.style import Style, style_scores
from pipelines.fingerprint import fingerprint
from pipelines.labels.examples import Example, read_split
from pipelines.prompt import Message, PromptSettings

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Floats = NDArray[np.float64]

METRICS: tuple[GenerationMetric, ...] = get_args(GenerationMetric)
SHORTEST_LIMIT = 64
LEARNED_ANSWERS = 5000
"""Most training answers that manner is learned from."""
SAMPLES = 12
"""Rows shown side by side: half of them the worst regressions."""


@dataclass(frozen=True, slots=True)
class _Spoken:
    """What one model said to every row."""

    answers: list[Answer]
    prompt: PromptSettings
    contexts: list[tuple[str, ...]]
    """The retrieved texts that it saw, row by row."""
    loss: float | None
    """Mean loss of the reference answers (nats a token)."""


def judge_chats(
    candidate: Artifact,
    training_set: Artifact,
    champion: Artifact | None,
    rows: Sequence[Example],
    *,
    settings: EvaluationSettings,
    folder: Path,
    progress: Callable[[str], None],
) -> Judged:
    """Answers to ``rows`` by all three, each prompted as its own manifest says, scored by the candidate's settings.

    What a model said before to the same prompts is taken from ``folder``. The answer's length is limited to
    ``settings.maximum_answer_tokens``, and to about twice the longest reference, which tells endless answers as well.

    Raises:
        ArtifactError: an adapter, its base or its chat template was altered.
        ConfigError: a base is not there, or a prompt does not fit the memory.
    """
    models = {"candidate": load_chat_model(candidate)}
    if champion is not None:
        with as_champion():
            models["champion"] = load_chat_model(champion)
    models["base"] = base_chat_model(candidate)
    references = [row.answer for row in rows]
    limit = answer_limit(models["candidate"], references, settings.maximum_answer_tokens)
    spoken = {}
    for name, model in models.items():
        progress(f"{name} answers {len(rows)} held-out rows, at most {limit} tokens each")
        spoken[name] = _speak(model, rows, limit, folder=folder, progress=progress)
        model.release()
    forget_others(folder, models.values())

    kinds, values, style, common = _scores(spoken, training_set, rows)
    asked = models["candidate"].prompt
    told = [Answer(reference, stopped=True, tokens=0) for reference in references]
    themselves = _row_scores(replace(spoken["candidate"], answers=told), rows, kinds, asked, common)
    ceiling = measured_rows(themselves["supported"], confidence=settings.gate.confidence)
    return _judged(rows, kinds, spoken, values, style, limit, ceiling, settings)


def mean_scores(
    model: ChatModel, training_set: Artifact, rows: Sequence[Example], answers: Mapping[str, Sequence[Answer]]
) -> dict[str, dict[str, Measured]]:
    """Every metric of ``answers`` to ``rows`` (by who gave them) as the evaluation measures it; what can be measured.

    All were prompted as ``model`` is, and ``candidate`` is among them. Style needs the answers of the untuned ``base``.
    """
    contexts = [model.context(row) for row in rows]
    spoken = {name: _Spoken(list(said), model.prompt, contexts, loss=None) for name, said in answers.items()}
    kinds, values, _, _ = _scores(spoken, training_set, rows)
    weights = balanced(kinds)
    measured = {
        name: {
            metric: measured_rows(scores, weights if metric == "refusal" else None, resamples=100)
            for metric, scores in found.items()
        }
        for name, found in values.items()
    }
    return {
        name: {metric: value for metric, value in found.items() if value is not None}
        for name, found in measured.items()
    }


def drawn_rows(rows: Sequence[Example], maximum: int | None) -> list[Example]:
    """At most ``maximum`` rows, the same ones each time: the regression slice whole, the others drawn by their hash."""
    if maximum is None or len(rows) <= maximum:
        return list(rows)
    fixed = {row.id for row in rows if REGRESSION in row.slices}
    others = sorted((row.id for row in rows if row.id not in fixed), key=lambda name: fingerprint("draw", name))
    kept = fixed | set(others[: max(0, maximum - len(fixed))])
    return [row for row in rows if row.id in kept]


def answer_limit(model: ChatModel, references: Sequence[str], maximum: int) -> int:
    """Power of two that leaves the longest reference room to be doubled, so that a few new rows rarely change it."""
    longest = max(map(model.count_tokens, references), default=0)
    return min(maximum, max(SHORTEST_LIMIT, 1 << (2 * longest).bit_length()))


def _speak(
    model: ChatModel, rows: Sequence[Example], limit: int, *, folder: Path, progress: Callable[[str], None]
) -> _Spoken:
    chats = [model.chat(row) for row in rows]
    answers = answers_of(model, chats, maximum_tokens=limit, folder=folder, progress=progress)
    whole = [[*chat, Message("assistant", row.answer)] for chat, row in zip(chats, rows, strict=True)]
    losses = [loss for loss in losses_of(model, whole, folder=folder) if loss is not None]
    return _Spoken(
        answers=answers,
        prompt=model.prompt,
        contexts=[model.context(row) for row in rows],
        loss=sum(losses) / len(losses) if losses else None,
    )


def _scores(
    spoken: Mapping[str, _Spoken], training_set: Artifact, rows: Sequence[Example]
) -> tuple[list[Kind | None], dict[str, dict[str, Floats]], Style | None, frozenset[str]]:
    """The kind of each row, every metric by model and row, the style behind one of them, and words of manner."""
    asked, references = spoken["candidate"].prompt, [row.answer for row in rows]
    learned = [row.answer for row in drawn_rows(read_split(training_set, "train"), LEARNED_ANSWERS)]
    texts = {name: _texts(said) for name, said in spoken.items()}
    style = style_scores(learned, references, texts) if "base" in spoken else None
    common = common_words(learned)
    kinds = [
        row_kind(None if row.context is None else seen, row.answer, asked.refusal)
        for row, seen in zip(rows, spoken["candidate"].contexts, strict=True)
    ]
    values = {name: _row_scores(said, rows, kinds, asked, common) for name, said in spoken.items()}
    if style is not None:
        for name, found in values.items():
            found["style"] = style.scores[name]
    return kinds, values, style, common


def _texts(said: _Spoken) -> list[str]:
    return [answer.text for answer in said.answers]


def _row_scores(
    said: _Spoken,
    rows: Sequence[Example],
    kinds: Sequence[Kind | None],
    asked: PromptSettings,
    common: frozenset[str],
) -> dict[str, Floats]:
    """Every metric but style: (rows,), NaN where a row says nothing about it."""
    import numpy as np

    found: dict[str, list[float]] = {metric: [] for metric in METRICS if metric != "style"}
    for answer, row, kind, seen in zip(said.answers, rows, kinds, said.contexts, strict=True):
        refusal, text, reference = said.prompt.refusal, answer.text, row.answer
        turns = [turn.content for turn in row.messages[:-1]]
        found["exact_match"].append(exact_match(text, reference))
        found["token_f1"].append(token_f1(text, reference))
        fits = float("nan") if asked.answer_format is None else float(asked.answer_format.problem(text) is None)
        found["valid_format"].append(fits)
        found["supported"].append(
            supported_score(
                text,
                reference,
                [*seen, *turns, said.prompt.system],
                kind=kind,
                refusal=refusal,
                common=common,
                citations=len(seen),
            )
        )
        found["refusal"].append(refusal_score(text, reference, refusal, kind))
        found["stopped"].append(float(answer.stopped))
    return {metric: np.array(scores, dtype=np.float64) for metric, scores in found.items()}


def _judged(
    rows: Sequence[Example],
    kinds: Sequence[Kind | None],
    spoken: Mapping[str, _Spoken],
    values: Mapping[str, Mapping[str, Floats]],
    style: Style | None,
    limit: int,
    ceiling: Measured | None,
    settings: EvaluationSettings,
) -> Judged:
    """The verdict on ``values`` (by model, by metric, a row each), and everything that is shown."""
    import numpy as np

    gate = settings.gate
    deciding = deciding_metric(gate, "generate")
    other = "champion" if "champion" in values else "base"
    unmeasured = np.full(len(rows), np.nan)

    def on(numbers: Sequence[int], resamples: int) -> dict[str, dict[str, Measured | None]]:
        weights = balanced([kinds[number] for number in numbers])
        return {
            metric: {
                name: measured_rows(
                    found.get(metric, unmeasured)[numbers],
                    weights if metric == "refusal" else None,
                    confidence=gate.confidence,
                    resamples=resamples,
                )
                for name, found in values.items()
            }
            for metric in METRICS
        }

    def apart(numbers: Sequence[int]) -> Difference | None:
        return paired_bootstrap_rows(
            values["candidate"].get(deciding, unmeasured)[numbers],
            values[other].get(deciding, unmeasured)[numbers],
            balanced([kinds[number] for number in numbers]) if deciding == "refusal" else None,
            confidence=gate.confidence,
        )

    everything = list(range(len(rows)))
    metrics = on(everything, 1000)
    slices = slices_of(rows, gate, kinds)
    tables = {name: on(numbers, 300) for name, numbers in slices.items()}
    differences = {name: apart(numbers) for name, numbers in slices.items()}
    whole, champion = apart(everything), "champion" in values
    measured = metrics[deciding]["candidate"]
    verdict = decide(
        rows=len(rows) if measured is None else measured.rows,  # a metric of few rows decides nothing
        **{name: _value(metrics[deciding].get(name)) for name in ("candidate", "base", "champion")},
        difference=whole,
        settings=gate,
        task="generate",
        has_champion=champion,
        further={metric: _value(by_model["candidate"]) for metric, by_model in metrics.items()},
        slices={
            name: OnSlice(
                len(numbers) if found is None else found.rows, _value(found), differences[name] if champion else None
            )
            for name, numbers in slices.items()
            for found in [tables[name][deciding]["candidate"]]
        },
    )
    shown = {"all rows": (len(rows), whole)}
    shown |= {name: (len(numbers), differences[name]) for name, numbers in slices.items()}
    lines = _lines(rows, kinds, spoken, values)
    return Judged(
        verdict=verdict,
        metrics=metrics,
        slices=tables,
        details={
            "answer_loss": {name: said.loss for name, said in spoken.items()},
            "maximum_answer_tokens": limit,
            "supported_references": _value(ceiling),
            "style": None
            if style is None
            else {"auc": style.auc, "references": style.references, "training_answers": style.training_answers},
        },
        files={
            "metrics.png": metric_bars(metrics),
            "slices.png": slice_differences(shown, metric=deciding, other=other),
            "answers.jsonl": "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines).encode(),
            "samples.md": _side_by_side(rows, spoken, values, deciding, other).encode(),
        },
        notes=_notes(spoken, style, limit, ceiling),
    )


def _notes(spoken: Mapping[str, _Spoken], style: Style | None, limit: int, ceiling: Measured | None) -> list[str]:
    losses = [f"{name} {said.loss:.3f}" for name, said in spoken.items() if said.loss is not None]
    if style is None:
        manner = "Style was not measured: too few different training answers."
    else:
        manner = (
            f"Style was learned from {style.training_answers} training answers; the held-out reference answers "
            f"themselves score {style.references:.3f}, and are told from the base's with AUC {style.auc:.3f}."
        )
    return [
        f"Mean loss of the reference answers, in nats a token: {', '.join(losses) or 'not measured'}.",
        manner,
        *([] if ceiling is None else [f"The reference answers themselves are supported to {ceiling.value:.3f}."]),
        f"Answers were cut at {limit} tokens.",
    ]


def _value(found: Measured | None) -> float | None:
    return None if found is None else found.value


def _lines(
    rows: Sequence[Example],
    kinds: Sequence[Kind | None],
    spoken: Mapping[str, _Spoken],
    values: Mapping[str, Mapping[str, Floats]],
) -> list[dict[str, Any]]:
    """Every row with what each model said and how it scored; what was not measured is left out."""
    import numpy as np

    return [
        {
            "id": row.id,
            "kind": kinds[number],
            "slices": list(row.slices),
            "question": row.messages[-2].content if len(row.messages) > 1 else "",
            "reference": row.answer,
            "answers": {
                name: {
                    "text": said.answers[number].text,
                    "stopped": said.answers[number].stopped,
                    "tokens": said.answers[number].tokens,
                    "scores": {
                        metric: round(float(scores[number]), 6)
                        for metric, scores in values[name].items()
                        if np.isfinite(scores[number])
                    },
                }
                for name, said in spoken.items()
            },
        }
        for number, row in enumerate(rows)
    ]


def _side_by_side(
    rows: Sequence[Example],
    spoken: Mapping[str, _Spoken],
    values: Mapping[str, Mapping[str, Floats]],
    metric: str,
    other: str,
) -> str:
    """Markdown: the rows where the candidate lost most against ``other``, and some drawn by hash."""
    import numpy as np

    if metric not in values["candidate"]:
        metric = "token_f1"
    change = np.nan_to_num(values["candidate"][metric] - values[other][metric])
    worst = [int(number) for number in np.argsort(change, kind="stable")[: SAMPLES // 2] if change[number] < 0]
    by_hash = sorted(range(len(rows)), key=lambda number: fingerprint("sample", rows[number].id))
    drawn = [number for number in by_hash if number not in worst][: SAMPLES - len(worst)]
    names = [name for name in ("base", "champion", "candidate") if name in spoken]
    title = metric.replace("_", " ")
    parts = []
    for heading, numbers in ((f"Worst against the {other} by {title}", worst), ("Drawn at random", drawn)):
        if not numbers:
            continue
        parts += [f"### {heading}", "", "| change | question | reference | " + " | ".join(names) + " |"]
        parts.append("|" + "---|" * (3 + len(names)))
        for number in numbers:
            row = rows[number]
            said = [spoken[name].answers[number] for name in names]
            shown = [cell(answer.text + ("" if answer.stopped else " … (did not stop)")) for answer in said]
            question = row.messages[-2].content if len(row.messages) > 1 else ""
            parts.append(
                f"| {change[number]:+.2f} | {cell(question)} | {cell(row.answer)} | " + " | ".join(shown) + " |"
            )
        parts.append("")
    return "\n".join(parts)
