"""The whole main job on the bundled data, through Dagster: `make demo`.

It works on a copy of the sample data, runs the jobs as a user would (`dagster job execute`), asks before and after every
change, and writes what it saw to ``<FRESHET_HOME>/demo/report.json``. State stays in FRESHET_HOME for `make dev`.
"""

import json
import os
import platform
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import dagster as dg

from pipelines.ask import ask, classify
from pipelines.declaration import USE_CASES
from pipelines.environment import REPOSITORY, Environment, available_cores
from pipelines.fingerprint import write_json_atomically
from pipelines.release.registry import champion, versions

SPEC, OLD_FACT, NEW_FACT = "", "", ""
DELETED_SPEC = ""
NEW_SPEC = ""
QUESTIONS = {"edited": "", "deleted": "", "added": ""}
PASSAGE = ""

SYNC_FIGURES = ("added", "changed", "deleted", "unchanged", "chunks", "embedded", "points_deleted")


class Demo:
    """One run of the demo: its clock, its account and its report."""

    def __init__(self, environment: Environment) -> None:
        self.environment = environment
        self.folder = environment.home / "demo"
        self.data = self.folder / "data"
        self.started = time.perf_counter()
        self.report: dict[str, Any] = {
            "machine": {"platform": platform.platform(), "cores": available_cores(), "python": platform.python_version()},
            "steps": [],
        }

    def say(self, text: str = "") -> None:
        """One line of the account."""
        print(text, flush=True)

    def heading(self, text: str) -> None:
        """A new chapter."""
        self.say(f"\n== {text}")

    def prepare(self) -> None:
        """Start from nothing, on a copy of the sample data.

        Raises:
            SystemExit: FRESHET_HOME holds state that no demo made.
        """
        marker = self.folder / "started"
        kept = ("dagster", "lint")
        held = [path for path in self.environment.home.glob("*") if path.name not in kept]
        if held and not marker.exists():
            raise SystemExit(
                f"{self.environment.home} holds state that the demo did not make ({held[0].name}); nothing was touched. "
                "Run it elsewhere: make demo FRESHET_HOME=/tmp/freshet-demo"
            )
        for path in self.environment.home.glob("*"):
            if path.name not in kept:
                shutil.rmtree(path) if path.is_dir() else path.unlink()
        instance_folder = Path(os.environ["DAGSTER_HOME"])
        for path in instance_folder.glob("*"):
            if path.name != "dagster.yaml":
                shutil.rmtree(path) if path.is_dir() else path.unlink()
        marker.parent.mkdir(parents=True)
        marker.touch()
        for use_case in ("support", "compliance"):
            shutil.copytree(USE_CASES / use_case / "data", self.data / use_case / "data")

    def run(self, job: str, *, tags: Mapping[str, str] | None = None) -> float:
        """Run a job in a process of its own and wait for it; its log goes to a file, its latest line to a terminal.

        Returns:
            Seconds from launch to success.

        Raises:
            SystemExit: the run failed.
        """
        log = self.folder / "logs" / f"{len(self.report['steps']) + 1:02}-{job}.log"
        log.parent.mkdir(exist_ok=True)
        command = [sys.executable, "-m", "dagster", "job", "execute", "-m", "pipelines.definitions", "-j", job]
        command += ["--tags", json.dumps(dict(tags))] if tags else []
        started = time.perf_counter()
        with log.open("w", encoding="utf-8") as file:
            process = subprocess.Popen(  # noqa: S603 our own interpreter and job names
                command, cwd=REPOSITORY, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
            )
            for line in process.stdout or ():
                file.write(line)
                self._show(job, line)
        self._show(job, "")
        seconds = round(time.perf_counter() - started, 2)
        if process.wait() != 0:
            raise SystemExit(f"{job} failed; its log: {log}")
        self.report["steps"].append({"job": job, "seconds": seconds})
        return seconds

    def _show(self, job: str, line: str) -> None:
        if sys.stdout.isatty():
            message = line.rstrip().rsplit(" - ", 1)[-1]
            print(f"\r\x1b[2K   {job}: {message[:100]}" if line else "\r\x1b[2K", end="", flush=True)

    def finish(self) -> None:
        """Write the report."""
        self.report["seconds"] = round(time.perf_counter() - self.started, 1)
        write_json_atomically(self.folder / "report.json", self.report)
        self.say(f"\nAll of it took {self.report['seconds']:.0f} s. Report: {self.folder / 'report.json'}")
        self.say("Look at it in the Dagster UI: make dev")
