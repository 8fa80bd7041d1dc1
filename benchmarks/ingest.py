"""Keeping an index of Markdown files up to date: ours beside LangChain, LlamaIndex and CocoIndex, in one run.

    python -m benchmarks.ingest [--data FOLDER] [--peers-python PYTHON] [--files N] [--repeats N] [--json FILE]
                                [--quick]

The peers are an extra. They are best installed beside Freshet in a virtual environment of their own, by whose Python
everything then runs, or whose Python ``--peers-python`` names:

    python3 -m venv .venv-peers
    .venv-peers/bin/pip install -c benchmarks/constraints-peers.txt torch
    .venv-peers/bin/pip install -c benchmarks/constraints-peers.txt -e ".[benchmarks]"

Each contender works in a process of its own and holds the same ``--files`` files in sync, starting from nothing
(*initial*), then with nothing changed (*unchanged*), then with 1 % of them changed, 1 % deleted and 1 % added. Files
and changes are real: ``FOLDER/v2`` of product specs, and their next version ``FOLDER/v3``. What is timed is what a
scheduled refresh waits for: opening the stores, the sync, closing them. Imports and loading the model are not in it,
and are reported apart; ``unchanged_open_s`` is the sync alone, in stores that are open. Then each is killed (SIGKILL)
half way through an initial ingest, started again, and its store is compared with what it should hold: the files as they
are, cut anew by its own splitter. Times are medians of ``--repeats`` runs, contenders taking turns.

``memory_growth`` is our peak resident memory for 50,000 small documents over that for 1,000, in processes without a
model (vectors drawn from hashes); ``memory_growth_above_start`` is the same of what the ingest added to its process,
``memory_growth_anonymous`` the same without the mapped pages of files.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.peers.process import MODULES, MissingError, Process
from benchmarks.report import report
from pipelines.environment import REPOSITORY

OURS = "freshet"
STEPS = ("initial", "unchanged", "one_percent")
QUICK_FILES = 10
DOCUMENTS, QUICK_DOCUMENTS = (1_000, 50_000), (200, 2_000)


@dataclass(slots=True)
class Corpus:
    """The files of the first version, and a change of a hundredth of them."""

    data: Path
    files: int
    names: list[str] = field(init=False)
    changed: list[str] = field(init=False)
    deleted: list[str] = field(init=False)
    added: list[str] = field(init=False)

    def __post_init__(self) -> None:
        old, new = (
            {path.name: path for path in sorted((self.data / version).glob("*.md"))} for version in ("v2", "v3")
        )
        self.names = list(old)[: self.files]
        a_hundredth = max(1, round(len(self.names) / 100))
        edited = [name for name in self.names if name in new and new[name].read_bytes() != old[name].read_bytes()]
        self.changed = _spread(edited, a_hundredth)
        self.deleted = _spread([name for name in self.names if name not in self.changed], a_hundredth)
        self.added = _spread([name for name in new if name not in self.names], a_hundredth)

    def put(self, folder: Path) -> None:
        """The first version, every file written anew."""
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        for name in self.names:
            shutil.copyfile(self.data / "v2" / name, folder / name)
        _settle()

    def change(self, folder: Path) -> None:
        for name in self.deleted:
            (folder / name).unlink()
        for name in (*self.changed, *self.added):
            shutil.copyfile(self.data / "v3" / name, folder / name)
        _settle()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--data", type=Path, default=REPOSITORY.parent / "shared" / "data" / "specs-endoflife")
    parser.add_argument("--peers-python", default=sys.executable, help="the Python that has the peers; default: this")
    parser.add_argument("--files", type=int, default=300)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--only", choices=MODULES, action="append", help="only this contender")
    parser.add_argument("--json", type=Path, help="write rows and figures to this file")
    quick = f"{QUICK_FILES} files, once, only ours killed, small memory test: does it run?"
    parser.add_argument("--quick", action="store_true", help=quick)
    given = parser.parse_args()
    if not all(any((given.data / name).glob("*.md")) for name in ("v2", "v3")):
        parser.error(f"--data {given.data} does not hold v2 and v3 with Markdown files")
    corpus = Corpus(given.data, QUICK_FILES if given.quick else given.files)
    contenders = [name for name in MODULES if not given.only or name in given.only]
    os.environ["HF_HUB_OFFLINE"] = "1"
    with tempfile.TemporaryDirectory() as scratch:
        bench = Bench(corpus, given.peers_python, Path(scratch))
        repeats = 1 if given.quick else given.repeats
        for repeat in range(repeats):
            first = repeat % len(contenders)
            for name in contenders[first:] + contenders[:first]:
                bench.measure(name, repeat, kill=repeat == repeats - 1 and (name == OURS or not given.quick))
    sizes = QUICK_DOCUMENTS if given.quick else DOCUMENTS
    memory = [memory_of(documents) for documents in sizes] if OURS in contenders else []
    rows = [bench.row(name) for name in contenders]
    report(
        "ingest",
        rows,
        figures(rows, bench, memory),
        packages=["qdrant-edge-py", "sentence-transformers", "openvino", "torch"],
        json_file=given.json,
        quick=given.quick,
        files=len(corpus.names),
        one_percent={"changed": corpus.changed, "deleted": corpus.deleted, "added": corpus.added},
        memory=memory,
        runs=bench.runs,
    )


@dataclass(slots=True)
class Bench:
    """Runs of every contender, and what they left in their stores."""

    corpus: Corpus
    peers_python: str
    scratch: Path
    runs: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    killed: dict[str, dict[str, Any]] = field(default_factory=dict)
    missing: dict[str, str] = field(default_factory=dict)
    """Why a peer was not measured: not installed, or it failed."""

    def measure(self, name: str, repeat: int, *, kill: bool) -> None:
        """One run through all steps, in new stores; then, if so wanted, one that is killed."""
        if name in self.missing:
            return
        try:
            with self._process(name) as process:
                run: dict[str, Any] = {"load": process.call("load")}
                documents = self._use_new_stores(process)
                for step in STEPS:
                    if step == "one_percent":
                        self.corpus.change(documents)
                    run[step] = process.call("sync")
                    run[f"{step}_store"] = process.call("compare")
                    if step == "initial" and name == OURS:
                        run["bare"] = process.call("bare")
                self.runs.setdefault(name, []).append(run)
                seconds = ", ".join(f"{step} {run[step]['seconds']:.2f} s" for step in STEPS)
                print(f"{name} {repeat + 1}: {seconds}", flush=True)
                if kill:
                    self._kill(name, process)
        except (MissingError, RuntimeError) as error:
            if name == OURS:
                raise
            kind = "missing" if isinstance(error, MissingError) else "failed"
            self.missing[name] = f"{kind}: {str(error).splitlines()[0]}"
            print(f"{name} {kind} in {self.peers_python}: {error}", flush=True)

    def _kill(self, name: str, process: Process) -> None:
        """Kill it in the middle of an initial ingest, let a new process finish, and look at the store."""
        documents = self._use_new_stores(process)
        half = self.seconds(name, "initial") / 2
        before = process.kill_during("sync", half)
        with self._process(name) as another:
            another.call("load")
            another.call("use", state=str(self.scratch / "state"), documents=str(documents))
            self.killed[name] = {"before": before, **another.call("sync"), **another.call("compare")}
        print(f"{name} killed after {half:.1f} s: {self.killed[name]}", flush=True)

    def _use_new_stores(self, process: Process) -> Path:
        """The folder of documents, in its first version."""
        documents, state = self.scratch / "documents", self.scratch / "state"
        shutil.rmtree(state, ignore_errors=True)
        self.corpus.put(documents)
        process.call("use", state=str(state), documents=str(documents))
        return documents

    def row(self, name: str) -> dict[str, Any]:
        """What the report tells about one contender."""
        if name in self.missing:
            return {"contender": name, "note": self.missing[name]}
        runs, killed = self.runs[name], self.killed.get(name, {})
        last = runs[-1]
        store = last["one_percent_store"]
        return {
            "contender": name,
            **{f"{step}_s": self.seconds(name, step) for step in STEPS},
            "unchanged_open_s": self.seconds(name, "unchanged", "sync_s"),
            "chunks": last["initial_store"]["points"],
            "tokens_per_chunk": last["initial_store"]["tokens_per_chunk"],
            "encoder_s": self.seconds(name, "initial", "encode_s"),
            "unchanged_embedded": last["unchanged"]["embedded"],
            "changed_chunks": store["new_texts"],
            "embedded": last["one_percent"]["embedded"],
            **{found: store[found] for found in ("stale", "missing", "duplicates")},
            "killed_before": killed.get("before"),
            "killed_embedded": killed.get("embedded"),
            **{f"killed_{found}": killed.get(found) for found in ("stale", "missing", "duplicates")},
            "load_s": statistics.median(run["load"]["import_s"] + run["load"]["model_s"] for run in runs),
            "versions": ", ".join(f"{package} {version}" for package, version in last["load"]["versions"].items()),
            "note": last["load"]["note"],
        }

    def seconds(self, name: str, step: str, what: str = "seconds") -> float:
        return float(statistics.median(run[step][what] for run in self.runs[name]))

    def _process(self, name: str) -> Process:
        python = sys.executable if name == OURS else self.peers_python
        return Process(python, name, self.scratch / f"{MODULES[name]}.log")


def figures(rows: list[dict[str, Any]], bench: Bench, memory: list[dict[str, Any]]) -> dict[str, float]:
    found: dict[str, float] = {"peers_missing": len(bench.missing)}
    peers = [row for row in rows if row["contender"] != OURS and "initial_s" in row]
    ours = next((row for row in rows if row["contender"] == OURS), None)
    if ours is not None:
        if peers:
            for step, column in (*((step, f"{step}_s") for step in STEPS), ("unchanged_open", "unchanged_open_s")):
                found[f"{step}_vs_fastest_peer"] = min(peer[column] for peer in peers) / ours[column]
        found["encoder_share"] = statistics.median(
            (run["initial"]["embedded"] / run["initial"]["seconds"]) / (run["bare"]["texts"] / run["bare"]["seconds"])
            for run in bench.runs[OURS]
        )
        found["embedded_per_changed_chunk"] = ours["embedded"] / max(1, ours["changed_chunks"])
        for what in ("stale", "missing", "duplicates"):
            stores = [run[f"{step}_store"] for run in bench.runs[OURS] for step in STEPS]
            found[what] = sum(store[what] for store in (*stores, bench.killed[OURS]))
    if memory:
        small, large = memory
        found["memory_growth"] = large["peak_mib"] / small["peak_mib"]
        above = [max(1.0, each["peak_mib"] - each["before_mib"]) for each in memory]
        found["memory_growth_above_start"] = above[1] / above[0]
        found["memory_growth_anonymous"] = large["peak_anonymous_mib"] / small["peak_anonymous_mib"]
    return found


def memory_of(documents: int) -> dict[str, Any]:
    command = [sys.executable, "-m", "benchmarks.peers.memory", str(documents)]
    done = subprocess.run(command, cwd=REPOSITORY, check=True, stdout=subprocess.PIPE)
    measured: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    print(f"memory: {measured}", flush=True)
    return measured


def _spread(names: list[str], count: int) -> list[str]:
    """So many of them, evenly spread."""
    return [names[(2 * number + 1) * len(names) // (2 * count)] for number in range(min(count, len(names)))]


def _settle() -> None:
    """A file that was written just now would be read once more, to be sure."""
    time.sleep(1)


if __name__ == "__main__":
    main()
