"""Publishing: only what the gate let pass, whole and once; going back restores what was there."""

import json
import shutil
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import pytest

from pipelines.artifacts import Artifact, load
from pipelines.errors import ArtifactError, ConfigError, ExportError, GateRefusedError, LockedError, NotBuiltError
from pipelines.fingerprint import folder_sha256s, write_json_atomically
from pipelines.release import registry, storage
from pipelines.release.classifier import GgufClassifier
from pipelines.release.overview import difference, overview, overview_lines
from pipelines.release.registry import PublishedVersion, champion, promote, publish, rollback, versions
from tests.pipelines.release.samples import USE_CASE, copied, variant, write_report


@pytest.fixture
def url(tmp_path: Path) -> str:
    return str(tmp_path / "registry")


def published(tiny: Artifact, adapter: Artifact, folder: Path, url: str, count: int) -> list[PublishedVersion]:
    """``count`` versions, each judged against the one before."""
    result = []
    for number in range(count):
        served = None if number == 0 else adapter.fingerprint
        report = write_report(folder / f"report-{number}", adapter, champion=served)
        gguf = variant(tiny, folder, number)
        result.append(publish(gguf, adapter, report, use_case=USE_CASE, registry_url=url))
    return result


def served(url: str) -> str:
    version = champion(url, USE_CASE)
    assert version is not None
    return version.version


def in_another_process(paths: tuple[Path, Path, Path], url: str) -> str:
    gguf, adapter, report = (load(path) for path in paths)
    return publish(gguf, adapter, report, use_case=USE_CASE, registry_url=url).version


def test_a_passed_model_becomes_the_champion_and_answers(
    gguf: Artifact, adapter: Artifact, report: Artifact, tmp_path: Path
) -> None:
    """T15"""
    url = (tmp_path / "my registry").as_uri()
    assert champion(url, USE_CASE) is None
    version = publish(gguf, adapter, report, use_case=USE_CASE, registry_url=url)
    assert (version.version, version.path) == ("v1", tmp_path / "my registry" / USE_CASE / "v1")
    assert champion(url, USE_CASE) == version
    assert load(version.path / "adapter").fingerprint == adapter.fingerprint
    assert version.manifest["base_files"] == adapter.manifest["base_files"]
    texts = ["The invoice for the canteen must be paid within thirty days."]
    before = GgufClassifier(gguf.path / "notices-Q8_0.gguf").scores(texts)
    assert (GgufClassifier(version.gguf("Q8_0")).scores(texts) == before).all()
    with pytest.raises(NotBuiltError, match="has no Q2_K, only F16, Q4_K_M, Q8_0"):
        version.gguf("Q2_K")


def test_a_refused_model_is_not_published(tiny: Artifact, adapter: Artifact, tmp_path: Path, url: str) -> None:
    """T6, T7: the stored verdict is read again, whatever ran before."""
    bad = write_report(tmp_path / "bad", adapter, candidate=0.5)
    with pytest.raises(GateRefusedError, match=r"macro-f1 0\.500 against 0\.700 of the untuned base"):
        publish(tiny, adapter, bad, use_case=USE_CASE, registry_url=url)
    assert champion(url, USE_CASE) is None
    assert versions(url, USE_CASE) == []


@pytest.mark.parametrize("thorough", [False, True])
def test_a_verdict_that_was_turned_round_is_refused(
    tiny: Artifact, adapter: Artifact, tmp_path: Path, url: str, thorough: bool
) -> None:
    """T6: also when both places that hold it were changed, because it does not follow from the scores."""
    bad = write_report(tmp_path / "bad", adapter, candidate=0.5)

    def turn(folder: Path) -> None:
        if thorough:
            stored = json.loads((folder / "report.json").read_text(encoding="utf-8"))
            stored["verdict"] |= {"passed": True, "reasons": ["better"]}
            write_json_atomically(folder / "report.json", stored)

    turned = copied(bad, tmp_path / "turned", edit=turn, verdict={"passed": True, "reasons": ["better"]})
    with pytest.raises(ArtifactError, match="does not follow from the scores"):
        publish(tiny, adapter, turned, use_case=USE_CASE, registry_url=url)
    assert versions(url, USE_CASE) == []


