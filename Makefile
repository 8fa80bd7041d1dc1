# Everything runs from a plain checkout: `make demo`, `make test` and `make dev` set up what they need first.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
FRESHET_HOME ?= $(CURDIR)/.freshet
export FRESHET_HOME
DAGSTER_HOME := $(FRESHET_HOME)/dagster
export DAGSTER_HOME
# Nothing is fetched while it runs, and nobody is told about it.
export HF_HUB_OFFLINE ?= 1
export DAGSTER_DISABLE_TELEMETRY := 1

.PHONY: setup demo dev serve test lint types check instance

setup: $(VENV)/.installed ## virtual environment with the pinned versions

# torch first and by itself: an unpinned torch fetches gigabytes of CUDA on a machine without a GPU.
$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt torch
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[dev]"
	touch $@

instance: setup ## the embedded Dagster instance
	mkdir -p $(DAGSTER_HOME)
	cp deploy/dagster-local.yaml $(DAGSTER_HOME)/dagster.yaml

demo: instance ## the whole main job on bundled data: no network, no GPU
	$(BIN)/python demo.py

dev: instance ## Dagster's web server and daemon on http://127.0.0.1:3000
	$(BIN)/dagster dev --workspace workspace.yaml --host 127.0.0.1 --port 3000

serve: setup ## OpenAI's API for published chat models on http://127.0.0.1:8080
	$(BIN)/python -m pipelines.serve

lint: setup ## style, and every use case's YAML
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	@mkdir -p .freshet/lint && cp deploy/dagster-local.yaml .freshet/lint/dagster.yaml
	@# dg checks one file of a component type a call, so each use case has a call of its own.
	for folder in pipelines/usecases/*/; do DAGSTER_HOME=$(CURDIR)/.freshet/lint $(BIN)/dg check yaml $$folder || exit 1; done

types: setup
	$(BIN)/mypy

test: lint types ## lint, strict types and the test suite
	$(BIN)/python -m pytest -q -n auto
