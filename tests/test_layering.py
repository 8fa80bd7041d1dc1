"""The architecture, proved: who may import whom, and what loading the code location costs."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
DOMAINS = ("corpus", "labels", "training", "evaluation", "release")
ORCHESTRATION = ("definitions", "use_case", "jobs", "schedules")
HEAVY = (
    "torch",
    "transformers",
    "sentence_transformers",
    "great_expectations",
    "peft",
    "sklearn",
    "pandas",
    "llama_cpp",
)


def imports_of(path: Path) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            names.add(str(node.module))
            names.update(f"{node.module}.{alias.name}" for alias in node.names)
    return names


def modules(folder: str) -> list[Path]:
    return [path for path in sorted((ROOT / folder).rglob("*.py")) if "usecases" not in path.parts]


def starts_with(names: set[str], *prefixes: str) -> set[str]:
    return {name for name in names for prefix in prefixes if name == prefix or name.startswith(f"{prefix}.")}


@pytest.mark.parametrize("path", modules("pipelines"), ids=lambda path: str(path.relative_to(ROOT)))
def test_only_four_modules_of_pipelines_import_dagster(path: Path) -> None:
    allowed = path.parent == ROOT / "pipelines" and path.stem in ORCHESTRATION
    if not allowed:
        assert not starts_with(imports_of(path), "dagster", "assets", "resources", "sensors")
        assert not starts_with(imports_of(path), *(f"pipelines.{name}" for name in ORCHESTRATION))


@pytest.mark.parametrize(
    ("folder", "forbidden"),
    [
        ("resources", ("assets", "sensors", "pipelines.use_case", "pipelines.definitions")),
        ("assets", ("sensors", "pipelines.use_case", "pipelines.definitions")),
        ("sensors", ("assets", "pipelines.use_case", "pipelines.definitions")),
    ],
)
def test_imports_run_one_way(folder: str, forbidden: tuple[str, ...]) -> None:
    for path in modules(folder):
        assert not starts_with(imports_of(path), *forbidden), path


def test_the_package_below_orchestration_uses_no_private_dagster_module() -> None:
    for folder in ("pipelines", "assets", "resources", "sensors"):
        for path in modules(folder):
            assert not {name for name in imports_of(path) if name.startswith("dagster._")}, path


def test_the_code_location_loads_without_the_libraries_that_do_the_work() -> None:
    code = (
        "import sys; from pipelines.definitions import defs; defs();"
        f"print([name for name in {HEAVY!r} if name in sys.modules])"
    )
    printed = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert printed.strip().splitlines()[-1] == "[]"


def test_loading_the_code_location_writes_and_opens_no_store(freshet_home: Path) -> None:
    code = "from pipelines.definitions import defs; defs()"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, check=True)
    assert not freshet_home.exists()


def test_asking_does_not_import_dagster() -> None:
    code = "import sys, pipelines.ask; print('dagster' in sys.modules)"
    printed = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert printed.strip() == "False"