def test_a_verdict_about_another_adapter_is_refused(
    tiny: Artifact, adapter: Artifact, report: Artifact, tmp_path: Path, url: str
) -> None:
    """T15: exactly this fingerprint, and exactly these files."""
    other = copied(report, tmp_path / "other", adapter="a" * 64)
    with pytest.raises(GateRefusedError, match="is about adapter aaaa"):
        publish(tiny, adapter, other, use_case=USE_CASE, registry_url=url)
    files = {**adapter.manifest["files"], "adapter_model.safetensors": "0" * 64}
    before = copied(report, tmp_path / "before", adapter_files=files)
    with pytest.raises(GateRefusedError, match="as it is now"):
        publish(tiny, adapter, before, use_case=USE_CASE, registry_url=url)


def test_files_made_from_another_adapter_are_refused(
    tiny: Artifact, adapter: Artifact, report: Artifact, tmp_path: Path, url: str
) -> None:
    """T15, G5"""
    foreign = copied(tiny, tmp_path / "foreign", adapter="b" * 64)
    with pytest.raises(ArtifactError, match="was made from adapter bbbb"):
        publish(foreign, adapter, report, use_case=USE_CASE, registry_url=url)
    elsewhere = copied(tiny, tmp_path / "elsewhere", use_case="another")
    with pytest.raises(ArtifactError, match="belongs to 'another'"):
        publish(elsewhere, adapter, report, use_case=USE_CASE, registry_url=url)
    with pytest.raises(ArtifactError, match="holds kind 'lora_adapter', not 'gguf_model'"):
        publish(adapter, adapter, report, use_case=USE_CASE, registry_url=url)


def test_files_that_failed_their_comparison_are_refused(
    tiny: Artifact, adapter: Artifact, report: Artifact, tmp_path: Path, url: str
) -> None:
    """G14, T7"""
    failed = copied(tiny, tmp_path / "failed", parity={"passed": False, "reasons": ["Q4_K_M predicts otherwise"]})
    with pytest.raises(GateRefusedError, match="Q4_K_M predicts otherwise"):
        publish(failed, adapter, report, use_case=USE_CASE, registry_url=url)


def test_a_full_disk_is_noticed_before_anything_is_copied(
    tiny: Artifact, adapter: Artifact, tmp_path: Path, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """T15: and the champion stays."""
    published(tiny, adapter, tmp_path, url, 1)
    judged = write_report(tmp_path / "judged", adapter, champion=adapter.fingerprint)
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _path: usage._replace(free=1_000_000))
    with pytest.raises(
        ExportError, match=r"publishing copies 0\.[0-9]+ GB to .*registry.* 0\.001 GB are free: make room"
    ):
        publish(variant(tiny, tmp_path, 7), adapter, judged, use_case=USE_CASE, registry_url=url)
    assert served(url) == "v1"
    assert sorted(path.name for path in (Path(url) / USE_CASE).iterdir() if path.is_dir()) == ["v1"]


@pytest.mark.parametrize("damage", ["altered", "missing", "added", "unfinished"])
def test_an_incomplete_or_altered_model_is_refused(
    tiny: Artifact, adapter: Artifact, report: Artifact, tmp_path: Path, url: str, damage: str
) -> None:
    """T8: what the caller holds in memory does not count."""
    copy = copied(tiny, tmp_path / "copy")
    path = copy.path / "notices-Q4_K_M.gguf"
    if damage == "altered":
        path.write_bytes(path.read_bytes()[:-1] + b"\x01")
    elif damage == "missing":
        path.unlink()
    elif damage == "added":
        (copy.path / "extra.gguf").write_bytes(b"")
    else:
        (copy.path / "manifest.json").unlink()
    with pytest.raises(ArtifactError):
        publish(copy, adapter, report, use_case=USE_CASE, registry_url=url)
    assert versions(url, USE_CASE) == []


def test_a_report_against_an_earlier_champion_does_not_count(
    tiny: Artifact, adapter: Artifact, report: Artifact, tmp_path: Path, url: str
) -> None:
    """T16: the candidate must have beaten the version that it replaces."""
    published(tiny, adapter, tmp_path, url, 1)
    with pytest.raises(GateRefusedError, match="compares with the champion adapter None"):
        publish(variant(tiny, tmp_path, 7), adapter, report, use_case=USE_CASE, registry_url=url)
    assert served(url) == "v1"


