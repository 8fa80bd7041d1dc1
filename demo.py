"""The whole main job on the bundled data, through Dagster: `make demo`.

It works on a copy of the sample data, runs the jobs as a user would (`dagster job execute`), asks before and after
every change, and writes what it saw to ``<FRESHET_HOME>/demo/report.json``. State stays in FRESHET_HOME for `make dev`.
"""

import json
import os
import platform
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping
from typing import Any

import dagster as dg

from pipelines.ask import ask, classify
from pipelines.declaration import USE_CASES
from pipelines.definitions import build_definitions
from pipelines.environment import REPOSITORY, Environment, available_cores
from pipelines.fingerprint import write_json_atomically
from pipelines.release.registry import champion, versions
from pipelines.serving.answering import answer
from resources.stores import StoresResource

SPEC, OLD_FACT, NEW_FACT = "dripwatch-leak-sensor.md", "battery life 34 months", "battery life 41 months"
DELETED_SPEC = "stormear-lightning.md"
ADDED_SPEC = "eaveload-roof-snow-sensor.md"
QUESTIONS = {
    "edited": "How long do the batteries of the Dripwatch leak sensor last?",
    "deleted": "From how far away can the Stormear detect lightning?",
    "added": "Up to what snow load can the roof snow sensor measure?",
}
FACTS: dict[str, dict[str, str | None]] = {
    "edited": {"before": OLD_FACT, "after": NEW_FACT},
    "deleted": {"before": "38 km", "after": None},
    "added": {"before": None, "after": "640 kg"},
}
"""What must be retrieved before and after; what was retrieved only before must be gone afterwards."""
ASKED = {
    "edited": "What is the battery of the Dripwatch Leak Sensor?",
    "unknown": "What is the light source of the Dripwatch Leak Sensor?",
    "person": "I smell gas near my Dripwatch Leak Sensor.",
}
"""What the chat model is asked: a fact that changes, one that nobody states, and what goes to a person."""
PASSAGE = "Twice a year our auditors may walk through the supplier's data centre and read its access logs."

SYNC_FIGURES = ("added", "changed", "deleted", "unchanged", "chunks", "embedded", "points_deleted")


