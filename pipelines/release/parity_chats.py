"""Does an exported chat model read, write and stop as base and adapter do in transformers?

The reference computes in float32 where memory holds that. Blocking: the chat template in each file, token ids of
rendered prompts, their first ones with what llama.cpp's servers put before them, end tokens, and on held-out rows the
share of next tokens that are the reference's, the share of answers that end by themselves, and the task's own score;
for a 16-bit file the logits themselves. Next tokens are compared where the model writes: nobody asks it what follows
within a prompt.
"""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipelines.artifacts import Artifact
from pipelines.environment import available_cores
from pipelines.evaluation.chats import answer_limit, drawn_rows, mean_scores
from pipelines.evaluation.generation import Answer, ChatModel, Watch, base_chat_model, load_chat_model
from pipelines.evaluation.metrics import Measured
from pipelines.evaluation.settings import EvaluationSettings, deciding_metric
from pipelines.figures import canvas, png
from pipelines.fingerprint import text_hash
from pipelines.labels.examples import Example
from pipelines.prompt import Message, render
from pipelines.release.gguf import Header
from pipelines.release.language import GgufLanguageModel
from pipelines.release.probes import PROBES
from pipelines.release.settings import Quantisation, ReleaseSettings
from pipelines.release.tensors import SIZES, stored_tensors
from pipelines.release.tokens import TEXTS
from pipelines.training.chats import encode_chats
from pipelines.training.memory import free_memory

if TYPE_CHECKING:
    from pipelines.release.llama import Floats

TOLERANCE: Mapping[str, float] = {"F16": 0.005, "BF16": 0.03}
"""Largest difference between a 16-bit file and the reference, as a share of the range of the reference's logits.

llama.cpp rounds activations to the type of the weights: honest files of 5 million to 0.5 billion parameters stay below
0.001 and 0.01.
"""

LOGITS_HELD = 1 << 28
"""Numbers of the reference that are held for the comparison of next tokens (1 GiB): rows beyond are left out of it."""

ANSWER_WORK = 1e13
"""Parameters times tokens that each file may take to answer: about a quarter of an hour on four cores. More rows are
left out, down to MINIMUM_ROWS; the number follows from the model and the rows alone, on every machine."""
MINIMUM_ROWS = 32

SMALL = 1_000_000_000
"""Parameters up to which every core answers a prompt of its own: faster, and each holds its own keys and values."""


@dataclass(frozen=True, slots=True)
class ChatQuantisation:
    """One file compared with base and adapter in transformers."""

    file: str
    file_type: str
    tensor_types: Mapping[str, int]
    size: int
    """Bytes."""
    agreement: float
    """Share of next tokens, where held-out answers are written, that are the reference's."""
    disagreements: int
    kl_divergence: float
    """Mean of the reference's distribution from the file's there, in nats."""
    max_logit_difference: float
    answers_equal: float
    """Share of greedy answers that are the reference's, letter for letter."""
    stopped: float
    """Share of answers that end by themselves."""
    scores: Mapping[str, float]
    """The task's metrics on the held-out rows."""


@dataclass(frozen=True, slots=True)
class ChatParity:
    """All files compared, and the verdict."""

    reasons: tuple[str, ...]
    """Why it did not pass; empty when it did."""
    rows: int
    """Held-out rows that were answered."""
    left_out: int
    """Held-out rows that were not, to bound the time."""
    places: int
    """Next tokens that were compared."""
    arithmetic: str
    """The reference's: float32, or bfloat16 where memory does not hold that."""
    metric: str
    """That decides."""
    merged: Mapping[str, float]
    """The reference's scores on the same rows."""
    tokens: Mapping[str, Any]
    """Texts whose token ids were compared."""
    quantisations: Mapping[Quantisation, ChatQuantisation]

    @property
    def passed(self) -> bool:
        """Whether the files may be published."""
        return not self.reasons


@dataclass(frozen=True, slots=True)
class _Reference:
    """What base and adapter say in transformers."""

    prompts: list[list[int]]
    answers: list[Answer]
    written: list[tuple[list[int], int]]
    """Token ids of a chat, and where its answer begins."""
    logits: list[Floats]
    """What follows, at each place of these answers (tokens, vocabulary)."""
    spread: float
    """Range of these logits."""


