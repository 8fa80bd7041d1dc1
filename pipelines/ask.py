"""The query surface: ``python -m pipelines.ask <use case> "question"``, and the calls behind it.

A use case with a published chat model answers, and says what it is from; one without, or ``--hits``, shows what its
index has. The library call for an answer is ``pipelines.serving.answering.answer``.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from pipelines.corpus.filters import Filters, parsed_filters
from pipelines.corpus.search import Hit, checked_limit, search
from pipelines.corpus.settings import Mode
from pipelines.declaration import USE_CASES, declared, load_declaration
from pipelines.environment import Environment
from pipelines.errors import ConfigError, FreshetError, NotBuiltError
from pipelines.stores import Stores

if TYPE_CHECKING:
    from pipelines.serving.answering import Answer, Citation


@dataclass(frozen=True, slots=True)
class Classification:
    """What a published model says about a text."""

    labels: list[str]
    """The labels it assigns: exactly one unless the use case is multi-label, or the model abstains."""
    scores: dict[str, float]
    """Probability of each category, calibrated where there were validation rows enough."""
    version: str
    """Published version that answered."""
    file: str
    """GGUF file that answered."""


def ask(
    use_case: str,
    question: str,
    *,
    top_k: int | None = None,
    filters: Filters | None = None,
    principals: Sequence[str] | None = None,
    neighbours: int = 0,
    mode: Mode | None = None,
    environment: Environment | None = None,
    use_cases: Path = USE_CASES,
) -> list[Hit]:
    """The chunks of the served index that answer ``question`` best, best first.

    Args:
        use_case: whose index.
        question: in words.
        top_k: most hits; default: as the use case says.
        filters: what the documents' metadata must be: ``{"product": ["pump", "tank"], "year": {"gte": 2025}}``.
        principals: groups and names of the one who asks, for access rules.
        neighbours: so many chunks before and after each hit come with it.
        mode: hybrid, dense or words; default: as the use case says.
        environment: where the stores are.
        use_cases: folder of the use cases.

    Raises:
        ConfigError: no such use case, an empty question, a number out of range, or a filter that cannot be.
        NotBuiltError: the index is not built yet; nothing is created then.
    """
    declaration = load_declaration(use_case, use_cases)
    if not declaration.sources:
        raise ConfigError(f"use case {use_case!r} declares no sources, so there is nothing to search")
    environment = environment or Environment()
    retrieval = declaration.retrieval.model_copy(update={} if mode is None else {"mode": mode})
    limit = checked_limit(question, retrieval.top_k if top_k is None else top_k)
    if environment.database_url is None and not environment.catalog_file.exists():  # asking makes nothing
        raise NotBuiltError(f"{use_case} serves no index yet: run the job {use_case}_refresh first")
    stores = Stores(environment)
    try:
        return search(
            question,
            use_case=use_case,
            retrieval=retrieval,
            catalog=stores.catalog,
            index=stores.index,
            top_k=limit,
            filters=filters,
            principals=principals,
            neighbours=neighbours,
        )
    finally:
        stores.close()


def classify(use_case: str, text: str, *, environment: Environment | None = None) -> Classification:
    """What the published model of ``use_case`` says about ``text``, through its GGUF file.

    Raises:
        ConfigError: no such use case, one without fine-tuning, or an empty text.
        NotBuiltError: no model is published yet.
    """
    declaration = load_declaration(use_case)
    if declaration.fine_tune is None or declaration.task != "classify":
        why = "declares no fine_tune" if declaration.fine_tune is None else "trains a model that writes answers"
        raise ConfigError(f"use case {use_case!r} {why}, so it has none to classify with: ask it a question")
    if not text.strip():
        raise ConfigError(f"text {text!r} is empty: give the text to classify")
    from pipelines.release.classifier import GgufClassifier
    from pipelines.release.registry import champion

    version = champion((environment or Environment()).registry_url, use_case)
    if version is None:
        raise NotBuiltError(f"{use_case} has no published model yet: run the job {use_case}_retrain first")
    classifier = GgufClassifier(version.gguf(declaration.release.serve))
    probabilities = classifier.probabilities([text])[0]
    return Classification(
        labels=classifier.predict([text])[0],
        scores={name: float(value) for name, value in zip(classifier.categories, probabilities, strict=True)},
        version=version.version,
        file=classifier.path.name,
    )


def main(arguments: Sequence[str] | None = None, *, use_cases: Path = USE_CASES) -> int:
    """Run the command; 0 when answered, 2 when it cannot be."""
    parser = argparse.ArgumentParser(
        prog="python -m pipelines.ask", description="Ask a use case's served index, or its published model."
    )
    parser.add_argument("use_case", help=f"one of: {', '.join(declared(use_cases))}")
    parser.add_argument("question", nargs="?", help="what to look up in the index")
    parser.add_argument("--hits", action="store_true", help="show what the index has, whether or not a model answers")
    parser.add_argument("--classify", metavar="TEXT", help="classify TEXT with the published model instead")
    parser.add_argument("--top-k", type=int, metavar="N", help="how many chunks to return (1 to 100)")
    parser.add_argument(
        "--filter",
        action="append",
        default=[],
        metavar="FIELD=VALUE",
        help="only documents with this metadata, also FIELD>=VALUE, >, <=, <; repeat for alternatives and other fields",
    )
    parser.add_argument(
        "--principal", action="append", default=[], metavar="NAME", help="group or user who asks; repeat for several"
    )
    parser.add_argument(
        "--neighbours", type=int, default=0, metavar="N", help="show N chunks before and after each hit too: as --hits"
    )
    parser.add_argument("--mode", choices=get_args(Mode), help="search by meaning, by words, or by both: as --hits")
    parser.add_argument("--json", action="store_true", help="print JSON")
    given = parser.parse_args(arguments)
    if (given.question is None) == (given.classify is None):
        parser.error("give either a question or --classify TEXT")
    only_hits = given.hits or given.neighbours > 0 or given.mode is not None
    try:
        if given.classify is not None:
            answer: dict[str, Any] = asdict(classify(given.use_case, given.classify))
            lines = [f"{', '.join(answer['labels']) or '(no label)'}   [{answer['version']}, {answer['file']}]"]
            lines += [f"  {score:.3f}  {name}" for name, score in _ranked(answer["scores"])]
        elif not only_hits and _answers(given.use_case, use_cases):
            said = _answer(given, use_cases)
            answer = {"use_case": given.use_case, "question": given.question, **asdict(said)}
            lines = _told(said)
        else:
            hits = ask(
                given.use_case,
                given.question,
                top_k=given.top_k,
                filters=parsed_filters(given.filter),
                principals=given.principal,
                neighbours=given.neighbours,
                mode=given.mode,
                use_cases=use_cases,
            )
            answer = {
                "use_case": given.use_case,
                "question": given.question,
                "hits": [asdict(hit) for hit in hits],
            }
            lines = [line for number, hit in enumerate(hits, 1) for line in _shown(number, hit)]
    except FreshetError as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return 2
    text = json.dumps(answer, ensure_ascii=False, indent=2, default=_isoformat) if given.json else "\n".join(lines)
    print(text or "Nothing is found: no document fits, or the sources are empty.")
    return 0


def _answers(use_case: str, use_cases: Path) -> bool:
    """Whether a published chat model answers; without one, the index shows what it has.

    Raises:
        ConfigError: there is no such use case.
        NotBuiltError: it trains a chat model, none is published yet, and there is no index to show either.
    """
    declaration = load_declaration(use_case, use_cases)
    if declaration.fine_tune is None or declaration.task != "generate":
        return False
    from pipelines.release.registry import champion

    if champion(Environment().registry_url, use_case) is not None:
        return True
    if not declaration.sources:
        raise NotBuiltError(f"{use_case} has no published model yet: run the job {use_case}_retrain first")
    print(f"{use_case} has no published model yet (job {use_case}_retrain): this is its index", file=sys.stderr)
    return False


def _answer(given: argparse.Namespace, use_cases: Path) -> Answer:
    from pipelines.serving.answering import answer

    return answer(
        given.use_case,
        given.question,
        principals=given.principal,
        filters=parsed_filters(given.filter),
        top_k=given.top_k,
        use_cases=use_cases,
    )


def _told(said: Answer) -> list[str]:
    """An answer for people."""
    lines = [said.text or "(It said nothing.)", ""]
    lines += [_cited(citation) for citation in said.citations]
    if said.hits is not None and not said.citations:
        nothing = "nothing relevant was found (--hits shows what came closest)"
        found = f"{len(said.hits)} passages were found" if said.hits else nothing
        lines.append(f"It is from no document: {found}.")
    cut = ", cut at the most tokens of an answer" if said.finish == "length" else ""
    return [*lines, f"{said.version}, {said.file}{cut}"]


def _cited(citation: Citation) -> str:
    updated = "unknown" if citation.updated_at is None else f"{citation.updated_at:%Y-%m-%d %H:%M}"
    old = "" if citation.age_seconds is None else f" ({_age(citation.age_seconds)} ago)"
    return (
        f"[{citation.number}] {citation.title}   {citation.uri}   version {citation.version[:16]}   "
        f"updated {updated}{old}, indexed {citation.indexed_at:%Y-%m-%d %H:%M:%S} UTC"
    )


def _age(seconds: float) -> str:
    for name, length in (("day", 86_400), ("hour", 3_600), ("minute", 60)):
        if seconds >= length:
            count = int(seconds // length)
            return f"{count} {name}{'s' * (count > 1)}"
    return f"{int(seconds)} s"


def _ranked(scores: dict[str, float]) -> list[tuple[str, float]]:
    return sorted(scores.items(), key=lambda item: -item[1])


def _shown(number: int, hit: Hit) -> list[str]:
    updated = "unknown" if hit.updated_at is None else f"{hit.updated_at:%Y-%m-%d %H:%M}"
    passage = "\n".join((*hit.before, hit.text, *hit.after))
    body = "\n".join(f"   {line}" for line in passage.splitlines() if line.strip())
    hidden = "   (hidden once access rules are enforced)" if hit.would_be_hidden else ""
    dates = f"updated {updated}, indexed {hit.indexed_at:%Y-%m-%d %H:%M:%S} UTC"
    return [
        f"{number}. {hit.title}   score {hit.score:.3f}{hidden}",
        f"   {hit.uri}   version {hit.version[:16]}   {dates}",
        body,
        "",
    ]


def _isoformat(value: object) -> str:
    if isinstance(value, datetime):
        return value.isoformat()
    raise TypeError(f"{type(value).__name__} is not JSON")


if __name__ == "__main__":
    sys.exit(main())
