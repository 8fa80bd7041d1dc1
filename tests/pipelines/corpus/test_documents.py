from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from pipelines.corpus.documents import Block, Document, Section, chunk_ids

names = st.text(min_size=1, max_size=12)
texts = st.lists(st.sampled_from(["a", "b", "c", "a b", ""]), max_size=8)


@given(st.lists(st.tuples(names, names, texts), max_size=6, unique_by=lambda each: each[:2]))
def test_ids_never_collide_across_sources_documents_and_repeated_texts(
    documents: list[tuple[str, str, list[str]]],
) -> None:
    """I2, I4"""
    ids = [chunk_id for source, document, chunks in documents for chunk_id in chunk_ids(source, document, chunks)]
    assert len(ids) == len(set(ids)) == sum(len(chunks) for _, _, chunks in documents)


@given(texts, texts, st.text(max_size=5))
def test_an_insertion_keeps_the_ids_of_all_other_chunks(before: list[str], after: list[str], new: str) -> None:
    """I3: ids do not depend on position."""
    old = chunk_ids("s", "d", before + after)
    assert set(old) <= set(chunk_ids("s", "d", [*before, new, *after]))


def test_names_that_run_together_are_told_apart() -> None:
    assert chunk_ids("a", "bc", ["x"]) != chunk_ids("ab", "c", ["x"])


def test_the_content_hash_sees_headings_and_text_but_not_where_the_document_lies() -> None:
    def document(document_id: str = "a", heading: str = "H", text: str = "t", version: str = "1") -> str:
        sections = (Section((heading,), (Block(text),)),)
        return Document("s", document_id, "T", "file:///a", version, None, sections).content_hash

    assert document() == document(document_id="b", version="2")
    assert len({document(), document(heading="I"), document(text="u")}) == 3
