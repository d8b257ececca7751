# Everything a person does with this repository. `make` alone prints this list.
SHELL := /bin/bash
.DEFAULT_GOAL := help
PY := .venv/bin/python
BIN := .venv/bin
CORES ?= 2
PROOF_MINUTES ?= 60
# A gateway takes two cores to come back in time: these run after the others, not beside them.
FAULTS := tests/stories/test_engine_faults.py

.PHONY: help setup test faults quick proof bench lint types imports demo real-gitea serve clean quick-tests

help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: ## make ready: .venv, the agent, the sandbox (idempotent; each other target does it first)
	@scripts/setup.sh

demo: setup ## the whole product on this machine: a mention becomes a pull request (ONCE=1: exit 0/1 when it is there)
	@$(PY) -m app demo $(if $(ONCE),--once)

serve: setup ## run Mosaic with the settings of .env
	@$(PY) -m app serve

test: setup lint types imports ## everything that a change must pass
	@$(PY) -m pytest -q -n $(CORES) --dist loadgroup --ignore=$(FAULTS)
	@$(PY) -m pytest -q $(FAULTS)

quick: setup ## lint, types, imports and the quick tests side by side; under 30 s
	@$(MAKE) --no-print-directory -k -j 4 --output-sync=target lint types imports quick-tests

quick-tests: setup
	@$(PY) -m pytest -q -n $(CORES) --dist loadgroup -m "not e2e and not slow"

faults: setup ## the engine killed, away, refusing: the part of `make test` that has the machine to itself
	@$(PY) -m pytest -q $(FAULTS)

proof: setup ## nothing lost, nothing doubled: real processes killed, frozen, lied to (PROOF_MINUTES=60)
	@$(PY) -m tests.proof --minutes $(PROOF_MINUTES)

bench: setup ## the published figures, beside the peers, into bench/results/ (about ten minutes on an idle machine)
	@PYTHON=$(PY) scripts/bench-setup.sh
	@$(PY) -m bench

lint: setup ## style and common faults (ruff)
	@$(PY) -m ruff check --quiet . && echo "lint: clean"

types: setup ## types, strict (mypy)
	@$(PY) -m mypy --no-error-summary && echo "types: clean"

imports: setup ## imports run one way (import-linter)
	@report=$$($(BIN)/lint-imports --no-logo 2>&1) && echo "imports: clean" || { echo "$$report"; exit 1; }

real-gitea: setup ## the stories against a real Gitea: make real-gitea URL=https://… ADMIN_TOKEN=…
	@test -n "$(URL)" -a -n "$$ADMIN_TOKEN" || { echo "usage: make real-gitea URL=https://gitea.example ADMIN_TOKEN=…"; exit 2; }
	@REAL_GITEA_URL="$(URL)" REAL_GITEA_ADMIN_TOKEN="$$ADMIN_TOKEN" $(PY) -m pytest -q tests/stories

clean: ## remove what set-up and tests made (not var/, your data)
	rm -rf .venv node_modules .setup.lock .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache test-results
	find app handlers jobs migrations tests bench -name __pycache__ -type d -prune -exec rm -rf {} + 2>/dev/null || true