class Demo:
    """One run of the demo: its clock, its account and its report."""

    def __init__(self, environment: Environment) -> None:
        self.environment = environment
        self.folder = environment.home / "demo"
        self.data = self.folder / "data"
        self.started = time.perf_counter()
        self.report: dict[str, Any] = {
            "machine": {
                "platform": platform.platform(),
                "cores": available_cores(),
                "python": platform.python_version(),
            },
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
            SystemExit: FRESHET_HOME holds state that no demo made, or variables point at other stores.
        """
        home, marker, instance = self.environment.home, self.folder / "started", self.environment.home / "dagster"
        if os.environ.get("DAGSTER_HOME") != str(instance):
            raise SystemExit(f"DAGSTER_HOME should be {instance}, which is emptied first; `make demo` sets it")
        elsewhere = [name for name in ("DATABASE_URL", "QDRANT_URL", "MODEL_REGISTRY_URL") if os.environ.get(name)]
        if elsewhere:
            raise SystemExit(f"the demo works on embedded stores: unset {', '.join(elsewhere)}")
        held = [path for path in home.glob("*") if path.name not in ("dagster", "lint")]
        users = {path.name.lstrip(".").partition("__")[0] for path in [*home.glob("registry/*"), *home.glob("index/*")]}
        if (held and not marker.exists()) or users - {"support", "compliance"}:
            raise SystemExit(
                f"{home} holds state that the demo did not make "
                f"({', '.join(sorted(users) or [path.name for path in held])}); nothing was touched. "
                "Run it elsewhere: make demo FRESHET_HOME=/tmp/freshet-demo"
            )
        for path in [*held, *(path for path in instance.glob("*") if path.name != "dagster.yaml")]:
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
            process = subprocess.Popen(
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

    def materialised(self, *key: str) -> dict[str, Any]:
        """Metadata of the latest materialisation of an asset, as Dagster holds it."""
        with dg.DagsterInstance.get() as instance:
            event = instance.get_latest_materialization_event(dg.AssetKey(key))
        if event is None or event.asset_materialization is None:
            raise SystemExit(f"{'/'.join(key)} was never materialised")
        return {name: value.value for name, value in event.asset_materialization.metadata.items()}

    def refresh(self, use_case: str, *sources: str) -> None:
        """Refresh an index and say what each source's sync did."""
        seconds = self.run(f"{use_case}_refresh")
        self.say(f"   {use_case}_refresh: {seconds:.1f} s")
        synced = {source: self.materialised(use_case, source) for source in sources}
        self.report["steps"][-1]["sources"] = {
            source: {name: figures[name] for name in (*SYNC_FIGURES, "seconds")} for source, figures in synced.items()
        }
        for source, figures in synced.items():
            told = ", ".join(f"{figures[name]} {name.replace('_', ' ')}" for name in SYNC_FIGURES)
            self.say(f"      {source}: {told}")

    def ask_all(self, when: str) -> None:
        """Ask the three questions ``before`` or ``after`` the change.

        Raises:
            SystemExit: what is retrieved is not what the sources say now.
        """
        for name, question in QUESTIONS.items():
            hits = ask("support", question, environment=self.environment)
            lines = "\n".join(hit.text for hit in hits).splitlines()
            fact = FACTS[name][when]
            wrong = {*FACTS[name].values()} - {fact, None}
            told = next((line.strip() for line in lines if fact and fact in line), None)
            if (fact and told is None) or any(text in line for text in wrong for line in lines if text):
                raise SystemExit(f"{question} {when} the change: expected {fact!r} and none of {wrong}, got {lines}")
            self.report.setdefault("questions", {}).setdefault(name, {"question": question})[when] = {
                "title": hits[0].title,
                "text": hits[0].text,
                "score": round(hits[0].score, 4),
                "fact": told,
            }
            self.say(f"   {question}")
            self.say(f"      -> {told or '(no longer, or not yet, in the documents)'}   [best hit: {hits[0].title}]")

    def sensor_decision(self) -> dg.RunRequest | str:
        """What the retraining sensor decides now: a run request, or why it waits."""
        definitions = build_definitions()
        with dg.DagsterInstance.get() as instance:
            sensor = definitions.resolve_sensor_def("compliance_retraining_sensor")
            resources = {"stores": StoresResource()}
            with dg.build_sensor_context(instance=instance, definitions=definitions, resources=resources) as context:
                tick = sensor.evaluate_tick(context)
        return tick.run_requests[0] if tick.run_requests else str(tick.skip_message)

    def retrain(self, use_case: str, tags: Mapping[str, str] | None = None) -> None:
        """Run the retrain job and say what it trained, measured and published."""
        seconds = self.run(f"{use_case}_retrain", tags=tags)
        version = champion(self.environment.registry_url, use_case)
        if version is None:
            raise SystemExit(f"{use_case}_retrain published nothing")
        training_set = self.materialised(use_case, "training_set")
        report = self.materialised(use_case, "evaluation_report")
        gguf = self.materialised(use_case, "gguf_model")
        figures = {
            "rows": training_set["dagster/row_count"],
            **{name: value for name, value in report.items() if isinstance(value, int | float)},
            **{name: value for name, value in gguf.items() if isinstance(value, int | float)},
            "version": version.version,
        }
        self.report["steps"][-1].update(figures)
        self.say(f"   {use_case}_retrain: {seconds:.1f} s, {figures['rows']} examples, published {version.version}")
        for name, value in figures.items():
            if isinstance(value, float):
                self.say(f"      {name}: {value:.3f}")

    def answer_all(self, when: str) -> None:
        """Ask the published chat model ``before`` or ``after`` the change, and say what its answers are from.

        What was retrieved is exact; what so small a model makes of it need not be, and is shown as it is.
        """
        for name, question in ASKED.items():
            said = answer("support", question, environment=self.environment)
            fact = FACTS["edited"][when] if name == "edited" else None
            cited = [f"{each.title}, version {each.version[:16]}" for each in said.citations]
            self.report.setdefault("answers", {}).setdefault(name, {"question": question})[when] = {
                "text": said.text,
                "tells": None if fact is None else fact in said.text,
                "refused": said.refused,
                "citations": cited,
                "version": said.version,
            }
            self.say(f"   {question}   [{said.version}, {said.file}]")
            for line in said.text.splitlines():
                self.say(f"      {line}")
            if fact is not None and fact not in said.text:
                self.say(f"      (wrong: the documents say {fact!r})")
            for line in cited:
                self.say(f"      from: {line}")

    def classify(self) -> None:
        """Classify one passage through the published GGUF file."""
        answer = classify("compliance", PASSAGE, environment=self.environment)
        label = ", ".join(answer.labels)
        self.report.setdefault("classified", []).append(
            {"text": PASSAGE, "labels": answer.labels, "version": answer.version}
        )
        self.say(f"   {PASSAGE!r}\n      -> {label} ({answer.scores[label]:.2f}, {answer.version}, {answer.file})")


def main() -> None:
    """Run the whole of it."""
    environment = Environment()
    demo = Demo(environment)
    demo.prepare()
    os.environ["FRESHET_DATA"] = str(demo.data)
    support, compliance = demo.data / "support" / "data", demo.data / "compliance" / "data"

    demo.heading("Documents become a served index")
    demo.refresh("support", "product_specs", "parts", "policies")
    demo.refresh("compliance", "policies")
    demo.ask_all("before")

    demo.heading("Labelled examples become a published, verified GGUF model: a classifier")
    demo.retrain("compliance")
    demo.classify()

    demo.heading("Labelled answers become one that writes: facts from what is retrieved, manner from fine-tuning")
    demo.retrain("support")
    demo.answer_all("before")

    demo.heading("A product spec changes, one is deleted, one is added")
    spec = support / "specs" / SPEC
    text = spec.read_text(encoding="utf-8")
    if text.count(OLD_FACT) != 1:
        raise SystemExit(f"{spec} should say {OLD_FACT!r} once")
    spec.write_text(text.replace(OLD_FACT, NEW_FACT), encoding="utf-8")
    (support / "specs" / DELETED_SPEC).unlink()
    shutil.copy(support / "later" / "specs" / ADDED_SPEC, support / "specs")
    demo.refresh("support", "product_specs")
    demo.ask_all("after")
    demo.answer_all("after")

    demo.heading("Nothing changes")
    demo.refresh("support", "product_specs", "parts", "policies")

    demo.heading("New labelled examples arrive, and the sensor decides")
    demo.say(f"   before: {demo.sensor_decision()}")
    shutil.copy(compliance / "later" / "segments-batch-2.jsonl", compliance / "labels")
    demo.say(f"   compliance_labels: {demo.run('compliance_labels'):.1f} s")
    request = demo.sensor_decision()
    if isinstance(request, str):
        raise SystemExit(f"the sensor should have asked for a run, but: {request}")
    demo.say(f"   after: {request.tags['freshet/reason']}: starts a run")
    demo.report["sensor"] = {"run_key": request.run_key, "tags": dict(request.tags)}
    demo.retrain("compliance", tags=request.tags)
    demo.classify()

    demo.heading("Rolled back, in one step")
    demo.say(f"   compliance_rollback: {demo.run('compliance_rollback'):.1f} s")
    served = champion(environment.registry_url, "compliance")
    published = [version.version for version in versions(environment.registry_url, "compliance")]
    demo.report["registry"] = {"versions": published, "champion": served.version if served else None}
    demo.say(f"   published: {', '.join(published)}; served: {demo.report['registry']['champion']}")
    demo.classify()
    demo.finish()


if __name__ == "__main__":
    main()