def load_reference(adapter: Artifact, base: Path, progress: Callable[[str], None]) -> ChatModel:
    """``adapter`` on its ``base`` in float32, or as it is evaluated where memory does not hold that.

    Raises:
        ArtifactError: the adapter, its base or its chat template was altered.
        ConfigError: the base is not there.
    """
    weights = sum(tensor.size // SIZES[tensor.dtype] for tensor in stored_tensors(base).values())
    exact = 5 * weights <= free_memory()  # with room to put the adapter into it
    if not exact:
        progress("memory does not hold the model in float32: it is compared in bf16, and F16 as exactly as BF16 may be")
    return load_chat_model(adapter, exact=exact)


def compare_chats(
    adapter: Artifact,
    model: ChatModel,
    training_set: Artifact,
    rows: Sequence[Example],
    files: Mapping[Quantisation, tuple[Path, Header]],
    *,
    settings: ReleaseSettings,
    evaluation: EvaluationSettings,
    progress: Callable[[str], None],
) -> ChatParity:
    """Compare every file with ``model``, which is ``adapter`` on its base, on held-out ``rows``, prompted as served.

    A file may differ in as many next tokens as ``settings.minimum_agreement`` leaves, and lose as many rows' worth of
    the deciding metric as ``settings.minimum_score`` leaves, both rounded up to a whole one.

    Raises:
        ArtifactError: a tensor of the adapter has no place in its base, or llama.cpp cannot load a file.
        ConfigError: a prompt does not fit the memory.
    """
    metric = deciding_metric(evaluation.gate, "generate")
    window = min((header.context_length or 1 << 30 for _, header in files.values()), default=1 << 30)
    reasons: list[str] = [] if rows else ["there are no held-out rows to compare on"]
    chats = {row.id: model.chat(row) for row in rows}
    prompts = {row.id: _ids(model, render(model.tokenizer, chats[row.id])) for row in rows}
    limit = answer_limit(model, [row.answer for row in rows], evaluation.maximum_answer_tokens)
    exact = model.model.dtype.itemsize == 4
    parameters = sum(weight.numel() for weight in model.model.parameters())
    answered = _affordable(rows, prompts, parameters, limit, evaluation.maximum_rows)
    if len(answered) < len(rows):
        progress(f"{len(answered)} of {len(rows)} held-out rows are answered, to bound the time")
    longest = max([len(prompts[row.id]) for row in answered] + [1])
    room = min(window, longest + limit + 1)
    reference = _reference(model, answered, chats, prompts, limit=limit, room=room, progress=progress)
    said: dict[str, list[Answer]] = {"candidate": reference.answers}
    model.release()
    if metric == "style":  # learned from what the untuned base says
        base = base_chat_model(adapter)
        progress(f"the untuned base answers {len(answered)} held-out rows")
        said["base"] = base.answers([chats[row.id] for row in answered], maximum_tokens=limit, progress=progress)
        base.release()

    rendered = [render(model.tokenizer, chats[row.id]) for row in rows]
    tokens: dict[str, Any] = {}
    found: dict[Quantisation, ChatQuantisation] = {}
    for quantisation, (path, header) in files.items():
        file = GgufLanguageModel(path, room, texts_at_once=available_cores() if parameters <= SMALL else 1)
        reasons += [f"{quantisation}: {reason}" for reason in _vocabulary_problems(adapter, model, file, header)]
        if not tokens:  # the vocabulary is the same in all files
            tokens = _token_parity(file, model, rows, rendered)
            reasons += tokens["reasons"]
        progress(f"{quantisation}: next tokens of {len(reference.written)} held-out answers")
        differing, divergence, difference, finite = _next_tokens(file, reference)
        progress(f"{quantisation} answers {len(answered)} held-out rows, at most {limit} tokens each")
        answers = _answers(file, model, reference.prompts, limit, progress=progress)
        said[quantisation] = answers
        places = sum(map(len, reference.logits))
        found[quantisation] = ChatQuantisation(
            file=path.name,
            file_type=header.file_type,
            tensor_types=header.tensor_types,
            size=path.stat().st_size,
            agreement=1 - differing / places if places else 0.0,
            disagreements=differing,
            kl_divergence=divergence,
            max_logit_difference=difference,
            answers_equal=_share([a.text == b.text for a, b in zip(answers, reference.answers, strict=True)]),
            stopped=_share([answer.stopped for answer in answers]),
            scores={},
        )
        reasons += _next_token_problems(
            quantisation, found[quantisation], places, reference.spread, finite, settings, exact=exact
        )
    measured = mean_scores(model, training_set, answered, said) if answered else {name: {} for name in said}
    plain = {name: {metric: value.value for metric, value in values.items()} for name, values in measured.items()}
    found = {name: replace(one, scores=plain[name]) for name, one in found.items()}
    for quantisation, one in found.items():
        reasons += _answer_problems(quantisation, one, measured, metric, settings, evaluation)
    return ChatParity(
        reasons=tuple(reasons),
        rows=len(answered),
        left_out=len(rows) - len(answered),
        places=sum(map(len, reference.logits)),
        arithmetic="float32" if exact else "bfloat16",
        metric=metric,
        merged=plain["candidate"],
        tokens=tokens,
        quantisations=found,
    )


def plot_chats(parity: ChatParity) -> bytes:
    """Size against the deciding score and against agreement, as PNG."""
    figure, _ = canvas(width=9, height=4.6)
    figure.clear()
    left, right = figure.subplots(1, 2)
    merged = parity.merged.get(parity.metric)
    for number, (name, found) in enumerate(parity.quantisations.items()):
        look = {"s": 70, "marker": "os^Dv<>PX*hdp8"[number % 14]}
        size = found.size / 1e6
        left.scatter(size, found.scores.get(parity.metric, math.nan), label=f"{name}: {size:.1f} MB", **look)
        right.scatter(size, 100 * found.agreement, **look)
    if merged is not None:
        left.axhline(merged, color="0.5", linestyle="--", label=f"before export: {merged:.3f}")
    shown = [found.scores.get(parity.metric, 0.0) for found in parity.quantisations.values()] + [merged or 0.0]
    left.set_ylim(max(-0.02, min(shown) - 0.05), min(1.02, max(shown) + 0.05))
    left.set_ylabel(f"{parity.metric.replace('_', '-')} on {parity.rows} held-out rows")
    right.set_ylabel(f"next tokens as before export (%), of {parity.places}")
    lowest = min((found.agreement for found in parity.quantisations.values()), default=1.0)
    right.set_ylim(min(95.0, 100 * lowest - 1), 100.5)
    for axes in (left, right):
        axes.set_xlim(left=0)
        axes.set_xlabel("size (MB)")
        axes.grid(alpha=0.3)
    figure.legend(loc="outside lower center", ncols=4, frameon=False)
    return png(figure)


def _affordable(
    rows: Sequence[Example], prompts: Mapping[str, list[int]], parameters: int, limit: int, maximum: int | None
) -> list[Example]:
    """The rows that are answered: reading a prompt's token takes about an eighth of writing one."""
    if not rows:
        return []
    tokens = limit + sum(map(len, prompts.values())) / len(prompts) / 8
    most = max(MINIMUM_ROWS, int(ANSWER_WORK / (parameters * tokens)))
    return drawn_rows(rows, most if maximum is None else min(most, maximum))


def _ids(model: ChatModel, text: str) -> list[int]:
    return list(model.tokenizer(text, add_special_tokens=False)["input_ids"])


def _reference(
    model: ChatModel,
    rows: Sequence[Example],
    chats: Mapping[str, list[Message]],
    prompts: Mapping[str, list[int]],
    *,
    limit: int,
    room: int,
    progress: Callable[[str], None],
) -> _Reference:
    """Greedy answers to ``rows``, and the logits along the reference answers while they can be held."""
    import torch

    progress(f"base and adapter answer {len(rows)} held-out rows in transformers, at most {limit} tokens each")
    answers = model.answers([chats[row.id] for row in rows], maximum_tokens=limit, progress=progress)
    encoded = encode_chats(model.tokenizer, [[*chats[row.id], Message("assistant", row.answer)] for row in rows])
    written: list[tuple[list[int], int]] = []
    logits: list[Floats] = []
    held = 0
    for chat in encoded:
        start = chat.answers[-1][0]
        if len(chat.ids) > room or held >= LOGITS_HELD:
            continue
        with torch.inference_mode():
            ids = torch.tensor([chat.ids[:-1]], device=model.model.device)
            values = model.model(input_ids=ids).logits[0, start - 1 :].float().cpu().numpy()
        held += values.size
        written.append((chat.ids, start))
        logits.append(values)
    spread = max((float(values.max()) for values in logits), default=0.0) - min(
        (float(values.min()) for values in logits), default=0.0
    )
    return _Reference([prompts[row.id] for row in rows], answers, written, logits, spread)


def _vocabulary_problems(adapter: Artifact, model: ChatModel, file: GgufLanguageModel, header: Header) -> list[str]:
    """What ``file`` says otherwise of chats than the adapter was trained with."""
    problems = []
    wanted, template = adapter.manifest["template_hash"], header.chat_template
    if template is None or text_hash(template) != wanted:
        found = "none" if template is None else text_hash(template)[:12]
        problems.append(f"the chat template in the file is {found}, the adapter was trained with {wanted[:12]}")
    running = [token for token in model.end_tokens if not file.ends(token)]
    if running:
        names = model.tokenizer.convert_ids_to_tokens(running)
        problems.append(f"the file does not stop at {', '.join(names)}, which ends an answer")
    return problems


def _token_parity(
    file: GgufLanguageModel, model: ChatModel, rows: Sequence[Example], rendered: Sequence[str]
) -> dict[str, Any]:
    """Where both stacks read a text differently: the probes whole, and prompts as llama.cpp's servers read them.

    A tokenizer may compose characters first (NFC), and llama.cpp leaves that to its caller: texts that only differ so
    are counted, and do not block.
    """
    composed, reasons, differing = 0, [], 0
    probes = [probe.text for probe in PROBES] + list(TEXTS)
    for text in probes:
        theirs, ours = model.tokenizer(text)["input_ids"], file.tokens(text)
        if theirs != ours and model.tokenizer(text)["input_ids"] == file.tokens(unicodedata.normalize("NFC", text)):
            composed += 1
        elif theirs != ours:
            reasons.append(f"token ids differ on {text[:40]!r}: {_first(theirs, ours, model.tokenizer)}")
    for row, text in zip(rows, rendered, strict=True):
        theirs, ours = _ids(model, text), file.prompt_tokens(text)
        if theirs != ours and theirs == file.prompt_tokens(unicodedata.normalize("NFC", text)):
            composed += 1
        elif theirs != ours:
            differing += 1
            if differing <= 5:
                reasons.append(
                    f"token ids differ on the rendered prompt of row {row.id}: {_first(theirs, ours, model.tokenizer)}"
                )
    if differing:
        reasons.append(f"{differing} of {len(rows)} prompts would not be served as they were trained on")
    return {
        "probes": len(probes),
        "prompts": len(rows),
        "prompts_differing": differing,
        "composed_first": composed,
        "reasons": reasons,
    }


def _first(theirs: Sequence[int], ours: Sequence[int], tokenizer: Any) -> str:
    index = next(
        (index for index, (one, other) in enumerate(zip(theirs, ours, strict=False)) if one != other),
        min(len(theirs), len(ours)),
    )
    shown = [tokenizer.convert_ids_to_tokens(list(ids[index : index + 3])) for ids in (theirs, ours)]
    return f"at token {index}, {shown[0]} in training, {shown[1]} in llama.cpp"


def _next_tokens(file: GgufLanguageModel, reference: _Reference) -> tuple[int, float, float, bool]:
    """Next tokens that differ, mean divergence (nats), largest difference of a logit, and whether all are finite."""
    import numpy as np

    differing, places, divergence, difference, finite = 0, 0, 0.0, 0.0, True
    for (ids, start), wanted in zip(reference.written, reference.logits, strict=True):
        found = file.logits(ids[:-1], first=start - 1)[:, : wanted.shape[1]]
        finite = finite and bool(np.isfinite(found).all())
        places += len(wanted)
        for one, other in zip(_parts(found), _parts(wanted), strict=True):
            differing += int((one.argmax(axis=1) != other.argmax(axis=1)).sum())
            difference = max(difference, float(np.abs(one - other).max()))
            theirs, ours = _log_softmax(one), _log_softmax(other)
            divergence += float((np.exp(ours) * (ours - theirs)).sum())
    return differing, divergence / max(1, places), difference, finite


def _parts(logits: Floats) -> Iterator[Floats]:
    """Some places at a time: in 64 bits, a thousand of them would take gigabytes."""
    for start in range(0, len(logits), 32):
        yield logits[start : start + 32]


def _log_softmax(logits: Floats) -> Any:
    import numpy as np

    shifted = logits.astype(np.float64) - logits.max(axis=1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))


