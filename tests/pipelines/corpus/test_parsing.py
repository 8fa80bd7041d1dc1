from __future__ import annotations

import pytest

from pipelines.corpus.documents import Block, Section
from pipelines.corpus.parsing import Parsed, parse
from pipelines.errors import DocumentError


def text_of(parsed: Parsed) -> str:
    return "\n".join(block.text for section in parsed.sections for block in section.blocks)


def test_markdown_becomes_blocks_under_their_heading_path() -> None:
    parsed = parse(
        b"Before.\n\n# Guide\n\nIntro.\n\n## Setup *now*\n\n- one\n- two\n  more\n\n```\ncode # no heading\n```\n\n"
        b"# End\n",
        ".md",
    )
    assert parsed.title == "Guide"
    assert parsed.sections == (
        Section((), (Block("Before."),)),
        Section(("Guide",), (Block("Intro."),)),
        Section(
            ("Guide", "Setup now"),
            (Block("- one"), Block("- two\n  more", tight=True), Block("```\ncode # no heading\n```")),
        ),
        Section(("End",), ()),
    )


def test_a_table_row_repeats_its_column_names() -> None:
    parsed = parse(b"| Model | Price |\n|---|---|\n| A1 | 20 |\n| A2 |  |\n", ".md")
    assert [block.text for block in parsed.sections[0].blocks] == ["Model: A1; Price: 20", "Model: A2"]


def test_a_table_without_rows_keeps_its_header() -> None:
    assert text_of(parse(b"| Model | Price |\n|---|---|\n", ".md")) == "Model | Price"


def test_front_matter_becomes_facts_that_keep_their_spelling_and_each_release_on_one_line() -> None:
    parsed = parse(
        b"---\ntitle: Pump X\nweight: 7.10\nsold: yes\nempty:\ntags: [a, b]\nauto:\n  methods:\n  - npm: next\n"
        b"releases:\n- cycle: '2'\n  date: 2024-10-21\n  lts: false\n- cycle: '1'\n  date: 2020-01-01\n---\n\nBody.\n",
        ".md",
    )
    assert parsed.title == "Pump X"
    assert parsed.sections[0].headings == ("Pump X",)
    assert text_of(parsed).splitlines() == [
        "title: Pump X",
        "weight: 7.10",
        "sold: yes",
        "tags: a, b",
        "auto.methods: npm: next",
        "releases: cycle: 2, date: 2024-10-21, lts: false",
        "releases: cycle: 1, date: 2020-01-01",
        "Body.",
    ]


def test_a_heading_that_repeats_the_title_is_not_doubled() -> None:
    parsed = parse(b"---\ntitle: Pump\n---\n# Pump\n\n## Use\n\nText.\n", ".md")
    assert parsed.sections[-1].headings == ("Pump", "Use")


@pytest.mark.parametrize(
    ("front_matter", "said"),
    [
        (b"---\ntitle: [unclosed\n---\nBody", "not valid YAML"),
        (b"---\ntitle: a\nBody without an end", "never closed"),
        (b"---\na: &a [*a]\n---\n", "refers to itself|not valid YAML"),
        (b"---\na: &a [x,x,x,x,x,x,x,x,x]\n" + b"".join(
            f"{new}: &{new} [{','.join([f'*{old}'] * 9)}]\n".encode() for old, new in zip("abcde", "bcdef", strict=True)
        ) + b"---\n", "more than 50000 values"),
    ],
    ids=["broken", "unclosed", "recursive", "bomb"],
)  # fmt: skip
def test_broken_front_matter_is_an_error_of_this_document(front_matter: bytes, said: str) -> None:
    with pytest.raises(DocumentError, match=said):
        parse(front_matter, ".md")


def test_a_thematic_break_at_the_top_is_no_front_matter() -> None:
    parsed = parse(b"---\nJust a line\n---\n\nText\n", ".md")
    assert (parsed.title, text_of(parsed)) == ("Just a line", "Text")
    assert text_of(parse(b"---\n\nText\n", ".md")) == "Text"


@pytest.mark.parametrize(
    "data",
    ["Käse für 5 €".encode(), "\ufeffKäse für 5 €".encode(), "Käse für 5 €".encode("utf-16")],
    ids=["utf-8", "utf-8 with BOM", "utf-16"],
)
def test_text_is_read_in_every_encoding_that_says_what_it_is(data: bytes) -> None:
    assert text_of(parse(data, ".txt")) == "Käse für 5 €"


@pytest.mark.parametrize("suffix", [".md", ".txt", ".html"])
@pytest.mark.parametrize("data", [b"K\xe4se", b"PK\x03\x04\x00\x00", b"\xff\xfea"], ids=["latin-1", "binary", "half"])
def test_undecodable_bytes_are_an_error_and_never_guessed(suffix: str, data: bytes) -> None:
    with pytest.raises(DocumentError, match=r"UTF-8|NUL"):
        parse(data, suffix)


def test_html_may_declare_its_character_set() -> None:
    page = '<meta charset="iso-8859-1"><p>Käse'.encode("iso-8859-1")
    assert text_of(parse(page, ".html")) == "Käse"


def test_line_endings_do_not_change_the_text() -> None:
    assert parse(b"# A\r\n\r\nb\r\nc\r\n", ".md") == parse(b"# A\n\nb\nc\n", ".md")


def test_html_becomes_blocks_under_headings_without_scripts() -> None:
    parsed = parse(
        b"<html><head><title>Pump</title><style>x{}</style></head><body><!-- no --><nav>menu</nav><h1>Pump</h1>"
        b"Loose <b>text</b>.<h2>Facts</h2><ul><li>one<ul><li>nested</li></ul></li><li>two</li></ul>"
        b"<table><tr><th>Part</th><th>Price</th></tr><tr><td>A</td><td>3</td></tr></table>"
        b"<pre>a\n  b</pre><p>line<br>break</p><script>evil()</script></body></html>",
        ".html",
    )
    assert parsed == Parsed(
        "Pump",
        (
            Section(("Pump",), ()),
            Section(("Pump",), (Block("Loose text."),)),
            Section(
                ("Pump", "Facts"),
                (
                    Block("one"),
                    Block("nested", tight=True),
                    Block("two", tight=True),
                    Block("Part: A; Price: 3", tight=True),
                    Block("a\n  b"),
                    Block("line\nbreak"),
                ),
            ),
        ),
    )
