"""``python -m pipelines.release``."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from pipelines.artifacts import Artifact
from pipelines.release.__main__ import main
from pipelines.release.registry import publish
from tests.pipelines.release.samples import USE_CASE, copied, write_report


def test_a_user_can_list_compare_promote_roll_back_and_prune(
    tiny: Artifact, adapter: Artifact, tmp_path: Path, freshet_home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """T17"""
    url = str(freshet_home / "registry")
    publish(tiny, adapter, write_report(tmp_path / "r1", adapter), use_case=USE_CASE, registry_url=url)
    judged = write_report(tmp_path / "r2", adapter, champion=adapter.fingerprint)
    publish(
        copied(tiny, tmp_path / "g2", fingerprint="2" * 64, held_out_rows=7),
        adapter,
        judged,
        use_case=USE_CASE,
        registry_url=url,
    )
    assert main(["list", USE_CASE]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line[:4] for line in lines] == ["  v1", "* v2"]
    assert main(["list", USE_CASE, "--json"]) == 0
    listed = json.loads(capsys.readouterr().out)
    assert [version["served"] for version in listed] == [False, True]
    assert listed[0]["files"]["Q4_K_M"]["size"] == tiny.manifest["quantisations"]["Q4_K_M"]["size"]
    assert main(["diff", USE_CASE, "v1", "v2"]) == 0
    rows, verdict = capsys.readouterr().out.splitlines()
    assert rows == f"held_out_rows: {tiny.manifest['held_out_rows']} -> 7"
    assert verdict.startswith("verdict.reasons: ['not surely worse: ")
    assert main(["diff", USE_CASE, "v2", "v2"]) == 0
    assert capsys.readouterr().out == "no difference\n"
    assert main(["diff", USE_CASE, "v1", "v9", "--json"]) == 2
    assert "has no version 'v9'; published: v1, v2" in capsys.readouterr().err
    assert main(["rollback", USE_CASE]) == 0
    assert capsys.readouterr().out == "notices serves v1\n"
    assert main(["promote", USE_CASE, "v2"]) == 0
    assert main(["rollback", USE_CASE, "v2"]) == 2
    assert "champions before it: v1" in capsys.readouterr().err
    assert main(["prune", USE_CASE, "--keep", "1"]) == 0  # v1 is what a rollback would serve
    assert capsys.readouterr().out == "notices: removed none\n"
    third = copied(tiny, tmp_path / "g3", fingerprint="3" * 64)
    publish(third, adapter, judged, use_case=USE_CASE, registry_url=url)
    assert main(["prune", USE_CASE, "--keep", "1", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == ["v1"]
    assert main(["prune", USE_CASE, "--keep", "0"]) == 2
    assert "keep 0 versions: give 1 or more" in capsys.readouterr().err


def test_what_cannot_be_done_is_said_and_returns_2(freshet_home: Path) -> None:
    ran = subprocess.run(
        [sys.executable, "-m", "pipelines.release", "rollback", "nothing"], capture_output=True, text=True
    )
    assert ran.returncode == 2
    assert ran.stderr == "NotBuiltError: nothing has no champion, so there is nothing to roll back from\n"
    assert main(["list", "nothing"]) == 2
    assert main(["prune", "nothing", "--keep", "3"]) == 2
    with pytest.raises(SystemExit, match="2"):
        main(["promote", "nothing"])
