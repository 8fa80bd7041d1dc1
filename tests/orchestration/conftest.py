"""Use cases on small data of their own, run through Dagster."""

from collections.abc import Iterator
from pathlib import Path

import dagster as dg
import pytest

from tests.orchestration.harness import Dagster

SPECS = {
    "kettle.md": "---\ntitle: Boilwell kettle\nprice_eur: 49\n---\n# Boilwell\n\nBoils 1.7 litres in 190 seconds.\n",
    "toaster.md": "---\ntitle: Crustline toaster\n---\n# Crustline toaster\n\nTwo slots, 900 watts, crumb tray.\n",
}
PARTS = "part_number,name,fits,price_eur,stock_status,material,dimensions_mm,weight_g,notes,updated_at\n"
PARTS += (
    "P-1,Limescale filter,Boilwell kettle,4.50,in_stock,steel mesh,30x20,12,Rinse weekly,2026-05-01T08:00:00+00:00\n"
)
POLICY = "# Returns\n\nGoods come back within 30 days, unused, with the receipt.\n"


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """FRESHET_DATA with two specs, a part and a policy."""
    root = tmp_path / "data"
    specs = root / "support" / "data" / "specs"
    specs.mkdir(parents=True)
    for name, text in SPECS.items():
        (specs / name).write_text(text, encoding="utf-8")
    (root / "support" / "data" / "parts.csv").write_text(PARTS, encoding="utf-8")
    for use_case in ("support", "compliance"):
        (root / use_case / "data" / "policies").mkdir(parents=True)
        (root / use_case / "data" / "policies" / "returns.md").write_text(POLICY, encoding="utf-8")
    monkeypatch.setenv("FRESHET_DATA", str(root))
    return root


@pytest.fixture
def dagster(freshet_home: Path, tmp_path: Path) -> Iterator[Dagster]:
    with dg.DagsterInstance.local_temp(str(tmp_path), overrides={"telemetry": {"enabled": False}}) as instance:
        yield Dagster(instance)
