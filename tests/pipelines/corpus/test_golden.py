from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.corpus.golden import (
    MOST_ALIKE,
    GoldenQuestion,
    GoldenSet,
    document_key,
    generate_golden,
    load_golden,
    match_documents,
)
from pipelines.errors import ConfigError

JSONL = """
{"question": "How long is the  warranty?", "relevant": ["warranty.md", "docs/terms.md", "warranty.md"]}

{"relevant": ["a;b.md"], "question": "Who pays for returns?"}
"""
CSV = """relevant,question
warranty.md; docs/terms.md;,"How long is the
warranty?"

"a,b.md",Who pays for returns?
"""


def golden(*questions: tuple[str, list[str]], generated: bool = False) -> GoldenSet:
    return GoldenSet(tuple(GoldenQuestion(each, tuple(relevant)) for each, relevant in questions), generated)


def test_questions_are_read_from_jsonl(tmp_path: Path) -> None:
    (tmp_path / "golden.jsonl").write_text(JSONL, encoding="utf-8-sig")
    found = load_golden("golden.jsonl", tmp_path)
    assert found.questions == (
        GoldenQuestion("How long is the warranty?", ("warranty.md", "docs/terms.md")),
        GoldenQuestion("Who pays for returns?", ("a;b.md",)),
    )
    assert not found.generated


def test_questions_are_read_from_csv_with_lines_inside_a_cell(tmp_path: Path) -> None:
    (tmp_path / "golden.csv").write_text(CSV)
    assert load_golden("golden.csv", tmp_path).questions == (
        GoldenQuestion("How long is the warranty?", ("warranty.md", "docs/terms.md")),
        GoldenQuestion("Who pays for returns?", ("a,b.md",)),
    )


def test_questions_are_read_from_any_file_system() -> None:
    import fsspec

    with fsspec.open("memory://golden/questions.jsonl", "w") as file:
        file.write('{"question": "where?", "relevant": ["here.md"]}\n')
    assert load_golden("memory://golden/questions.jsonl", Path("/nowhere")).questions[0].relevant == ("here.md",)


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("g.jsonl", '\n{"question": "", "relevant": ["a"]}', ["line 2", "question '' is no text"]),
        ("g.jsonl", '{"question": "\\ud800", "relevant": ["a"]}', ["line 1", "is no text"]),
        ("g.jsonl", '{"question": 4, "relevant": ["a"]}', ["question 4 is no text"]),
        ("g.jsonl", '{"question": "q", "relevant": []}', ["line 1", "'q' has no relevant document"]),
        ("g.jsonl", '{"question": "q"}', ["relevant None is no list"]),
        ("g.jsonl", '{"question": "q", "relevant": "a;b"}', ["relevant 'a;b' is no list of texts"]),
        ("g.jsonl", '{"question": "q", "answer": "a"}', ["unknown 'answer'", "allowed: question, relevant"]),
        ("g.jsonl", '["q"]', ["line 1", "is no object"]),
        ("g.jsonl", "{'question': 1}", ["line 1", "{'question': 1}", "is no JSON"]),
        ("g.jsonl", "[" * 100_000, ["line 1", "is no JSON"]),
        ("g.jsonl", " \n", ["there is no question in it"]),
        ("g.csv", "", ["line 1: columns none", "question, relevant"]),
        ("g.csv", "question,answer\nq,a\n", ["columns question, answer"]),
        ("g.csv", "question,relevant\nWho, where?,a\n", ["line 2: 3 cells", "header has 2"]),
        ("g.csv", "question,relevant\nq, ; \n", ["'q' has no relevant document"]),
        ("g.csv", 'question,relevant\n"q,a\n', ["unexpected end of data"]),
        ("g.txt", "", ["'.txt' is no known ending", ".jsonl, .csv"]),
    ],
)
def test_a_file_of_anything_else_is_refused_with_line_value_and_what_is_allowed(
    tmp_path: Path, name: str, text: str, said: list[str]
) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(ConfigError) as error:
        load_golden(name, tmp_path)
    for part in [name, *said]:
        assert part in str(error.value)


def test_every_fault_of_a_file_is_named_at_once_and_a_question_asked_twice_by_both_lines(tmp_path: Path) -> None:
    lines = ['{"question": "q", "relevant": ["a"]}', '{"question": " q ", "relevant": ["b"]}', *["no"] * 15]
    (tmp_path / "g.jsonl").write_text("\n".join(lines))
    with pytest.raises(ConfigError, match=r"line 2: question 'q' is also in line 1") as error:
        load_golden("g.jsonl", tmp_path)
    assert "line 11" in str(error.value)
    assert "line 12" not in str(error.value)
    assert "and 6 more" in str(error.value)


