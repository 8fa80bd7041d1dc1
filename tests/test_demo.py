"""The demo empties what a demo made, and nothing else."""

from pathlib import Path

import pytest

from demo import Demo
from pipelines.environment import Environment


@pytest.fixture
def home(freshet_home: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What an earlier demo left."""
    monkeypatch.setenv("DAGSTER_HOME", str(freshet_home / "dagster"))
    for name in (
        "demo/started",
        "registry/compliance/v1/x",
        "index/support__f/x",
        "index/.support__f.lock",
        "catalog.db",
    ):
        (freshet_home / name).parent.mkdir(parents=True, exist_ok=True)
        (freshet_home / name).touch()
    return freshet_home


def test_it_starts_again_over_what_an_earlier_one_left(home: Path) -> None:
    Demo(Environment()).prepare()
    assert sorted(path.name for path in home.iterdir()) == ["demo"]
    assert (home / "demo" / "data" / "support" / "data" / "specs").is_dir()


@pytest.mark.parametrize("mine", ["registry/handbook/v1/x", "index/handbook__f/x"])
def test_it_touches_nothing_where_another_use_case_has_state(home: Path, mine: str) -> None:
    (home / mine).parent.mkdir(parents=True)
    (home / mine).touch()
    with pytest.raises(SystemExit, match="handbook"):
        Demo(Environment()).prepare()
    assert (home / mine).exists()
    assert (home / "catalog.db").exists()


def test_it_touches_nothing_that_no_demo_made(home: Path) -> None:
    (home / "demo" / "started").unlink()
    with pytest.raises(SystemExit, match="nothing was touched"):
        Demo(Environment()).prepare()
    assert (home / "catalog.db").exists()


def test_it_does_not_empty_another_dagster_instance(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DAGSTER_HOME", "/srv/dagster")
    with pytest.raises(SystemExit, match="DAGSTER_HOME"):
        Demo(Environment()).prepare()
    assert (home / "catalog.db").exists()
