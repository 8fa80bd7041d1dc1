"""What retrieval and fine-tuning each do for answers.

    python -m benchmarks.support [--base FOLDER] [--export] [--json FILE] [--quick]

A support desk in the synthetic language. 300 labelled answers about products, plans and policies of the training half
teach its manner: taken in, frozen and trained on as a use case's are, each with what the index returns for its
question. Then customers ask about others: 200 questions whose answers stand in the documents, 60 whose answers do not,
40 that have to go to a person. No name, value or template of these was trained on, neither here nor in the base. All
documents go through the real sync into a real index, and what is retrieved (three chunks) by the real search.

- base: the question alone;
- retrieval only: the base with what was retrieved;
- fine-tuning only: an adapter trained on the same answers without their texts, which is asked the question alone;
- both: the adapter, with what was retrieved.

Facts: the value stands in the answer. Manner: every part of it is there, and the rule for handing over is kept. Apart
from that the untuned base answers questions, written by hand, on the documents of the use case ``support``, whose
language is not the synthetic one.

``--export``: the adapter of both as GGUF files, each compared with the merged model in transformers on the held-out
tenth of the labelled answers, as every export of a use case is.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks.report import report, table
from pipelines.artifacts import Artifact
from pipelines.basemodel.support import PROMPT, Desk, Question, faults, invents, support_desk, tells
from pipelines.catalog import open_catalog
from pipelines.corpus.edge import EdgeIndex
from pipelines.corpus.search import retrieved_texts
from pipelines.corpus.serving import serve_index
from pipelines.corpus.settings import FolderSource, RetrievalSettings, Source
from pipelines.corpus.sync import sync_source
from pipelines.declaration import USE_CASES, load_declaration
from pipelines.evaluation.generation import Answer, ChatModel, base_chat_model, load_chat_model
from pipelines.evaluation.settings import EvaluationSettings
from pipelines.fingerprint import text_hash
from pipelines.labels.examples import Example
from pipelines.labels.intake import take_in
from pipelines.labels.settings import LabelSettings
from pipelines.labels.snapshot import freeze_training_set
from pipelines.models import BUNDLED_CHAT, token_counter
from pipelines.prompt import Message
from pipelines.release.export import export
from pipelines.release.settings import ReleaseSettings
from pipelines.training.job import TrainingJob, train
from pipelines.training.settings import GenerateSettings, LoraSettings

RETRIEVAL = RetrievalSettings(top_k=3)
MAXIMUM_TOKENS = 128
"""Of an answer; the longest reference has about 70."""

FINE_TUNE: dict[str, Any] = {
    "lora": LoraSettings(rank=64, alpha=128, dropout=0.05, upper_layers=0.5),
    "epochs": 6,
    "learning_rate": 6e-4,
    "batch_size": 8,
}


@dataclass(frozen=True, slots=True)
class Sizes:
    """How much of everything."""

    documents: int = 150
    facts: int = 200
    unknown: int = 60
    hand_over: int = 40


QUICK = Sizes(documents=30, facts=24, unknown=8, hand_over=8)

REAL = (
    ("What is the measuring range of the Rill 3 Water Level Logger?", "0 to 4 m"),
    ("How accurate is the Rill 3 Water Level Logger?", "±3 mm"),
    ("What is the memory of the Rill 3 Water Level Logger?", "86,000"),
    ("What is the weight of the Hearth Hub?", "415 g"),
    ("How many devices can the Hearth Hub handle on Zigbee?", "120"),
    ("What is the closing time of the Stopcock One Motor Valve?", "9 seconds"),
    ("How loud is the Stopcock One Motor Valve?", "49 dB"),
    ("How long do the batteries of the Dripwatch leak sensor last?", "34 months"),
    ("What is the protection of the Dripwatch Leak Sensor?", "IP67"),
    ("What is the noise of the Warden Radiator Valve?", "26 dB"),
    ("What is the consumption of the Sunledger Solar and Grid Meter?", "2.1 W"),
    ("In which wind speeds does the Hillside 5 Weather Station measure?", "0.5 to 50 m/s"),
    ("What is the firmware of the Hillside 5 Weather Station?", "5.4.0"),
    ("How much is the coupling gel, tube of 30 ml?", "8.75"),
    ("What is the weight of the formazin calibration set?", "940 g"),
    ("Which material is the vented suspension cable, 15 m made of?", "polyurethane"),
    ("How many days do I have to return something I bought?", "30 days"),
    ("What does it cost to have my device examined outside the warranty?", "25 euros"),
    ("How long are chats with support kept?", "18 months"),
    ("What does the Field plan for business customers cost?", "9 euros"),
)
"""Questions on the documents of ``support``, and what a right answer contains."""


class Workplace:
    """A catalog, an index and folders, all in one scratch folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.catalog = open_catalog(f"sqlite:///{folder / 'catalog.db'}")
        self.index = EdgeIndex(folder / "index")

    def serve(self, use_case: str, sources: Sequence[Source], base: Path) -> None:
        """Sync ``sources`` and let their collection answer."""
        for source in sources:
            sync_source(
                source, use_case=use_case, base=base, retrieval=RETRIEVAL, catalog=self.catalog, index=self.index
            )
        serve_index(
            use_case=use_case,
            retrieval=RETRIEVAL,
            sources=[source.name for source in sources],
            catalog=self.catalog,
            index=self.index,
        )

    def serve_desk(self, use_case: str, desk: Desk) -> None:
        """Write the documents of ``desk`` and serve them."""
        folder = self.folder / use_case / "documents"
        folder.mkdir(parents=True)
        for name, text in desk.documents.items():
            (folder / name).write_text(text, encoding="utf-8")
        self.serve(use_case, [FolderSource(name="documents", type="folder", url="documents")], folder.parent)

    def retrieved(self, use_case: str, questions: Sequence[str]) -> list[tuple[str, ...]]:
        """What the served index gives a prompt."""
        return retrieved_texts(
            questions, use_case=use_case, retrieval=RETRIEVAL, catalog=self.catalog, index=self.index
        )

    def adapter(
        self, use_case: str, rows: Sequence[dict[str, Any]], settings: GenerateSettings
    ) -> tuple[Artifact, Artifact]:
        """Adapter and training set of labelled ``rows``, which are taken in, frozen, and trained on.

        Raises:
            RuntimeError: not all of them were accepted.
        """
        folder = self.folder / use_case
        folder.mkdir(exist_ok=True)
        lines = [json.dumps({**row, "origin": "human"}) + "\n" for row in rows]
        (folder / "answers.jsonl").write_text("".join(lines), encoding="utf-8")
        labels = LabelSettings(url="answers.jsonl", slice_columns=("kind",), personal_data="off")
        told = take_in(
            labels,
            use_case=use_case,
            base=folder,
            held_out_share=0.1,
            catalog=self.catalog,
            task="generate",
            prompt=PROMPT,
            count_tokens=token_counter(settings.base_model, settings.base_revision),
        )
        if told.quarantined:
            raise RuntimeError(f"{told.quarantined} of {told.rows} examples quarantined: {dict(told.reasons)}")
        training_set = freeze_training_set(
            labels, use_case=use_case, task="generate", catalog=self.catalog, folder=folder / "training_set"
        )
        job = TrainingJob(
            use_case=use_case,
            training_set=training_set.path,
            output=folder / "adapters",
            settings=settings,
            prompt=PROMPT,
        )
        return train(job, progress=lambda _: None), training_set


