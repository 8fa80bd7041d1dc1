"""The benchmarks run, and what they count is counted right. The longest tests: their folder comes first."""

from __future__ import annotations

import json
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from benchmarks.peers.contender import differences
from pipelines.environment import REPOSITORY
from tests.conftest import shared_data


def run(benchmark: str, json_file: Path, *options: str) -> dict[str, Any]:
    command = [sys.executable, "-m", f"benchmarks.{benchmark}", "--quick", "--json", str(json_file), *options]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(json_file.read_text(encoding="utf-8"))


def test_stale_missing_and_duplicate_points_are_told_apart() -> None:
    wanted = [("a.md", "one"), ("a.md", "two"), ("a.md", "two"), ("b.md", "three")]
    held = [("a.md", "one"), ("a.md", "one"), ("a.md", "two"), ("b.md", "three before")]
    assert differences(held, wanted) == {"points": 4, "stale": 1, "missing": 1, "duplicates": 1}
    assert differences(wanted, wanted) == {"points": 4, "stale": 0, "missing": 0, "duplicates": 0}


@pytest.mark.slow
def test_the_ingest_benchmark_measures_ours_and_reports_a_peer_that_is_not_installed(tmp_path: Path) -> None:
    data = shared_data("specs-endoflife")
    result = run("ingest", tmp_path / "ingest.json", "--data", str(data), "--only", "freshet", "--only", "llamaindex")
    figures, rows = result["figures"], {row["contender"]: row for row in result["rows"]}
    assert (figures["stale"], figures["missing"], figures["duplicates"]) == (0, 0, 0)
    assert 0 < figures["embedded_per_changed_chunk"] <= 1
    assert figures["encoder_share"] > 0
    assert figures["memory_growth"] > 0
    assert rows["freshet"]["unchanged_embedded"] == 0
    if find_spec("llama_index") is None:
        assert figures["peers_missing"] == 1
        assert "llama_index" in rows["llamaindex"]["note"]
        assert "initial_vs_fastest_peer" not in figures
    else:
        assert figures["initial_vs_fastest_peer"] > 0


def test_replayed_commits_leave_the_index_as_a_build_from_scratch_would(tmp_path: Path) -> None:
    data = shared_data("handbook-18f").parent
    result = run(
        "replay", tmp_path / "replay.json", "--data", str(data), "--only", "handbook", "--commits", "3", "--every", "3"
    )
    assert result["figures"]["handbook_commits_clean"] == 3, result["commits"]
    assert 0 < result["figures"]["embedded_per_changed_chunk"] <= 1


@pytest.mark.slow
def test_the_export_benchmark_compares_the_files_that_it_times(tmp_path: Path) -> None:
    result = run("export", tmp_path / "export.json")
    rows, figures = result["rows"], result["figures"]
    assert {row["contender"] for row in rows if "seconds" in row} == {"freshet", "merge_and_unload + converter"}
    assert figures["largest_difference"] < 0.01
    assert {row["file"] for row in rows if "file" in row} == {"F16", "Q8_0", "Q4_K_M"}
    assert figures["time_vs_reference"] > 0 < figures["memory_vs_reference"]
    assert figures["f16_max_logit_difference"] < 0.01
    assert figures["f16_max_logit_difference"] < figures["f16_max_logit_difference_in_llama_cpp"] < 0.1
    assert figures["f16_top1_agreement"] > 0.99
    assert 0.9 < figures["q8_0_top1_agreement"] <= 1


@pytest.mark.slow
def test_the_benchmark_of_the_embedded_base_asks_it(tmp_path: Path) -> None:
    rows = run("basemodel", tmp_path / "base.json")["rows"]
    assert len({row["cases"] for row in rows}) == 4
    assert sum(row["right"] for row in rows) > 1
