"""The engine on a tiny Llama with random weights: many answers at once are those of one at a time."""

from __future__ import annotations

import random
import subprocess
import sys
import time
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipelines.errors import ArtifactError, ConfigError, ServerUnavailableError
from pipelines.release.gguf import convert
from pipelines.release.language import GgufLanguageModel
from pipelines.serving import engine as engine_module
from pipelines.serving.engine import Engine, Piece, Sampling
from tests.pipelines.chat_base import QUESTIONS, THINGS, make_chat_base

CONTEXT = 512
LONG = Sampling(maximum_tokens=400)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that is sure of what it says, and says ASCII and never an end, so that texts tell tokens apart."""
    from safetensors.torch import load_file, save_file
    from transformers import AutoTokenizer

    folder = tmp_path_factory.mktemp("engine")
    base = make_chat_base(folder / "base")
    tokenizer = AutoTokenizer.from_pretrained(base)
    weights = load_file(base / "model.safetensors")
    for name in weights:
        if "_proj" in name or "lm_head" in name:
            weights[name] *= 5
    for token in range(len(tokenizer)):
        text = tokenizer.decode([token], skip_special_tokens=True)
        if not (text and text.isascii() and text.isprintable()):
            weights["lm_head.weight"][token] = 0
    save_file(weights, base / "model.safetensors", metadata={"format": "pt"})
    convert(base, folder / "tiny.gguf", name="tiny", metadata={})
    return folder / "tiny.gguf"


@pytest.fixture(scope="module")
def engine(model: Path) -> Iterator[Engine]:
    with Engine(model, context_tokens=CONTEXT, slots=4, threads=1) as loaded:
        yield loaded


def prompt(thing: str, question: str = "Which colour has the {} ?") -> str:
    return f"<|im_start|>user\n{question.format(thing)}<|im_end|>\n<|im_start|>assistant\n"


def said(pieces: Iterator[Piece]) -> tuple[str, str | None]:
    parts = list(pieces)
    assert all(part.finish is None for part in parts[:-1])
    return "".join(part.text for part in parts), parts[-1].finish


def exactly(text: str, **sampling: Any) -> Sampling:
    """A grammar that leaves one answer."""
    return Sampling(maximum_tokens=100, grammar=f'root ::= "{text}"', **sampling)


def until(done: Callable[[], bool]) -> None:
    end = time.monotonic() + 30
    while not done():
        assert time.monotonic() < end, "nothing happened for 30 seconds"
        time.sleep(0.01)


def certain(model: Path, prompts: list[str], tokens: int) -> dict[str, list[int]]:
    """Greedy answers of llama.cpp alone, where no rounding can decide: the first is ahead of the second by far."""
    reference, answers = GgufLanguageModel(model, CONTEXT), {}
    for text in prompts:
        ids = reference.tokens(text)
        answer, _ = reference.answer(ids, tokens)
        best = np.sort(reference.logits([*ids, *answer[:-1]], first=len(ids) - 1), axis=1)
        if (best[:, -1] - best[:, -2]).min() > 0.02 * best.std():
            answers[text] = answer
    return answers


def test_concurrent_answers_are_those_of_one_at_a_time(model: Path, engine: Engine) -> None:
    """Of prompts whose answers do not hang on rounding, which depends on what is computed together."""
    questions = [("Thank you . " * 15 * place) + question for place, question in enumerate(QUESTIONS)]
    sure = certain(model, [prompt(thing, each) for thing in THINGS for each in questions], tokens=16)
    assert len(sure) >= 16
    expected = {text: sure[text] for text in random.Random(0).sample(list(sure), 16)}
    assert max(map(engine.count, expected)) > engine_module.PROMPT_TOKENS_AT_ONCE
    sampling = Sampling(maximum_tokens=16)
    with Engine(model, context_tokens=CONTEXT, slots=1, threads=1) as single:
        alone = {text: said(single.generate(text, sampling)) for text in expected}
    with ThreadPoolExecutor(len(expected)) as pool:
        together = dict(
            zip(expected, pool.map(lambda text: said(engine.generate(text, sampling)), expected), strict=True)
        )
    assert together == alone
    pieces = {text: "".join(engine._worker._bytes(token).decode() for token in ids) for text, ids in expected.items()}
    assert {text: answer for text, (answer, _) in together.items()} == pieces
    assert {finish for _, finish in together.values()} == {"length"}
    assert len(set(pieces.values())) > 8, "the model says the same to everything"


def test_a_long_prompt_does_not_hold_up_others(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine_module, "PROMPT_TOKENS_AT_ONCE", 8)
    drawn: list[int] = []
    draw = engine_module._Worker._draw

    def recorded(worker: Any, request: Any, at: int) -> Any:
        drawn.append(request.sampling.maximum_tokens)
        return draw(worker, request, at)

    monkeypatch.setattr(engine_module._Worker, "_draw", recorded)
    with Engine(model, context_tokens=CONTEXT, slots=2, threads=1) as small:
        with small._worker._changed:  # both are in line before the first step
            long = small.generate(prompt("tent " * 200), Sampling(maximum_tokens=1))
            short = small.generate(prompt("lamp"), Sampling(maximum_tokens=12))
        assert said(short)[1] == said(long)[1] == "length"
    assert drawn == [12] * 12 + [1]


def test_a_stop_is_held_back_until_it_is_sure(engine: Engine) -> None:
    assert len(engine.tokens("STOP")) == 4
    text = "One ST two STO three STOP four"
    pieces = list(engine.generate(prompt("tent"), exactly(text, stops=("nothing", "STOP"))))
    assert "".join(piece.text for piece in pieces) == "One ST two STO three "
    assert pieces[-1].finish == "stop"
    shown = [piece.text for piece in pieces]
    assert not any(each.endswith(("S", "ST", "STO")) for each in shown)
    assert len(shown) > 5, "it came at once"
    assert said(engine.generate(prompt("tent"), exactly("One STO", stops=("STOP",)))) == ("One STO", "stop")


def test_text_is_the_same_however_it_is_cut_into_tokens() -> None:
    draw = random.Random(5)
    for _ in range(300):
        whole = "".join(draw.choices("abé日🙂", k=draw.randrange(1, 30)))
        stops = ["".join(draw.choices("abé日🙂", k=draw.randrange(1, 5))) for _ in range(draw.randrange(3))]
        # The stop that is whole first ends it.
        ends = [(whole.find(stop) + len(stop), whole.find(stop)) for stop in stops if stop in whole]
        text, shown, rest = engine_module._Text(stops), "", whole.encode()
        while rest:
            part, stopped = text.add(rest[:1])  # more may finish two stops at once, and then the first to begin ends it
            shown, rest = shown + part, rest[1:]
            if stopped:
                break
        else:
            shown += text.rest()
        expected = whole[: min(at for end, at in ends if end == min(ends)[0])] if ends else whole
        assert shown == expected, (whole, stops)


def test_characters_come_whole(engine: Engine) -> None:
    text = "é日本🙂ß"
    assert len(engine.tokens(text)) > len(text)
    pieces = list(engine.generate(prompt("tent"), exactly(text)))
    assert [piece.text for piece in pieces if piece.text] == list(text)
    assert pieces[-1].finish == "stop"
    cut = Sampling(maximum_tokens=len(engine.tokens("é日")) + 1, grammar=f'root ::= "{text}"')
    assert said(engine.generate(prompt("tent"), cut)) == ("é日", "length")


def test_an_answer_ends_with_a_control_token_that_is_a_stop(engine: Engine) -> None:
    (pad,) = engine.tokens("<|pad|>")
    sampling = Sampling(maximum_tokens=20, grammar=f'root ::= "ab" <[{pad}]> "cd"')
    assert said(engine.generate(prompt("tent"), sampling)) == ("abcd", "stop")
    sampling = Sampling(maximum_tokens=20, grammar=sampling.grammar, stops=("<|pad|>",))
    assert said(engine.generate(prompt("tent"), sampling)) == ("ab", "stop")


def test_a_grammar_is_followed(engine: Engine) -> None:
    grammar = 'root ::= ("red" | "blue") " " [0-9]{3}'
    answers = {
        said(engine.generate(prompt(thing), Sampling(maximum_tokens=30, temperature=9.0, seed=seed, grammar=grammar)))
        for seed, thing in enumerate(THINGS)
    }
    for text, finish in answers:
        colour, _, number = text.partition(" ")
        assert colour in ("red", "blue")
        assert (len(number), number.isdigit(), finish) == (3, True, "stop")
    assert len(answers) > 1
    with pytest.raises(ConfigError, match="GBNF"):
        engine.generate(prompt("tent"), Sampling(maximum_tokens=30, grammar='root ::= ("a" '))
    with pytest.raises(ConfigError, match="GBNF"):
        engine.generate(prompt("tent"), Sampling(maximum_tokens=30, grammar='other ::= "a"'))


def test_the_same_seed_draws_the_same(engine: Engine) -> None:
    def drawn(**sampling: Any) -> str:
        return said(engine.generate(prompt("tent"), Sampling(maximum_tokens=20, **sampling)))[0]

    greedy = drawn()
    for seed in (0, -7, 2**32 - 1, 2**40):
        assert drawn(temperature=9.0, seed=seed) == drawn(temperature=9.0, seed=seed)
    assert len({greedy, *(drawn(temperature=9.0, seed=seed) for seed in range(4))}) == 5
    assert len({drawn(temperature=9.0) for _ in range(3)}) == 3
    assert drawn(temperature=9.0, top_p=0.0) == greedy


def test_what_does_not_fit_is_refused(engine: Engine, model: Path) -> None:
    text = prompt("tent" * 50)
    tokens = engine.count(text)
    with pytest.raises(ConfigError, match=rf"{tokens} tokens .* {CONTEXT - tokens + 1} .*{CONTEXT}"):
        engine.generate(text, Sampling(maximum_tokens=CONTEXT - tokens + 1))
    assert said(engine.generate(text, Sampling(maximum_tokens=CONTEXT - tokens)))[1] == "length"
    with pytest.raises(ConfigError, match="no tokens"):
        engine.generate("", LONG)
    for wrong in ({"maximum_tokens": 0}, {"temperature": -1.0}, {"top_p": 1.5}, {"stops": ("",)}):
        with pytest.raises(ConfigError):
            Sampling(**{"maximum_tokens": 1, **wrong})
    for settings in ({"context_tokens": 513}, {"slots": 0}, {"threads": 0}):
        with pytest.raises(ConfigError):
            Engine(model, **{"context_tokens": CONTEXT, **settings})


def test_what_a_slot_has_read_is_not_read_again(model: Path) -> None:
    with Engine(model, context_tokens=CONTEXT, slots=2, threads=1) as fresh:

        def read(text: str, tokens: int) -> int:
            before = fresh.evaluated
            assert said(fresh.generate(text, Sampling(maximum_tokens=tokens)))[1] == "length"
            return fresh.evaluated - before

        first, other = prompt("tent" * 30), "the " + prompt("lamp" * 40)
        assert read(first, 5) == fresh.count(first) + 4  # nobody reads the last token
        assert read(other, 1) == fresh.count(other)
        assert read(first, 5) == 1 + 4
        assert read(other, 1) == 1
        longer = first + "Thank you for asking"
        assert read(longer, 1) <= fresh.count("Thank you for asking")


def test_closing_or_dropping_an_answer_frees_its_slot(model: Path) -> None:
    with Engine(model, context_tokens=CONTEXT, slots=1, threads=1) as small:
        running = small.generate(prompt("tent"), LONG)
        waiting = small.generate(prompt("lamp"), LONG)
        dropped = small.generate(prompt("hose"), LONG)
        assert next(running).finish is None
        assert small.busy == 3
        del dropped
        waiting.close()
        running.close()
        until(lambda: small.busy == 0)
        assert small.evaluated < 400
        assert said(small.generate(prompt("chair"), Sampling(maximum_tokens=5)))[1] == "length"


def test_more_requests_than_slots_wait_in_order(model: Path) -> None:
    with Engine(model, context_tokens=CONTEXT, slots=1, threads=1) as small:
        asked = [small.generate(prompt(thing), Sampling(maximum_tokens=20)) for thing in THINGS]
        assert small.busy > 1
        assert said(asked[6])[1] == "length"
        assert small.busy <= len(asked) - 7 + 1
        assert all(said(pieces)[1] == "length" for pieces in (*asked[:6], *asked[7:]))


def test_closing_finishes_what_runs_and_waits(model: Path) -> None:
    small = Engine(model, context_tokens=CONTEXT, slots=1, threads=1)
    asked = [small.generate(prompt(thing), Sampling(maximum_tokens=20)) for thing in ("tent", "lamp", "hose")]
    small.close()
    assert [said(pieces)[1] for pieces in asked] == ["length"] * 3
    with pytest.raises(ServerUnavailableError, match="out of service"):
        small.generate(prompt("tent"), LONG)
    assert small.count("a tent") > 0
    small.close()


def test_an_engine_lives_as_long_as_its_answers(model: Path) -> None:
    def asked() -> Generator[Piece]:
        return Engine(model, context_tokens=CONTEXT, slots=1, threads=1).generate(prompt("tent"), LONG)

    assert said(asked())[1] == "length"


@pytest.mark.parametrize("dropped", [False, True])
def test_a_process_ends_in_the_middle_of_an_answer(model: Path, dropped: bool) -> None:
    """Nothing is freed that the thread still computes with."""
    script = f"""