def labelled(questions: Sequence[Question], contexts: Sequence[Sequence[str]] | None) -> list[dict[str, Any]]:
    """Rows of a label file.

    With what was retrieved; of a fact that was not, nobody could have written the answer: such a row is left out. Of
    what no document says, every fourth is asked with nothing retrieved.
    """
    rows = []
    for number, question in enumerate(questions):
        turns = [{"role": "user", "content": question.text}, {"role": "assistant", "content": question.answer}]
        row: dict[str, Any] = {
            "id": f"{number:04}",
            "messages": turns,
            "kind": question.kind,
            "group": question.subject,
        }
        if contexts is not None:
            found = contexts[number]
            if question.value is not None and not any(tells(text, question.value) for text in found):
                continue
            row["context"] = [] if question.kind == "unknown" and number % 4 == 0 else list(found)
        rows.append(row)
    return rows


def rows_of(questions: Sequence[str], contexts: Sequence[tuple[str, ...]] | None) -> list[Example]:
    """Questions as rows that a chat model answers."""
    return [
        Example(
            id=text_hash(question),
            text=question,
            labels=(),
            group=str(number),
            origin="human",
            messages=(Message("user", question), Message("assistant", "")),
            context=None if contexts is None else contexts[number],
        )
        for number, question in enumerate(questions)
    ]


