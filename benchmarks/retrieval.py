"""How good the answers are: nDCG@10 and recall@10 on four public sets, beside plain BM25 over whole documents.

    python -m benchmarks.retrieval [--data FOLDER] [--only SET] [--json FILE] [--quick]

Every set goes the way that a use case's documents go: its source is synced into a collection with the default settings,
and its questions are asked of that collection. A document ranks where its best chunk does. ``--quick`` only takes the
smallest set.

*lost* is the share of a set's own questions for which nothing counts as relevant by default (``minimum_similarity``),
so that no model answers them; *strangers* is the share of SciFact's claims, or for SciFact of a bank's customers'
questions (Banking77, test), for which something does; *banking* that of those for the other sets, which do have
something on cards and payments. The least similarity was chosen on SciFact's train questions and, that being one set
only, with a look at docsqa's.

Vectors differ in the third digit between backends and precisions of the embedder, and these scores with them: SciFact's
by up to .003.

What was chosen, and on what: never on the questions that are scored here, but on SciFact's 809 train questions (nDCG@10
first) and on the link questions of the handbook's versions v1, v2 and v3 (mean, second).

- fusion: DBSF .739, .803; RRF (k = 60) .728, .802; min-max .734, .806; DBSF with the missing one of two scores
  filled in: no gain;
- what the other chunks of a document add to each: nothing .739, .803; a fifth of what they score above the average of
  both rankings .741, .842; a fifth of all that they score .725, .843;
- candidates of each ranking: 50 .733, .827; 100 .741, .839; 200 .736, .845;
- words counted for BM25: the chunk's text .743, .815; its headings once more and the words of its document's id .740,
  .838; the headings twice more .741, .839;
- BM25 (with the id twice): k 1.2, b .75 and an average length of 100 .741, .842; of 256 .742, .835; of 60 .734, .848;
  k .9, b .4 .741, .840;
- weight of meaning: .4 .733, .845; .5 .741, .842; .6 .736, .837;
- tokens of a chunk (DBSF alone; SciFact and v3): 128 .734, .761; 220 .739, .770; 256 .735, not taken.
"""

from __future__ import annotations

import argparse
import csv
import json
import math
import re
import statistics
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.report import report
from pipelines.catalog import open_catalog
from pipelines.corpus.edge import EdgeIndex
from pipelines.corpus.embedding import Embedder
from pipelines.corpus.filters import conditions_of
from pipelines.corpus.index import Collection
from pipelines.corpus.pipeline import wanted_pipeline
from pipelines.corpus.search import Found, relevant, search_collection
from pipelines.corpus.settings import FieldType, FolderSource, RetrievalSettings, Source, TableSource
from pipelines.corpus.sync import sync_source
from pipelines.environment import REPOSITORY

DEPTH = 100
"""Chunks retrieved for a question, of which the best ten documents count."""

CONTENDERS: Mapping[str, Mapping[str, Any]] = {
    "dense": {"mode": "dense"},
    "words": {"mode": "words"},
    "hybrid, RRF": {"mode": "hybrid", "fusion": "rrf"},
    "hybrid (default)": {},
}
STRANGERS = 300
BASELINE = "plain BM25, whole documents"
K1, B = 1.2, 0.75


