# `make help` lists the targets. Everything is installed into .venv and runs below .evergreen (EVERGREEN_HOME).

PYTHON ?= python3.11
BIN := .venv/bin
RUN := $(BIN)/python -m

# make run's choices
SOURCE ?= simulated
HOURS ?=
SEED ?= 20260101
TASKS ?=

# make serve's choices
PORT ?= 8088
WORKERS ?= 1
run_options = --source "$(SOURCE)" $(if $(HOURS),--hours $(HOURS)) --seed $(SEED) $(if $(TASKS),--tasks "$(TASKS)") \
  $(if $(DATA),--data "$(DATA)") $(if $(MAPPING),--mapping "$(MAPPING)") $(if $(KEEP),--keep)

.DEFAULT_GOAL := help
.PHONY: help setup run up down serve status test test-slow lint bench-loop bench-learning bench-serving bench-beyond bench-rivals-env tables lock clean bench-trust bench-tasks

help: ## List the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 18
	@echo
	@echo "make run takes: SOURCE=simulated|online-retail|FILE.toml  DATA=path or URL  MAPPING=FILE.toml"
	@echo "                HOURS=12  SEED=$(SEED)  TASKS=recommend  KEEP=1 (leave it running)"

setup: .venv/ready ## Install everything into .venv, from the lock file

.venv/ready: requirements.lock pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check "uv==0.13.*"
	$(BIN)/uv pip sync --quiet --python $(BIN)/python --compile-bytecode --require-hashes requirements.lock
	$(BIN)/uv pip install --quiet --python $(BIN)/python --no-deps --no-build-isolation --editable .
	@touch $@

run: setup ## Load a shop's history, train, let hours arrive, show table and picture
	$(RUN) pipeline.demo $(run_options)

up: setup ## Start PostgreSQL, MLflow and Airflow, and print where to look
	$(RUN) pipeline.installation up

down: setup ## Stop what `make up` or `make run KEEP=1` started
	$(RUN) pipeline.installation down

serve: up ## Answer over HTTP from the registry's champions, with a page to look at (PORT=8088 WORKERS=1)
	$(RUN) pipeline.installation exec $(BIN)/python -m pipeline.serving --port $(PORT) --workers $(WORKERS)

status: setup ## Say what runs
	$(RUN) pipeline.installation status

test: setup ## The fast tests (under 5 minutes)
	$(RUN) pytest -n 2 --dist loadfile -m "not slow"

# first those that take a quarter of all and stay on one worker: begun last, they run on when the other has ended
LONGEST := tests/test_scheduler.py

test-slow: setup ## The slow tests: the real scheduler, a backfill, kill -9 (EVERGREEN_TEST_KILLS=5)
	$(RUN) pytest -n 2 --dist loadfile --no-loadscope-reorder -m slow $(LONGEST) $(filter-out $(LONGEST),$(wildcard tests/test_*.py))

lint: setup ## Style and types
	$(BIN)/ruff check .
	$(BIN)/mypy

bench-loop: setup ## Measure ingest, checks, freshness and a request; writes tests/benchmarks/results/loop.json
	$(RUN) tests.benchmarks.bench_loop

bench-learning: setup ## Measure the learner on real logs (hours; PARTS="online_retail growth", or PARTS=myshop.toml DATA=log.csv)
	$(RUN) tests.benchmarks.bench_learning $(PARTS) $(if $(DATA),--data "$(DATA)")

bench-serving: setup ## Measure the compact form, server and batches (PARTS="compact server batch"); writes results/serving.json
	$(RUN) tests.benchmarks.bench_serving $(PARTS)

bench-beyond: setup ## Measure what goes beyond one machine (PARTS="workers celery spark checks"); adds to results/serving.json
	$(RUN) tests.benchmarks.bench_beyond $(PARTS)

bench-trust: setup ## Measure how far the loop can be trusted (PARTS="gate faults …"; KILLS=200 DAYS=14 TASK=recommend); writes results/trust.json
	$(RUN) tests.benchmarks.bench_trust $(PARTS)

bench-tasks: setup ## Measure the other tasks (PARTS="demand price support sentiment"); writes results/tasks.json
	$(RUN) tests.benchmarks.bench_tasks $(PARTS)

bench-rivals-env: .venv-rivals/ready ## Install the sequence recommender of bench-learning into .venv-rivals

# torch as a CPU build: from the folder of wheels that pip knows of, or else from where uv finds that build
.venv-rivals/ready: tests/benchmarks/rivals/requirements.lock | .venv/ready
	$(PYTHON) -m venv .venv-rivals
	$(BIN)/uv pip sync --quiet --python .venv-rivals/bin/python --require-hashes \
	  $(if $(PIP_FIND_LINKS),--find-links $(PIP_FIND_LINKS),--torch-backend cpu) $<
	@touch $@

tables: setup ## Write the measured figures into the README
	$(RUN) tests.benchmarks.tables

lock: ## Resolve pyproject.toml anew into requirements.lock
	$(BIN)/uv pip compile --quiet --upgrade pyproject.toml --extra dev --extra celery --extra kubernetes --generate-hashes --no-emit-index-url -o requirements.lock

clean: ## Remove what was installed and everything that runs made (asks nothing)
	-$(RUN) pipeline.installation down
	rm -rf .venv .venv-rivals .evergreen .pytest_cache .mypy_cache .ruff_cache