from pathlib import Path
from pipelines.serving.engine import Engine, Sampling

engine = Engine(Path({str(model)!r}), context_tokens={CONTEXT}, slots=2, threads=1)
asked = [engine.generate("The tent", Sampling(maximum_tokens=400, temperature=1.0)) for _ in range(4)]
next(asked[0])
if {dropped}:
    del engine
raise SystemExit(3)
"""
    for _ in range(2):
        ended = subprocess.run([sys.executable, "-c", script], capture_output=True, check=False, timeout=60)
        assert (ended.returncode, ended.stderr) == (3, b"")


def test_a_failure_reaches_all_who_wait_and_later_calls(model: Path) -> None:
    with Engine(model, context_tokens=CONTEXT, slots=2, threads=1) as broken:
        running = broken.generate(prompt("tent"), LONG)
        next(running)
        with broken._worker._changed:  # all are in line before the next step
            failing = broken._pieces(broken._worker.request([10**6], LONG))
            next(failing)
            waiting = broken.generate(prompt("lamp"), LONG)
        for pieces in (failing, waiting, running):
            with pytest.raises(ServerUnavailableError, match="could not read"):
                list(pieces)
        with pytest.raises(ServerUnavailableError, match="could not read"):
            broken.generate(prompt("tent"), LONG)
        assert broken.busy == 0


def test_what_writes_no_text_is_refused(tmp_path: Path) -> None:
    (tmp_path / "none.gguf").write_bytes(b"GGUF")
    with pytest.raises(ArtifactError, match="cannot load"):
        Engine(tmp_path / "none.gguf", context_tokens=CONTEXT)
