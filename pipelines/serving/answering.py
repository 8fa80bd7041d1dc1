"""An answer of a published chat model: retrieval, the prompt as in training, llama.cpp, and what it is from."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from contextlib import closing
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self

from pipelines.corpus.filters import Filters
from pipelines.corpus.search import Hit, relevant, search
from pipelines.declaration import USE_CASES, Declaration, load_declaration
from pipelines.environment import Environment
from pipelines.errors import ConfigError, NotBuiltError
from pipelines.evaluation.answers import refuses, words
from pipelines.prompt import Message, PromptSettings, build_messages, kept_context, render
from pipelines.release.registry import PublishedVersion, champion
from pipelines.serving.engine import Engine, Piece, Sampling
from pipelines.serving.template import ChatTemplate
from pipelines.stores import Stores

GRAMMAR = "grammar.gbnf"
LEAST_CONTEXT = 32
"""Tokens of retrieved text below which a prompt is refused as too long: what is left would say nothing."""

Finish = Literal["stop", "length"]


@dataclass(frozen=True, slots=True)
class Citation:
    """A retrieved text that an answer is from."""

    number: int
    """In the prompt, and so in an answer that names it: [1]."""
    document_id: str
    source: str
    title: str
    uri: str
    version: str
    """The source's change token for the text."""
    updated_at: datetime | None
    indexed_at: datetime
    age_seconds: float | None
    """Since ``updated_at``, when it was asked for."""
    score: float


@dataclass(frozen=True, slots=True)
class Answer:
    """What a published model said, and what it is from."""

    text: str
    citations: tuple[Citation, ...]
    """Of the retrieved texts that the model saw, those that the answer names or shares its words with; none where it
    refuses."""
    hits: tuple[Hit, ...] | None
    """All that was retrieved, best first, none where nothing of it is relevant; None where the use case has no
    sources."""
    version: str
    """Published version that answered."""
    file: str
    """Its GGUF file."""
    finish: Finish
    """Whether it ended by itself, or at the most tokens that were asked for."""
    refused: bool
    """Whether it says, in the use case's words, that it does not know."""
    prompt_tokens: int
    answer_tokens: int
    turns_left_out: int = 0
    """Earlier turns that did not fit the model's context."""


@dataclass(frozen=True, slots=True)
class Prepared:
    """A prompt, and what it was made of."""

    prompt: str
    prompt_tokens: int
    sampling: Sampling
    question: str
    hits: tuple[Hit, ...] | None
    shown: int
    """So many of the hits are in the prompt, the first ones."""
    turns_left_out: int
    answer: str | None = None
    """What is said without asking the model: nothing relevant was found, and it is not to answer on its own."""