def test_publishing_the_same_model_again_makes_no_new_version(
    tiny: Artifact, adapter: Artifact, report: Artifact, tmp_path: Path, url: str
) -> None:
    first, second = published(tiny, adapter, tmp_path, url, 2)
    again = publish(load(tmp_path / "variant-0"), adapter, report, use_case=USE_CASE, registry_url=url)
    assert again == first
    assert [version.version for version in versions(url, USE_CASE)] == ["v1", "v2"]
    assert served(url) == "v1"
    assert rollback(url, USE_CASE) == second


def test_a_damaged_copy_is_replaced_by_a_new_version(
    tiny: Artifact, adapter: Artifact, report: Artifact, tmp_path: Path, url: str
) -> None:
    """T8: nothing is deleted, the damaged version stays where it is."""
    (first,) = published(tiny, adapter, tmp_path, url, 1)
    first.gguf("Q4_K_M").unlink()
    with pytest.raises(ArtifactError):
        promote(url, USE_CASE, "v1")
    judged = write_report(tmp_path / "again", adapter, champion=adapter.fingerprint)
    assert publish(load(tmp_path / "variant-0"), adapter, judged, use_case=USE_CASE, registry_url=url).version == "v2"
    with pytest.raises(ArtifactError):
        rollback(url, USE_CASE)
    assert served(url) == "v2"


def test_a_manifest_that_cannot_be_read_is_said_and_holds_up_no_other_version(
    tiny: Artifact, adapter: Artifact, tmp_path: Path, url: str
) -> None:
    first, *_ = published(tiny, adapter, tmp_path, url, 3)
    manifest = first.path / "manifest.json"
    manifest.chmod(0o644)
    manifest.write_text("{")
    lines = overview_lines(overview(url, USE_CASE))
    assert [line[:4] for line in lines] == ["  v1", "  v2", "* v3"]
    assert "v1/manifest.json cannot be read" in lines[0]
    assert difference(url, USE_CASE, "v2", "v3") is not None
    with pytest.raises(ArtifactError, match="cannot be read"):
        difference(url, USE_CASE, "v1", "v3")
    report = write_report(tmp_path / "another", adapter, champion=adapter.fingerprint)
    made = publish(variant(tiny, tmp_path / "more", 7), adapter, report, use_case=USE_CASE, registry_url=url)
    assert (made.version, served(url)) == ("v4", "v4")
    with pytest.raises(ArtifactError, match="cannot be read"):
        versions(url, USE_CASE)


def test_going_back_restores_exactly_what_was_served_and_deletes_nothing(
    tiny: Artifact, adapter: Artifact, tmp_path: Path, url: str
) -> None:
    """T17"""
    first, second, third = published(tiny, adapter, tmp_path, url, 3)
    folder = first.path.parent
    before = folder_sha256s(folder, leave_out=frozenset({"champion.json", ".lock"}))
    assert served(url) == "v3"
    assert rollback(url, USE_CASE) == second
    assert champion(url, USE_CASE) == second
    assert rollback(url, USE_CASE) == first
    with pytest.raises(NotBuiltError, match="champions before it: none"):
        rollback(url, USE_CASE)
    assert promote(url, USE_CASE, "v3") == third
    assert json.loads((folder / "champion.json").read_text(encoding="utf-8"))["previous"] == "v1"
    assert rollback(url, USE_CASE, "v1") == first
    assert folder_sha256s(folder, leave_out=frozenset({"champion.json", ".lock"})) == before


def test_going_back_to_what_was_never_served_before_is_refused(
    tiny: Artifact, adapter: Artifact, tmp_path: Path, url: str
) -> None:
    with pytest.raises(NotBuiltError, match="has no champion"):
        rollback(url, USE_CASE)
    published(tiny, adapter, tmp_path, url, 2)
    with pytest.raises(NotBuiltError, match="cannot be rolled back to v9: champions before it: v1"):
        rollback(url, USE_CASE, "v9")
    with pytest.raises(NotBuiltError, match="has no version 'v9'; published: v1, v2"):
        promote(url, USE_CASE, "v9")
    assert served(url) == "v2"


