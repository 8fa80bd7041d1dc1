from __future__ import annotations

import pytest

from pipelines.labels.answers import breaks_off, ends_open, seems_cut


@pytest.mark.parametrize(
    "answer",
    [
        "Run this:\n```sh\nmake\n",
        "Run this: ```sh\nmake\n```\nand then\n```",
        "- ```python\n  x = 1\n  ```\n- ```python\n  x = 2",
        "~~~\nmake\n",
        '{"a": {"b": 1}',
        '["a", "b", "c',
        '{"a": "}}}"',
    ],
)
def test_an_answer_that_leaves_something_open_breaks_off(answer: str) -> None:
    assert breaks_off(answer) is not None


@pytest.mark.parametrize(
    "answer",
    [
        "Run this:\n```sh\nmake\n```",
        "Run ```make``` first.",
        "Here: ```sh\nmake\n```",
        "- ```python\n  x = 1\n  ```",
        "````\n```\nmake\n```\n````",
        "Put ``` before and after your code.",
        '{"a": "{[("}',
        "[1] says so, and (see there",
        "{name}, your order is on its way :-(",
        "[Note] if (a < b",
        "",
    ],
)
def test_an_answer_with_brackets_and_fences_of_its_own_does_not(answer: str) -> None:
    assert breaks_off(answer) is None


@pytest.mark.parametrize(
    ("answer", "end"),
    [
        ("There are three ways:", "':'"),
        ("First, second, ", "','"),
        ("It depends on the", "'the'"),
        ("Das liegt an der", "'der'"),
        ("It is what it is for", None),
        ("Happy to help :-)", None),
        ("It broke our tests :(", None),
        ("Sorry for that :grin:", None),
        ("C++", None),
        ("```\nx = [\n```", None),
        ("42", None),
        ("", None),
    ],
)
def test_what_ends_no_sentence_seems_cut(answer: str, end: str | None) -> None:
    assert seems_cut(answer) == end


@pytest.mark.parametrize(
    ("answer", "is_open"),
    [
        ("This is a sentence that is long enough to tell.", False),
        ("This is a sentence that is long enough to tell (really!)", False),
        ("これは十分に長い文章であり、最後に句点があるので閉じていると考えられますよね。そうです。", False),
        ("This is a sentence that is long enough to te", True),
        ("billing", None),
        ("This is a sentence that is long enough and", None),
        ("- one thing that is listed here\n- another thing that is listed", None),
        ("You will find all of it at https://acme.com/a/b/c", None),
        ("```python\nprint('a long enough line of code')\n```", None),
    ],
)
def test_prose_is_told_from_what_needs_no_full_stop(answer: str, is_open: bool | None) -> None:
    assert ends_open(answer) is is_open