class ServedModel:
    """One published chat model in memory; answers may be asked for from any thread."""

    def __init__(
        self, version: PublishedVersion, quantisation: str | None = None, *, slots: int = 4, threads: int | None = None
    ) -> None:
        """Load ``version``: the file of ``quantisation``, or where it has none, the one that it was published to serve.

        Raises:
            ConfigError: it is no chat model.
            NotBuiltError: a file is not among those published.
            ArtifactError: a file is missing, altered, or llama.cpp cannot load it.
            ServerUnavailableError: the registry cannot be reached.
        """
        facts = version.manifest
        if facts.get("task", "classify") != "generate":
            raise ConfigError(
                f"{version.uri} classifies and writes no answers: python -m pipelines.ask --classify TEXT"
            )
        self.use_case, self.version = version.use_case, version.version
        self.prompt = PromptSettings.model_validate(facts["prompt"])
        self.context_tokens = int(facts["context_length"])
        self.maximum_answer_tokens = int(facts["maximum_answer_tokens"])
        self._stops = tuple(map(str, facts["stops"]))
        self._template = ChatTemplate(version)
        has_grammar = self.prompt.answer_format is not None and GRAMMAR in facts["files"]
        self._grammar = version.fetch(GRAMMAR).read_text(encoding="utf-8") if has_grammar else None
        if quantisation is None or quantisation not in facts["quantisations"]:
            quantisation = str(facts["settings"]["release"]["serve"])
        path = version.gguf(quantisation)
        self.file = path.name
        self._engine = Engine(path, context_tokens=self.context_tokens, slots=slots, threads=threads)

    def count_tokens(self, text: str) -> int:
        """Tokens of a text, by the GGUF's tokenizer."""
        return self._engine.count(self._template.composed(text))

    def prepared(
        self,
        messages: Sequence[Message],
        hits: Sequence[Hit] | None,
        *,
        maximum_tokens: int | None = None,
        temperature: float = 0.0,
        top_p: float = 1.0,
        seed: int | None = None,
        stops: Sequence[str] = (),
    ) -> Prepared:
        """The prompt of a question, as in training and evaluation, within the model's context.

        Where it is too long, earlier turns are left out, the oldest first, then retrieved text, the last first; never
        the system text, the question, or room for the answer.

        Raises:
            ConfigError: the last turn is not the user's, the template refuses the turns, or the question alone is too
                long.
        """
        most = min(maximum_tokens or self.maximum_answer_tokens, self.maximum_answer_tokens)
        turns, settings, left_out = list(messages), self.prompt, 0
        texts = None if hits is None else [hit.text for hit in hits]
        while True:
            chat = build_messages(settings, turns, texts, count_tokens=self.count_tokens)
            prompt = self._template.composed(render(self._template, chat))
            tokens = self._engine.count(prompt)
            kept = kept_context(settings, texts or (), count_tokens=self.count_tokens)
            too_many = tokens + most - self.context_tokens
            if too_many <= 0:
                break
            fewer = _without_oldest(turns)
            if fewer is not None:
                left_out, turns = left_out + len(turns) - len(fewer), fewer
                continue
            context = sum(map(self.count_tokens, kept)) - too_many
            if context < LEAST_CONTEXT:
                raise ConfigError(
                    f"a prompt of {tokens} tokens leaves too little for retrieved text and an answer of up to {most}: "
                    f"{self.use_case} {self.version} reads {self.context_tokens} in all; ask in fewer words"
                )
            settings = settings.model_copy(update={"context_tokens": context})
        alone = not any(turn.role == "assistant" for turn in messages)  # what follows may be about what was said
        nothing_found = texts is not None and not texts
        sampling = Sampling(
            maximum_tokens=most,
            temperature=temperature,
            top_p=top_p,
            seed=seed,
            stops=(*self._stops, *stops),
            grammar=self._grammar,
        )
        return Prepared(
            prompt,
            tokens,
            sampling,
            turns[-1].content,
            None if hits is None else tuple(hits),
            len(kept),
            left_out,
            answer=settings.unasked_answer if nothing_found and alone else None,
        )

    def said(self, prepared: Prepared) -> Generator[Piece]:
        """The answer as it is written, without the space around it; closing the generator ends the writing.

        Raises:
            ServerUnavailableError: llama.cpp failed.
        """
        if prepared.answer is not None:
            yield Piece(prepared.answer, "stop")
            return
        held, begun = "", False
        with closing(self._engine.generate(prepared.prompt, prepared.sampling)) as pieces:
            for piece in pieces:
                text = held + piece.text
                text = text if begun else text.lstrip()
                begun = begun or bool(text)
                kept = text.rstrip()
                held = text[len(kept) :]
                if kept or piece.finish:
                    yield Piece(kept, piece.finish)

    def answered(self, prepared: Prepared, text: str, finish: Finish) -> Answer:
        """What there is to say about ``text``, which answers ``prepared``."""
        refused = refuses(text, self.prompt.refusal)
        return Answer(
            text=text,
            citations=() if refused else citations(text, prepared),
            hits=prepared.hits,
            version=self.version,
            file=self.file,
            finish=finish,
            refused=refused,
            prompt_tokens=prepared.prompt_tokens,
            answer_tokens=self._engine.count(text),
            turns_left_out=prepared.turns_left_out,
        )

    def answer(self, messages: Sequence[Message], hits: Sequence[Hit] | None, **sampling: Any) -> Answer:
        """The whole answer at once; arguments as of ``prepared``."""
        prepared = self.prepared(messages, hits, **sampling)
        pieces = list(self.said(prepared))
        return self.answered(prepared, "".join(piece.text for piece in pieces), pieces[-1].finish or "length")

    def close(self) -> None:
        """Finish what runs, and free the memory."""
        self._engine.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def answer(
    use_case: str,
    question: str | Sequence[Message],
    *,
    principals: Sequence[str] | None = None,
    filters: Filters | None = None,
    top_k: int | None = None,
    maximum_tokens: int | None = None,
    temperature: float = 0.0,
    top_p: float = 1.0,
    seed: int | None = None,
    stops: Sequence[str] = (),
    environment: Environment | None = None,
    use_cases: Path = USE_CASES,
) -> Answer:
    """What the published model of ``use_case`` answers to ``question``, with what is retrieved for it.

    Args:
        use_case: whose model and index.
        question: in words, or a chat whose last turn is the user's, which alone is searched for.
        principals: groups and names of the one who asks, for access rules.
        filters: what the documents' metadata must be.
        top_k: most chunks to retrieve; default: as the use case says.
        maximum_tokens: most tokens of the answer; default, and at most: as it was published.
        temperature: 0 is greedy, as it was evaluated.
        top_p: share of the probability that is drawn from.
        seed: of what is drawn.
        stops: texts that end the answer.
        environment: where stores and registry are.
        use_cases: folder of the use cases.

    Raises:
        ConfigError: no such use case, one without a chat model, an empty question, or one that is too long.
        NotBuiltError: no model is published yet, or no index is served.
    """
    environment = environment or Environment()
    declaration = load_declaration(use_case, use_cases)
    turns = [Message("user", question)] if isinstance(question, str) else list(question)
    version = published(declaration, environment)
    if version is None:
        raise NotBuiltError(f"{use_case} has no published model yet: run the job {use_case}_retrain first")
    stores = Stores(environment)
    try:
        hits = retrieved(declaration, stores, turns, principals=principals, filters=filters, top_k=top_k)
    finally:
        stores.close()
    with ServedModel(version, declaration.release.serve, slots=1) as model:
        return model.answer(
            turns,
            hits,
            maximum_tokens=maximum_tokens,
            temperature=temperature,
            top_p=top_p,
            seed=seed,
            stops=stops,
        )