def _answers(
    file: GgufLanguageModel,
    model: ChatModel,
    prompts: Sequence[list[int]],
    limit: int,
    *,
    progress: Callable[[str], None],
) -> list[Answer]:
    """What ``file`` says to each of ``prompts``."""
    watch = Watch(progress, len(prompts))
    done: list[int] = []

    def finished(tokens: int) -> None:
        done.append(tokens)
        watch.report(len(done), sum(done))

    return [
        Answer(model.tokenizer.decode(ids, skip_special_tokens=True).strip(), stopped, len(ids))
        for ids, stopped in file.answers(prompts, limit, finished=finished)
    ]


def _next_token_problems(
    name: Quantisation,
    found: ChatQuantisation,
    places: int,
    spread: float,
    finite: bool,
    settings: ReleaseSettings,
    *,
    exact: bool,
) -> list[str]:
    minimum, tolerance = settings.minimum_agreement[name], TOLERANCE.get(name)
    if not exact:
        minimum = min(minimum, settings.minimum_agreement["BF16"])
        tolerance = tolerance and TOLERANCE["BF16"]
    problems: list[str] = []
    if not places:
        return [f"{name}: no held-out chat fits the model's context, so nothing could be compared"]
    if found.disagreements > math.ceil(round((1 - minimum) * places, 9)):
        problems.append(
            f"{name}: {found.disagreements} of {places} next tokens are not the original's (agreement "
            f"{found.agreement:.4f}, at least {minimum} is asked for)"
        )
    if not finite or (tolerance is not None and not found.max_logit_difference <= tolerance * spread):
        problems.append(
            f"{name}: logits differ by up to {found.max_logit_difference:.3g} from the original's, whose range is "
            f"{spread:.3g}; weights or activations were not converted faithfully"
        )
    return problems


