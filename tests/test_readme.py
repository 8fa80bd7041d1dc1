"""What the documents promise exists: commands, files, and the YAML of the examples."""

import re
from pathlib import Path

import pytest
import yaml

from pipelines.declaration import Declaration

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
DOCUMENTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]


def test_every_make_target_that_is_named_exists() -> None:
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    for document in DOCUMENTS:
        for line in document.read_text(encoding="utf-8").splitlines():
            named = re.findall(r"`make ([a-z]+)`|^    make ([a-z]+)", line)
            assert {first or second for first, second in named} <= targets, (document, line)


def test_the_yaml_of_the_example_is_a_valid_use_case() -> None:
    blocks = re.findall(r"```yaml\n(.*?)```", README, re.DOTALL)
    document = yaml.safe_load("\n".join(blocks))
    declaration = Declaration.model_validate(document["attributes"])
    assert declaration.name == "handbook"
    assert declaration.fine_tune is not None


def test_the_yaml_of_every_source_and_of_search_is_valid() -> None:
    text = (ROOT / "docs" / "retrieval.md").read_text(encoding="utf-8").replace("{{ env.CRM_URL }}", "sqlite:///crm.db")
    blocks = re.findall(r"```yaml\n(.*?)```", text, re.DOTALL)
    declaration = Declaration.model_validate({"name": "example", **yaml.safe_load("\n".join(blocks))})
    assert {source.type for source in declaration.sources} == {"folder", "table", "sql", "api", "web", "feed"}
    assert declaration.retrieval.access.mode == "enforce"


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_pictures_and_files_that_are_linked_exist(document: Path) -> None:
    for link in re.findall(r"\]\((?!https?:)([^)#]+)", document.read_text(encoding="utf-8")):
        assert (document.parent / link).exists(), link


def test_modules_that_are_run_by_hand_exist() -> None:
    for document in DOCUMENTS:
        for module in re.findall(r"python -m ([a-z_.]+)", document.read_text(encoding="utf-8")):
            path = ROOT / Path(*module.split("."))
            assert path.with_suffix(".py").exists() or (path / "__main__.py").exists(), module


def test_ci_calls_the_test_command_of_the_readme() -> None:
    assert "make test" in (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    assert "`make test`" in README