def published(declaration: Declaration, environment: Environment) -> PublishedVersion | None:
    """The champion of a use case that trains a chat model; None while nothing is published.

    Raises:
        ConfigError: it trains no chat model.
        ArtifactError: the registry's pointer, or what it names, is damaged.
        ServerUnavailableError: the registry cannot be reached.
    """
    if declaration.fine_tune is None or declaration.task != "generate":
        raise ConfigError(
            f"use case {declaration.name!r} has no chat model: give it fine_tune with task: generate, or ask its index"
        )
    return champion(environment.registry_url, declaration.name)


def retrieved(
    declaration: Declaration,
    stores: Stores,
    messages: Sequence[Message],
    *,
    principals: Sequence[str] | None = None,
    filters: Filters | None = None,
    top_k: int | None = None,
) -> tuple[Hit, ...] | None:
    """What the served index has on the last turn, best first; None where the use case has no sources.

    Nothing where none of it is relevant: see ``search.relevant``.

    Raises:
        ConfigError: an empty question, a number out of range, or a filter that cannot be.
        NotBuiltError: the index is not built yet.
    """
    if not declaration.sources:
        if filters:
            raise ConfigError(f"use case {declaration.name!r} declares no sources, so there is nothing to filter")
        return None
    environment = stores.environment
    if environment.database_url is None and not environment.catalog_file.exists():  # asking makes nothing
        raise NotBuiltError(f"{declaration.name} serves no index yet: run the job {declaration.name}_refresh first")
    question = messages[-1].content if messages else ""
    ask = partial(
        search,
        question,
        use_case=declaration.name,
        retrieval=declaration.retrieval,
        catalog=stores.catalog,
        index=stores.index,
        top_k=top_k,
        filters=filters,
        principals=principals,
    )
    try:
        hits = ask()
    except NotBuiltError:  # another collection took its place between the look at what is served and its opening
        hits = ask()
    return tuple(relevant(question, hits, declaration.retrieval))


def citations(text: str, prepared: Prepared) -> tuple[Citation, ...]:
    """The texts that an answer is from: those that it names ([1]), or else those that its own words are in.

    A word is its own that the question does not have; texts with at least half as many of them as the richest one are
    cited, and all that the model saw where none has any.
    """
    shown = list(enumerate(prepared.hits or (), start=1))[: prepared.shown]
    cited = [number for number, _ in shown if f"[{number}]" in text]
    if not cited and text:
        own = {word for word in words(text) if len(word) > 3 or word[0].isdecimal()} - set(words(prepared.question))
        shared = {number: len(own & set(words(hit.text))) for number, hit in shown}
        least = max(shared.values(), default=0) / 2
        cited = [number for number, count in shared.items() if count >= least]
    return tuple(
        Citation(
            number=number,
            document_id=hit.document_id,
            source=hit.source,
            title=hit.title,
            uri=hit.uri,
            version=hit.version,
            updated_at=hit.updated_at,
            indexed_at=hit.indexed_at,
            age_seconds=hit.age_seconds,
            score=hit.score,
        )
        for number, hit in shown
        if number in cited
    )


def _without_oldest(turns: Sequence[Message]) -> list[Message] | None:
    """``turns`` without the oldest question and what was said to it; None where only the last one is left."""
    start = 1 if turns and turns[0].role == "system" else 0
    rest = [place for place in range(start + 1, len(turns)) if turns[place].role == "user"]
    return [*turns[:start], *turns[rest[0] :]] if rest else None