def answers(model: ChatModel, rows: Sequence[Example]) -> list[Answer]:
    """Greedy answers to ``rows``."""
    found = model.answers([model.chat(row) for row in rows], maximum_tokens=MAXIMUM_TOKENS)
    model.release()
    return found


def scores(questions: Sequence[Question], said: Sequence[Answer]) -> dict[str, float]:
    """Shares, of the questions that each is about."""

    def share(found: Sequence[bool]) -> float:
        return sum(found) / len(found) if found else float("nan")

    pairs = list(zip(questions, said, strict=True))
    good = [(question, not faults(question.text, answer.text)) for question, answer in pairs]
    return {
        "facts": share(
            [tells(answer.text, question.value) for question, answer in pairs if question.value is not None]
        ),
        "manner": share([fits for question, fits in good if question.kind == "fact"]),
        "manner_of_all": share([fits for _, fits in good]),
        "invented": share([invents(answer.text) for question, answer in pairs if question.kind == "unknown"]),
        "handed_over": share([fits for question, fits in good if question.kind == "hand over"]),
        "refused_wrongly": share([not invents(answer.text) for question, answer in pairs if question.kind == "fact"]),
        "stopped": share([answer.stopped for answer in said]),
    }


def measure(
    base: str, scratch: Path, *, taught: Sizes, asked: Sizes, files: bool = False, **changes: Any
) -> tuple[list[dict[str, Any]], dict[str, float], dict[str, Any]]:
    """A row for each contender, the figures, and everything that was said; ``changes`` are of ``FINE_TUNE``.

    With ``files`` the adapter of both is exported too, and how its files compare is among what was said.
    """
    place = Workplace(scratch)
    old = support_desk(11, **asdict(taught))
    new = support_desk(12, held_out=True, **asdict(asked))
    place.serve_desk("desk", old)
    place.serve_desk("new_desk", new)
    texts = [question.text for question in new.questions]
    contexts = place.retrieved("new_desk", texts)
    there = [
        any(tells(text, question.value) for text in found)
        for question, found in zip(new.questions, contexts, strict=True)
        if question.value is not None
    ]
    settings = GenerateSettings(task="generate", base_model=base, **FINE_TUNE | changes)
    found = place.retrieved("desk", [question.text for question in old.questions])
    adapters, sets, seconds = {}, {}, {}
    for name, rows in {
        "both": labelled(old.questions, found),
        "fine-tuning only": labelled(old.questions, None),
    }.items():
        started = time.perf_counter()
        adapters[name], sets[name] = place.adapter(name.replace("-", "_").replace(" ", "_"), rows, settings)
        seconds[name] = time.perf_counter() - started
        print(f"{name}: {len(rows)} labelled answers, trained in {seconds[name]:.0f} s", flush=True)
    alone, with_texts = rows_of(texts, None), rows_of(texts, contexts)
    said = {
        "base": answers(base_chat_model(adapters["both"]), alone),
        "retrieval only": answers(base_chat_model(adapters["both"]), with_texts),
        "fine-tuning only": answers(load_chat_model(adapters["fine-tuning only"]), alone),
        "both": answers(load_chat_model(adapters["both"]), with_texts),
    }
    measured = {name: scores(new.questions, each) for name, each in said.items()}
    rows = [{"contender": name, **each} for name, each in measured.items()]
    figures = {
        "retrieved": sum(there) / len(there),
        "style_before": measured["retrieval only"]["manner_of_all"],
        "style_after": measured["both"]["manner_of_all"],
        "facts_before": measured["retrieval only"]["facts"],
        "facts_after": measured["both"]["facts"],
        "invented_before": measured["retrieval only"]["invented"],
        "invented_after": measured["both"]["invented"],
        "handed_over": measured["both"]["handed_over"],
        "training_s": seconds["both"],
    }
    details = [
        {
            "question": question.text,
            "kind": question.kind,
            "value": question.value,
            "answers": {name: each[number].text for name, each in said.items()},
        }
        for number, question in enumerate(new.questions)
    ]
    real, right = real_documents(place, base_chat_model(adapters["both"]))
    more = {"answers": details, "real_documents": real}
    if files:
        more["files"] = parity(adapters["both"], sets["both"], scratch / "gguf")
    return rows, figures | right, more