def test_a_file_that_is_not_there_or_no_text_is_an_error_and_never_no_questions(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"FileNotFound.*retrieval\.golden\.url"):
        load_golden("gone.jsonl", tmp_path)
    (tmp_path / "folder.csv").mkdir()
    with pytest.raises(ConfigError, match="folder"):
        load_golden("folder.csv", tmp_path)
    (tmp_path / "g.csv").write_bytes(b"question,relevant\nM\xfcller,a\n")
    with pytest.raises(ConfigError, match="save the file as UTF-8"):
        load_golden("g.csv", tmp_path)


def test_the_fingerprint_is_of_the_questions_and_not_of_their_order() -> None:
    one = golden(("a", ["x", "y"]), ("b", ["z"]))
    assert one.fingerprint == golden(("b", ["z"]), ("a", ["y", "x"])).fingerprint
    assert one.fingerprint != golden(("a", ["x"]), ("b", ["z"])).fingerprint
    assert one.fingerprint != golden(("a", ["x", "y"]), ("b", ["z"]), generated=True).fingerprint


def test_a_title_becomes_a_question_that_every_document_with_it_answers() -> None:
    titles = [("docs", "a.md", "Opening  hours"), ("wiki", "7", "opening hours"), ("docs", "b.md", "Prices\n2026")]
    found = generate_golden(titles, 10)
    assert set(found.questions) == {
        GoldenQuestion("Opening hours", ("docs/a.md", "wiki/7")),
        GoldenQuestion("Prices 2026", ("docs/b.md",)),
    }
    assert found.generated


def test_titles_that_name_nothing_make_no_question() -> None:
    common = [("docs", f"{number}.md", "Index") for number in range(MOST_ALIKE + 1)]
    assert generate_golden([("docs", "a", ""), ("docs", "b", " — "), *common], 10).questions == ()
    assert len(generate_golden(common[1:], 10).questions) == 1


TITLES = [("docs", f"{number}.md", f"Chapter {number}") for number in range(300)]


@given(st.permutations(TITLES[:40]))
def test_the_same_titles_are_chosen_in_whatever_order_they_come(titles: list[tuple[str, str, str]]) -> None:
    assert generate_golden(titles, 10) == generate_golden(TITLES[:40], 10)


def test_the_chosen_titles_stay_nearly_the_same_while_documents_come_and_go() -> None:
    before = set(generate_golden(TITLES, 50).questions)
    gone = next(iter(before)).relevant[0]
    after = generate_golden(
        [each for each in TITLES if document_key(*each[:2]) != gone]
        + [("docs", f"n{i}", f"New {i}") for i in range(6)],
        50,
    )
    assert len(before) == len(after.questions) == 50
    assert len(before & set(after.questions)) >= 50 - 7


def test_relevant_documents_are_found_by_key_id_or_uri() -> None:
    documents = [
        ("docs", "a.md", "file:///docs/a.md"),
        ("wiki", "a.md", "https://wiki/a"),
        ("files", "docs/a.md", "file:///files/docs/a.md"),
    ]
    questions = golden(("key", ["docs/a.md"]), ("id", ["a.md"]), ("uri", ["https://wiki/a", "wiki/a.md"]))
    found = match_documents(questions, iter(documents))
    assert [each.relevant for each in found.questions] == [("docs/a.md",), ("docs/a.md", "wiki/a.md"), ("wiki/a.md",)]
    assert (found.unknown, found.unanswerable) == ((), ())


def test_an_answer_that_no_longer_exists_is_reported_and_its_question_left_out_when_it_was_the_only_one() -> None:
    questions = golden(("half", ["a.md", "gone.md"]), ("lost", ["old.md", "gone.md"]))
    found = match_documents(questions, [("docs", "a.md", "file:///a.md")])
    assert found.questions == (GoldenQuestion("half", ("docs/a.md",)),)
    assert found.unknown == ("gone.md", "old.md")
    assert found.unanswerable == ("lost",)


def test_generated_questions_always_find_their_documents() -> None:
    made = generate_golden(TITLES, 50)
    found = match_documents(made, [(source, document_id, f"x://{document_id}") for source, document_id, _ in TITLES])
    assert found.questions == made.questions
    assert not found.unknown
