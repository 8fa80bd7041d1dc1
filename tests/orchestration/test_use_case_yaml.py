"""A use case is one YAML file, and what is wrong with it is said with file and line."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import dagster as dg
import pytest
import yaml
from pydantic import ValidationError

from pipelines.declaration import Declaration, declared, load_declaration
from pipelines.environment import REPOSITORY, Environment
from pipelines.errors import ConfigError

DG = Path(sys.executable).parent / "dg"

MINIMAL = {"name": "wiki", "sources": [{"name": "pages", "type": "folder", "url": "pages"}]}


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project with our component type and no use case yet."""
    root = tmp_path_factory.mktemp("project")
    shutil.copy(REPOSITORY / "pyproject.toml", root)
    shutil.copytree(REPOSITORY / "pipelines", root / "pipelines", ignore=shutil.ignore_patterns("data", "__pycache__"))
    shutil.rmtree(root / "pipelines" / "usecases")
    (root / "pipelines" / "usecases").mkdir()
    for folder in ("assets", "resources", "sensors"):
        (root / folder).symlink_to(REPOSITORY / folder)
    (root / "home").mkdir()
    (root / "home" / "dagster.yaml").write_text("telemetry: {enabled: false}\n", encoding="utf-8")
    return root


def run_dg(project: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "DAGSTER_HOME": str(project / "home")}
    return subprocess.run([DG, *arguments], cwd=project, env=environment, capture_output=True, text=True)


def write(project: Path, attributes: dict[str, object]) -> Path:
    folder = project / "pipelines" / "usecases" / "wiki"
    folder.mkdir(exist_ok=True)
    document = {"type": "pipelines.use_case.UseCase", "attributes": attributes}
    (folder / "defs.yaml").write_text(yaml.safe_dump(document, sort_keys=False), encoding="utf-8")
    return folder


def test_a_minimal_use_case_is_valid(project: Path) -> None:
    folder = write(project, MINIMAL)
    checked = run_dg(project, "check", "yaml", str(folder))
    assert checked.returncode == 0, checked.stdout + checked.stderr


@pytest.mark.parametrize(
    ("change", "line", "message"),
    [
        ({"sources": [{"name": "pages", "type": "folder", "url": "p", "glop": "x"}]}, 8, "'glop' was unexpected"),
        ({"sources": [{"name": "pages", "type": "ftp", "url": "p"}]}, 6, "'ftp' is not one of ["),
        ({"sources": [{"name": "t", "type": "table", "url": "p", "key": "id"}]}, 5, "'text' is a required property"),
        ({"retrieval": {"top_k": 0}}, 9, "0 is less than the minimum of 1"),
        ({"labels": {"url": "l"}, "fine_tune": {"task": "translate"}}, 11, "is not one of ['classify', 'generate']"),
    ],
)
def test_a_wrong_field_is_reported_with_file_and_line(
    project: Path, change: dict[str, object], line: int, message: str
) -> None:
    folder = write(project, {**MINIMAL, **change})
    checked = run_dg(project, "check", "yaml", str(folder))
    assert checked.returncode != 0
    assert f"usecases/wiki/defs.yaml:{line} " in checked.stdout
    assert message in checked.stdout


def test_scaffolding_starts_a_new_use_case(project: Path) -> None:
    scaffolded = run_dg(project, "scaffold", "defs", "pipelines.use_case.UseCase", "fresh")
    assert scaffolded.returncode == 0, scaffolded.stdout + scaffolded.stderr
    path = project / "pipelines" / "usecases" / "fresh" / "defs.yaml"
    assert "type: pipelines.use_case.UseCase" in path.read_text(encoding="utf-8")
    shutil.rmtree(path.parent)


@pytest.mark.parametrize(
    ("attributes", "message"),
    [
        ({"name": "wiki"}, "nothing to do"),
        ({**MINIMAL, "fine_tune": {}}, "fine_tune needs labels"),
        ({**MINIMAL, "sources": MINIMAL["sources"] * 2}, "sources named twice: pages"),
        ({"name": "wiki", "sources": [{"name": "labels", "type": "folder", "url": "p"}]}, "'labels' is taken"),
        ({**MINIMAL, "release": {"quantisations": ["F16"], "serve": "Q8_0"}}, "'Q8_0' is not written"),
        ({**MINIMAL, "release": {"ollama": {}}}, "Ollama runs chat models only"),
        ({**MINIMAL, "name": "Wiki pages"}, "name"),
    ],
)
def test_fields_that_do_not_go_together_are_refused_with_what_is_allowed(
    attributes: dict[str, object], message: str
) -> None:
    with pytest.raises(ValidationError, match=message):
        Declaration.model_validate(attributes)


def test_the_two_shipped_use_cases_are_declared_and_valid() -> None:
    assert declared() == ("compliance", "support")
    assert load_declaration("support").task == "generate"
    assert load_declaration("compliance").task == "classify"


def test_a_use_case_that_does_not_exist_is_named_together_with_those_that_do() -> None:
    with pytest.raises(ConfigError, match=r"'wiki'; there are: compliance, support"):
        load_declaration("wiki")


def test_environment_variables_are_filled_in_at_every_depth_for_dagster_and_for_asking(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WIKI_FOLDER", "/srv/wiki")
    attributes = {**MINIMAL, "sources": [{"name": "pages", "type": "folder", "url": "{{ env.WIKI_FOLDER }}/en"}]}
    write_to = tmp_path / "wiki"
    write_to.mkdir()
    document = {"type": "pipelines.use_case.UseCase", "attributes": attributes}
    (write_to / "defs.yaml").write_text(yaml.safe_dump(document), encoding="utf-8")
    assert load_declaration("wiki", root=tmp_path).sources[0].url == "/srv/wiki/en"

    from pipelines.use_case import UseCase

    resolved = UseCase.resolve_from_model(dg.ResolutionContext.default(), Declaration.model_validate(attributes))
    assert resolved.sources[0].url == "/srv/wiki/en"


def test_relative_paths_start_at_the_use_case_or_where_freshet_data_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    declaration = Declaration.model_validate(MINIMAL)
    assert declaration.base(Environment(), tmp_path) == tmp_path
    monkeypatch.setenv("FRESHET_DATA", "/srv/data")
    assert declaration.base(Environment(), tmp_path) == Path("/srv/data/wiki")