@dataclass(frozen=True, slots=True)
class Question:
    """What is asked, and which documents answer it."""

    text: str
    relevant: frozenset[str]
    filters: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Dataset:
    """Documents and questions."""

    name: str
    figure: str
    source: Source
    questions: Sequence[Question]
    documents: Mapping[str, str]
    """Whole texts by id, for the baseline."""
    metadata: Mapping[str, FieldType] = field(default_factory=dict)
    facts: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    """What the filters go by, by document, for the baseline."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--data", type=Path, default=REPOSITORY.parent / "shared" / "data")
    parser.add_argument("--json", type=Path, help="write the figures here")
    parser.add_argument("--quick", action="store_true", help="only the smallest set")
    loaders: dict[str, Callable[[Path], Dataset]] = {
        "docsqa-anthropic-cookbook": docsqa,
        "handbook-18f": handbook,
        "retrieval-scifact": scifact,
        "support-dstc11": dstc11,
    }
    parser.add_argument("--only", action="append", choices=loaders, help="one set; repeat for several")
    given = parser.parse_args()
    names = given.only or (list(loaders)[:1] if given.quick else list(loaders))
    needed = {*names, "retrieval-scifact", "intents-banking77"}
    if missing := sorted(name for name in needed if not (given.data / name).is_dir()):
        parser.error(f"--data {given.data} does not hold {', '.join(missing)}")
    with (given.data / "intents-banking77" / "test.csv").open(encoding="utf-8", newline="") as file:
        banking = [row["text"] for row in csv.DictReader(file)]
    claims = [each.text for each in scifact(given.data / "retrieval-scifact").questions]
    most = 30 if given.quick else STRANGERS
    rows: list[dict[str, Any]] = []
    figures: dict[str, float] = {}
    for name in names:
        dataset = loaders[name](given.data / name)
        with tempfile.TemporaryDirectory() as scratch:
            strangers = (
                {"strangers": banking} if loaders[name] is scifact else {"strangers": claims, "banking": banking}
            )
            some = {who: asked[:: len(asked) // most] for who, asked in strangers.items()}
            measured = measure(dataset, Path(scratch), some)
        rows += measured
        figures[dataset.figure] = measured[-1]["nDCG@10"]
    packages = ("qdrant-edge-py", "torch", "sentence-transformers", "openvino")
    report("retrieval", rows, figures, packages=packages, json_file=given.json)


def measure(dataset: Dataset, scratch: Path, strangers: Mapping[str, Sequence[str]]) -> list[dict[str, Any]]:
    """A row for each contender, the default settings last."""
    rankings = {BASELINE: timed(lambda: plain_bm25(dataset))}
    retrieval = RetrievalSettings(metadata=dataset.metadata)
    catalog, index = open_catalog(f"sqlite:///{scratch / 'catalog.db'}"), EdgeIndex(scratch / "index")
    use_case = "retrieval"
    sync_source(
        dataset.source,
        use_case=use_case,
        base=scratch,
        retrieval=retrieval,
        catalog=catalog,
        index=index,
        progress=lambda line: print(f"  {dataset.name}: {line}", flush=True),
    )
    pipeline = wanted_pipeline(use_case, retrieval)
    pipeline.embedder.encode_question("loads the model before the clock starts")
    with index.open(pipeline.collection) as points:
        chunks = points.count()
        for name, changes in CONTENDERS.items():
            settings = retrieval.model_copy(update=dict(changes))

            def answers(settings: RetrievalSettings = settings) -> list[list[str]]:
                ranked = []
                for question in dataset.questions:
                    found = chunks_for(question, points, pipeline.embedder, settings, DEPTH)
                    ranked.append(list(dict.fromkeys(each.payload["document_id"] for each in found)))
                return ranked

            rankings[name] = timed(answers)
        lost = 1 - told(points, pipeline.embedder, dataset.questions, retrieval)
        believed = {
            name: told(points, pipeline.embedder, [Question(each, frozenset()) for each in asked], retrieval)
            for name, asked in strangers.items()
        }
    catalog.dispose()
    return [
        {
            "set": dataset.name,
            "contender": name,
            "nDCG@10": mean(dataset, ranked, ndcg),
            "recall@10": mean(dataset, ranked, recall),
            "questions": len(dataset.questions),
            "documents": len(dataset.documents),
            "chunks": None if name == BASELINE else chunks,
            "ms/question": 1000 * seconds / len(dataset.questions),
            **({"lost": lost, **believed} if name == list(CONTENDERS)[-1] else {}),
        }
        for name, (ranked, seconds) in rankings.items()
    ]


def told(points: Collection, embedder: Embedder, questions: Sequence[Question], retrieval: RetrievalSettings) -> float:
    """Share of questions for which something counts as relevant."""
    found = (chunks_for(question, points, embedder, retrieval, retrieval.top_k) for question in questions)
    pairs = zip(questions, found, strict=True)
    return statistics.fmean(bool(relevant(question.text, chunks, retrieval)) for question, chunks in pairs)


def chunks_for(
    question: Question, points: Collection, embedder: Embedder, retrieval: RetrievalSettings, top_k: int
) -> list[Found]:
    conditions = conditions_of(question.filters, retrieval.metadata)
    [found] = search_collection(
        points, embedder, [question.text], retrieval=retrieval, top_k=top_k, conditions=conditions
    )
    return found


def timed(answers: Callable[[], list[list[str]]]) -> tuple[list[list[str]], float]:
    start = time.perf_counter()
    return answers(), time.perf_counter() - start


def mean(
    dataset: Dataset, rankings: Sequence[Sequence[str]], score: Callable[[Sequence[str], frozenset[str]], float]
) -> float:
    return statistics.fmean(
        score(ranked, each.relevant) for ranked, each in zip(rankings, dataset.questions, strict=True)
    )


def ndcg(ranked: Sequence[str], relevant: frozenset[str], k: int = 10) -> float:
    """Normalised discounted cumulative gain at ``k`` of binary judgements (Järvelin and Kekäläinen, 2002)."""
    gain = sum(1 / math.log2(place + 2) for place, each in enumerate(ranked[:k]) if each in relevant)
    return gain / sum(1 / math.log2(place + 2) for place in range(min(k, len(relevant))))


def recall(ranked: Sequence[str], relevant: frozenset[str], k: int = 10) -> float:
    return len(relevant & set(ranked[:k])) / len(relevant)


def plain_bm25(dataset: Dataset) -> list[list[str]]:
    """Okapi BM25 over whole documents with k1 1.2 and b .75: Qdrant's words, stop words and stems, no index."""
    import qdrant_edge as qe

    terms = qe.Bm25(qe.Bm25Config(k=0.0, b=0.0, language="english"))  # only to cut texts into terms
    cut = re.compile(r"\w+")
    stems: dict[str, tuple[int, ...]] = {}

    def words(text: str) -> list[int]:
        found: list[int] = []
        for word in cut.findall(text.lower()):
            if word not in stems:
                stems[word] = tuple(terms.embed_query(word).indices)
            found += stems[word]
        return found

    counts = {name: Counter(words(text)) for name, text in dataset.documents.items()}
    lengths = {name: counter.total() for name, counter in counts.items()}
    usual = statistics.fmean(lengths.values())
    postings: dict[int, list[tuple[str, int]]] = defaultdict(list)
    for name, counter in counts.items():
        for term, count in counter.items():
            postings[term].append((name, count))
    rankings = []
    for question in dataset.questions:
        scores: dict[str, float] = defaultdict(float)
        for term in set(words(question.text)):
            idf = math.log(1 + (len(counts) - len(postings[term]) + 0.5) / (len(postings[term]) + 0.5))
            for name, count in postings[term]:
                if all(dataset.facts[name][key] in wanted for key, wanted in question.filters.items()):
                    norm = K1 * (1 - B + B * lengths[name] / usual)
                    scores[name] += idf * count * (K1 + 1) / (count + norm)
        rankings.append(sorted(scores, key=lambda name: (-scores[name], name))[:DEPTH])
    return rankings


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def judgements(path: Path) -> dict[str, frozenset[str]]:
    found: dict[str, set[str]] = defaultdict(set)
    for line in path.read_text(encoding="utf-8").splitlines()[1:]:
        question, document, grade = line.split("\t")
        if int(grade) > 0:
            found[question].add(document)
    return {question: frozenset(relevant) for question, relevant in found.items()}


