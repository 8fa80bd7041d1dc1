from __future__ import annotations

import random
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.corpus.chunking import chunk_document
from pipelines.corpus.documents import Block, Chunk, Document, Section
from pipelines.corpus.parsing import parse_markdown
from pipelines.corpus.tokens import TokenCounter
from pipelines.models import BUNDLED, model_folder

COUNTER = TokenCounter.of_model(model_folder(BUNDLED, None))


def document(*sections: Section) -> Document:
    return Document("s", "d", "T", "file:///d", "1", None, sections)


def cut(markdown: str, tokens: int = 64) -> list[Chunk]:
    return chunk_document(document(*parse_markdown(markdown).sections), COUNTER, chunk_tokens=tokens)


def byte_level_counter() -> TokenCounter:
    """A tokenizer of the other family: byte-level BPE, in which newlines are tokens, with padding and truncation on."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=400, initial_alphabet=alphabet, special_tokens=["<s>"], show_progress=False
    )
    tokenizer.train_from_iterator(["the pump is on, the valve is off\n\nthe end"] * 20, trainer)
    tokenizer.enable_truncation(8)
    tokenizer.enable_padding(length=8)
    return TokenCounter(tokenizer)


COUNTERS = {"wordpiece": COUNTER, "byte-level": byte_level_counter()}

words = st.one_of(
    st.sampled_from(["pump", "Wasserstoffperoxidtank", "。水泵已关闭", "x" * 300, "🙂👩‍👩‍👧", "v1.2.3", "end."]),
    st.text(alphabet=st.characters(exclude_categories=["Cs", "Cc"]), min_size=1, max_size=20),
)
blocks = st.lists(
    st.builds(Block, st.lists(words, min_size=1, max_size=40).map(" ".join), st.booleans()), min_size=0, max_size=12
)
sections = st.lists(st.builds(Section, st.lists(words, max_size=3).map(tuple), blocks), max_size=4)


@pytest.mark.parametrize("counter", COUNTERS.values(), ids=COUNTERS)
@settings(max_examples=60, deadline=None)
@given(sections=sections, tokens=st.sampled_from([32, 48, 100]))
def test_no_chunk_is_too_long_and_no_text_is_lost(counter: TokenCounter, sections: list[Section], tokens: int) -> None:
    found = chunk_document(document(*sections), counter, chunk_tokens=tokens)
    assert all(count <= tokens for count in counter.counts([chunk.text for chunk in found]))
    bodies = "".join("".join(body.split()) for body in bodies_of(found))
    paths = ["".join(" > ".join(section.headings).split()) for section in sections]
    whole = ["".join(chunk.text.split()) for chunk in found]
    assert all(path in bodies or any(path in text for text in whole) for path in paths)
    position = 0
    for block in (block for section in sections for block in section.blocks):
        for word in block.text.split():
            position = bodies.find(word, position)
            assert position >= 0, f"{word!r} is lost"
            position += len(word)


class Recounter(TokenCounter):
    adds_up = False


RECOUNTER = Recounter.of_model(model_folder(BUNDLED, None))


@settings(max_examples=100, deadline=None)
@given(sections=sections, tokens=st.sampled_from([32, 48, 100]))
def test_tokens_that_add_up_cut_as_tokens_that_are_counted_again(sections: list[Section], tokens: int) -> None:
    found, again = (chunk_document(document(*sections), each, chunk_tokens=tokens) for each in (COUNTER, RECOUNTER))
    assert found == again
    assert [counter.adds_up for counter in COUNTERS.values()] == [True, False]


def bodies_of(chunks: list[Chunk]) -> list[str]:
    """What stands below the heading path; all of it where there is none, or nothing below."""
    return [
        chunk.text.split("\n\n", 1)[1] if chunk.headings and "\n\n" in chunk.text else chunk.text for chunk in chunks
    ]


def test_each_chunk_starts_with_its_heading_path() -> None:
    chunks = cut("---\ntitle: Pump\n---\n# Use\n\n## Start\n\nPress.\n\n## Stop\n\nPull.\n")
    assert [chunk.text for chunk in chunks] == [
        "Pump\n\ntitle: Pump",
        "Pump > Use > Start\n\nPress.",
        "Pump > Use > Stop\n\nPull.",
    ]
    assert [chunk.ordinal for chunk in chunks] == [0, 1, 2]


def test_a_heading_with_nothing_below_is_still_found() -> None:
    assert [chunk.text for chunk in cut("# Pump\n\n## Contact us at once\n")] == ["Pump > Contact us at once"]


def test_small_neighbours_under_one_heading_are_packed() -> None:
    [chunk] = cut("# Pump\n\nOne.\n\nTwo.\n\n- three\n- four\n")
    assert chunk.text == "Pump\n\nOne.\n\nTwo.\n\n- three\n- four"


def test_a_long_paragraph_is_cut_between_sentences() -> None:
    sentences = [f"Sentence number {number} says that valve {number} opens." for number in range(30)]
    for chunk in cut(" ".join(sentences)):
        assert all(part in sentences for part in re.split(r"(?<=\.) ", chunk.text))


def test_a_heading_path_longer_than_half_a_chunk_leaves_room_and_is_not_lost() -> None:
    heading = " ".join(f"word{number}" for number in range(60))
    chunks = cut(f"# {heading}\n\nBody.\n", 48)
    assert all(COUNTER.counts([chunk.text])[0] <= 48 for chunk in chunks)
    assert all(any(f"word{number}" in chunk.text for chunk in chunks) for number in range(60))
    assert any("Body." in chunk.text for chunk in chunks)


def test_a_blob_that_is_one_unknown_word_does_not_make_a_giant_chunk() -> None:
    blob = "".join(random.Random(1).choices("abcdef0123456789", k=50_000))
    chunks = cut(f"# Image\n\nBefore {blob} after.\n")
    assert max(len(chunk.text) for chunk in chunks) <= 64 * 20
    assert "".join(chunk.text.split("\n\n", 1)[1].replace(" ", "") for chunk in chunks) == f"Before{blob}after."


def test_cutting_is_deterministic() -> None:
    text = "\n\n".join(f"Paragraph {number} about valve {number * 7}." for number in range(50))
    assert cut(text) == cut(text)


@pytest.mark.parametrize("change", ["insert", "edit", "delete"])
def test_a_change_in_a_long_section_stays_local(change: str) -> None:
    """I3: on average at most three chunks differ, however long the section is."""
    generator = random.Random(7)
    vocabulary = [f"{a}{b}" for a in ("pum", "val", "tan", "bol", "ris") for b in ("per", "ket", "nor", "lix", "dat")]
    lines = [
        f"- item {number}: " + " ".join(generator.choices(vocabulary, k=generator.randint(3, 14)))
        for number in range(300)
    ]

    def ids(of: list[str]) -> set[str]:
        return {chunk.chunk_id for chunk in cut("# Items\n\n" + "\n".join(of), 128)}

    before, new = ids(lines), []
    assert len(before) > 40
    for place in generator.sample(range(300), 40):
        changed = list(lines)
        if change == "insert":
            changed.insert(place, "- another item about nothing")
        elif change == "edit":
            changed[place] += " and more of it"
        else:
            del changed[place]
        new.append(len(ids(changed) - before))
    assert sum(new) / len(new) <= 3
    assert max(new) <= 12