def parity(adapter: Artifact, training_set: Artifact, folder: Path) -> list[dict[str, Any]]:
    """A row for each GGUF file: how far it is from the merged model."""
    made = export(
        adapter,
        training_set,
        settings=ReleaseSettings(quantisations=("F16", "Q8_0", "Q4_K_M"), serve="F16"),
        folder=folder,
        progress=lambda line: print(f"  {line}", flush=True),
        evaluation=EvaluationSettings(maximum_answer_tokens=MAXIMUM_TOKENS),
    )
    measures = ("agreement", "kl_divergence", "max_logit_difference", "answers_equal", "stopped")
    return [
        {"file": name, "MB": found["size"] / 1e6, **{key: found[key] for key in measures}}
        for name, found in made.manifest["quantisations"].items()
    ]


def real_documents(place: Workplace, model: ChatModel) -> tuple[list[dict[str, Any]], dict[str, float]]:
    """The untuned base on documents of the use case ``support``: every question, and the shares."""
    place.serve("support", load_declaration("support").sources, USE_CASES / "support")
    questions = [question for question, _ in REAL]
    contexts = place.retrieved("support", questions)
    said = answers(model, rows_of(questions, contexts))
    lines: list[dict[str, Any]] = [
        {
            "question": question,
            "value": value,
            "answer": answer.text,
            "right": tells(answer.text, value),
            "retrieved": any(tells(text, value) for text in found),
        }
        for (question, value), found, answer in zip(REAL, contexts, said, strict=True)
    ]
    return lines, {
        "real_documents_retrieved": sum(line["retrieved"] for line in lines) / len(lines),
        "real_documents_right": sum(line["right"] for line in lines) / len(lines),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--base", default=BUNDLED_CHAT, help="folder of the base model")
    parser.add_argument("--export", action="store_true", help="also compare GGUF files with the merged model")
    parser.add_argument("--json", type=Path, help="write rows, figures and all answers to this file")
    parser.add_argument("--quick", action="store_true", help="a few questions: does it run?")
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        sizes = QUICK if chosen.quick else Sizes()
        rows, figures, more = measure(chosen.base, Path(scratch), taught=sizes, asked=sizes, files=chosen.export)
    if chosen.export:
        print(table(more["files"]))
    report(
        "support",
        rows,
        figures,
        packages=["torch", "transformers", "peft", "qdrant-edge-py"],
        json_file=chosen.json,
        quick=chosen.quick,
        **more,
    )


if __name__ == "__main__":
    main()