def scifact(folder: Path) -> Dataset:
    """BEIR's SciFact, test questions."""
    texts = {each["_id"]: each["text"] for each in lines(folder / "queries.jsonl")}
    return Dataset(
        "SciFact, test",
        "scifact_ndcg10",
        table(folder, title="{title}"),
        [Question(texts[question], relevant) for question, relevant in judgements(folder / "qrels_test.tsv").items()],
        {each["_id"]: f"{each['title']} {each['text']}" for each in lines(folder / "corpus.jsonl")},
    )


def handbook(folder: Path) -> Dataset:
    """Texts of the handbook's own links; what they link to is relevant."""
    version = folder / "v4"
    return Dataset(
        "handbook v4, links",
        "handbook_v4_ndcg10",
        FolderSource(name="documents", type="folder", url=str(version), glob=("**/*.md",)),
        [Question(each["query"], frozenset(each["relevant"])) for each in lines(folder / "link_qrels_v4.jsonl")],
        {str(path.relative_to(version)): path.read_text(encoding="utf-8") for path in version.rglob("*.md")},
    )


def docsqa(folder: Path) -> Dataset:
    """Questions on product documentation, cut by its authors."""
    return Dataset(
        "docsqa",
        "docsqa_ndcg10",
        table(folder, title="{title}"),
        [Question(each["text"], frozenset(each["relevant"])) for each in lines(folder / "queries.jsonl")],
        {each["_id"]: each["text"] for each in lines(folder / "corpus.jsonl")},
    )


def dstc11(folder: Path) -> Dataset:
    """Customers' questions about the hotels and restaurants that the conversation is about."""
    relevant = judgements(folder / "qrels.tsv")
    rows = lines(folder / "corpus.jsonl")
    return Dataset(
        "DSTC11, entity filter",
        "dstc11_ndcg10",
        table(folder, title=None),
        [
            Question(each["text"], relevant[each["_id"]], {"entity": each["entities"]})
            for each in lines(folder / "queries.jsonl")
            if each["_id"] in relevant
        ],
        {each["_id"]: each["text"] for each in rows},
        {"entity": "keyword"},
        {each["_id"]: {"entity": each["entity"]} for each in rows},
    )


def table(folder: Path, title: str | None) -> TableSource:
    return TableSource(
        name="documents", type="table", url=str(folder / "corpus.jsonl"), key="_id", text="{text}", title=title
    )


if __name__ == "__main__":
    main()