def test_a_crash_between_version_and_pointer_is_made_good_by_the_next_publishing(
    tiny: Artifact, adapter: Artifact, report: Artifact, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def crash(*_: Any) -> None:
        raise OSError("the power is gone")

    with monkeypatch.context() as patch:
        patch.setattr(storage, "write_text_atomically", crash)
        with pytest.raises(OSError, match="power"):
            publish(tiny, adapter, report, use_case=USE_CASE, registry_url=url)
    assert champion(url, USE_CASE) is None
    assert [version.version for version in versions(url, USE_CASE)] == ["v1"]
    assert publish(tiny, adapter, report, use_case=USE_CASE, registry_url=url).version == "v1"
    assert served(url) == "v1"


def test_a_crash_while_writing_leaves_no_version(
    tiny: Artifact, adapter: Artifact, report: Artifact, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """T8: a folder gets its name only when its hashes were read again."""

    def garbled(folder: Path, *arguments: Any, **named: Any) -> None:
        bundle(folder, *arguments, **named)
        (folder / "notices-Q4_K_M.gguf").unlink()
        (folder / "notices-Q4_K_M.gguf").write_bytes(b"half")

    bundle = registry.bundle
    with monkeypatch.context() as patch:
        patch.setattr(registry, "bundle", garbled)
        with pytest.raises(ArtifactError, match="not copied faithfully"):
            publish(tiny, adapter, report, use_case=USE_CASE, registry_url=url)
    assert versions(url, USE_CASE) == []
    assert [path.name for path in (Path(url) / USE_CASE).iterdir()] in ([], [".lock"])
    assert publish(tiny, adapter, report, use_case=USE_CASE, registry_url=url).version == "v1"


def test_a_champion_whose_manifest_was_altered_is_refused(
    tiny: Artifact, adapter: Artifact, tmp_path: Path, url: str
) -> None:
    """T8: and going back still works."""
    first, second = published(tiny, adapter, tmp_path, url, 2)
    manifest = json.loads((second.path / "manifest.json").read_text(encoding="utf-8"))
    write_json_atomically(second.path / "manifest.json", {**manifest, "categories": []})
    with pytest.raises(ArtifactError, match="missing or altered"):
        champion(url, USE_CASE)
    assert rollback(url, USE_CASE) == first
    (first.path.parent / "champion.json").write_text("{", encoding="utf-8")
    with pytest.raises(ArtifactError, match="is no JSON"):
        champion(url, USE_CASE)


def test_eight_processes_that_publish_one_model_make_one_version(
    tiny: Artifact, adapter: Artifact, report: Artifact, url: str
) -> None:
    paths = (tiny.path, adapter.path, report.path)
    with ProcessPoolExecutor(8, mp_context=get_context("spawn")) as pool:
        made = list(pool.map(in_another_process, [paths] * 8, [url] * 8))
    assert made == ["v1"] * 8
    assert [version.version for version in versions(url, USE_CASE)] == ["v1"]
    assert served(url) == "v1"


def test_of_eight_candidates_judged_against_nothing_one_wins(
    tiny: Artifact, adapter: Artifact, report: Artifact, tmp_path: Path, url: str
) -> None:
    """T16: the others were never compared with the one that is served now."""
    candidates = [variant(tiny, tmp_path, number) for number in range(8)]

    def outcome(gguf: Artifact) -> str:
        try:
            return publish(gguf, adapter, report, use_case=USE_CASE, registry_url=url).version
        except GateRefusedError:
            return "refused"

    with ThreadPoolExecutor(8) as pool:
        assert sorted(pool.map(outcome, candidates)) == ["refused"] * 7 + ["v1"]
    assert load(versions(url, USE_CASE)[0].path).manifest["version"] == served(url) == "v1"


def test_a_registry_that_is_held_for_long_says_so(
    tiny: Artifact, adapter: Artifact, report: Artifact, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from filelock import FileLock

    monkeypatch.setattr(storage, "LOCK_SECONDS", 0.05)
    (Path(url) / USE_CASE).mkdir(parents=True)
    with FileLock(Path(url) / USE_CASE / ".lock"), pytest.raises(LockedError, match="another publisher"):
        publish(tiny, adapter, report, use_case=USE_CASE, registry_url=url)


def test_a_use_case_cannot_leave_its_registry(url: str) -> None:
    with pytest.raises(ConfigError, match="is no name"):
        champion(url, "../elsewhere")