def _answer_problems(
    name: Quantisation,
    found: ChatQuantisation,
    measured: Mapping[str, Mapping[str, Measured]],
    metric: str,
    settings: ReleaseSettings,
    evaluation: EvaluationSettings,
) -> list[str]:
    problems = []
    if found.stopped < evaluation.gate.minimum_stopped:
        problems.append(
            f"{name}: {found.stopped:.2f} of its answers end by themselves; at least "
            f"{evaluation.gate.minimum_stopped:.2f} must"
        )
    wanted, ours = measured["candidate"].get(metric), measured[name].get(metric)
    if wanted is None or ours is None:
        return [*problems, f"{name}: {metric.replace('_', '-')} could not be measured on the held-out rows"]
    minimum = settings.minimum_score[name]
    allowed = math.ceil(round((1 - minimum) * wanted.value * wanted.rows, 9))
    if (wanted.value - ours.value) * wanted.rows > allowed + 1e-9:
        problems.append(
            f"{name}: {metric.replace('_', '-')} {ours.value:.3f} on {ours.rows} held-out rows, {wanted.value:.3f} "
            f"before export; at least {minimum} of that is asked for"
        )
    return problems


def _share(truths: Sequence[bool]) -> float:
    return sum(truths) / len(truths) if truths else 0.0
