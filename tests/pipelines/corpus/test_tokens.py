from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors, trainers

from pipelines.corpus import tokens
from pipelines.corpus.tokens import TokenCounter
from pipelines.errors import ConfigError
from pipelines.models import BUNDLED, model_folder

LIMIT = 24


def wordpiece() -> Tokenizer:
    return Tokenizer.from_file(str(model_folder(BUNDLED, None) / "tokenizer.json"))


def wordpiece_whose_mask_takes_the_space_before_it() -> Tokenizer:
    tokenizer = wordpiece()
    tokenizer.add_special_tokens([AddedToken("[HERE]", lstrip=True)])
    return tokenizer


def wordpiece_with_a_word_of_two() -> Tokenizer:
    """Found after the text is in lower case."""
    tokenizer = wordpiece()
    tokenizer.add_tokens(["the pump"])
    return tokenizer


def byte_level() -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=["<s>", "</s>"],
        show_progress=False,
    )
    tokenizer.train_from_iterator(["the pump is on, the valve is off\n\nthe end"] * 20, trainer)
    tokenizer.post_processor = processors.RobertaProcessing(("</s>", 1), ("<s>", 0))
    return tokenizer


TOKENIZERS = {
    each.__name__: each
    for each in (wordpiece, wordpiece_whose_mask_takes_the_space_before_it, wordpiece_with_a_word_of_two, byte_level)
}
COUNTERS = {name: TokenCounter(made()) for name, made in TOKENIZERS.items()}
WHOLE = {name: counter._tokenizer for name, counter in COUNTERS.items()}
CUTTING = {name: made() for name, made in TOKENIZERS.items()}
for each in CUTTING.values():
    each.no_padding()
    each.enable_truncation(LIMIT)

texts = st.lists(
    st.one_of(
        st.text(max_size=20),
        st.sampled_from(
            [
                "the pump",
                "The PUMP",
                "Größe",
                "e\u0301te\u0301",
                "水泵已关闭",
                "a\x0bb",
                "a\x1fb",
                "a\xa0b",
                "x" * 300,
                "[SEP]",
                "v1.2-b",
                "=\u0338≠;\u037e",
                "[HERE]",
            ]
        ),
        st.sampled_from([" ", "\n", "\r\n", "\t", "  ", ""]),
    ),
    max_size=12,
).map("".join)


@pytest.mark.parametrize("name", TOKENIZERS)
@settings(max_examples=150, deadline=None)
@given(some=st.lists(texts, max_size=6))
def test_tokens_are_those_of_the_tokenizer_itself(name: str, some: list[str]) -> None:
    counter, tokenizer = COUNTERS[name], WHOLE[name]
    assert counter.ids(some, limit=LIMIT) == [each.ids for each in CUTTING[name].encode_batch(some)]
    assert counter.counts(some) == [len(each) for each in tokenizer.encode_batch(some)]
    bare = [len(each) for each in tokenizer.encode_batch(some, add_special_tokens=False)]
    assert counter.counts(some, special=False) == bare


def test_only_a_tokenizer_that_takes_each_word_by_itself_has_its_words_remembered() -> None:
    assert [counter.adds_up for counter in COUNTERS.values()] == [True, False, False, False]


def test_what_is_remembered_is_bounded_and_shared_by_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokens, "_REMEMBERED", 2_000)
    counter, tokenizer = TokenCounter(wordpiece()), TokenCounter(wordpiece())._tokenizer
    some = [f"valve {number} of pump {number % 7} opens at {number * 37} bar" for number in range(2_000)]

    def counted(start: int) -> list[int]:
        return [count for at in range(start, len(some), 40) for count in counter.counts(some[at : at + 10])]

    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(counted, range(0, 40, 10)))
    for start, counts in zip(range(0, 40, 10), found, strict=True):
        wanted = [text for at in range(start, len(some), 40) for text in some[at : at + 10]]
        assert counts == [len(each) for each in tokenizer.encode_batch(wanted)]
    assert sum(map(len, counter._words)) < 4_000


def test_a_model_without_a_fast_tokenizer_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"has no tokenizer\.json: choose an embedder with a fast tokenizer"):
        TokenCounter.of_model(tmp_path)
