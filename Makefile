# `make help` lists the commands. README.md lists the documentation.
PORT ?= 8000
VENV ?= .venv
PYTHON ?= $(shell for p in python3 python3.13 python3.12 python3.11; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$p && break; done)
BIN = $(VENV)/bin
PIP_OPTIONS = -qq --disable-pip-version-check
PIP = $(BIN)/python -m pip install $(PIP_OPTIONS)

.DEFAULT_GOAL := help
.PHONY: help run install dev test test-all fuzz soak mutants bench bench-sizes bench-parts loadtest audit check lint lock clean

help:  ## list the commands
	@sed -n 's/^\([a-z-]*\):.*##/\1\t/p' Makefile | expand -t 12

run: install  ## serve the catalogue on http://127.0.0.1:8000 (PORT=8001 for another port)
	@exec $(BIN)/octavo serve --prepare --bind 127.0.0.1:$(PORT)

# --no-deps: a lock is complete. Otherwise pip may require an extra of a locked package from a newer
# release.
install: $(VENV)/.installed  ## prepare .venv with the command octavo

$(VENV)/.installed: requirements.lock pyproject.toml
	@test -n "$(PYTHON)" || { echo "Octavo needs Python 3.11 or newer: install it, or name it as PYTHON=/path/to/python3"; exit 1; }
	@$(PYTHON) -c 'import venv, ensurepip' || { echo "$(PYTHON) cannot make virtual environments: install its venv package (Debian: python3-venv)"; exit 1; }
	@echo "Installing into $(VENV) (once; half a minute)"
	@$(PYTHON) -m venv $(VENV)
	@$(PIP) --require-hashes --no-deps -r requirements.lock
	@$(PIP) --no-deps --no-build-isolation -e .
	@touch $@

dev: $(VENV)/.installed-dev

$(VENV)/.installed-dev: $(VENV)/.installed requirements-dev.lock
	@echo "Installing the packages of the tests into $(VENV) (once; a minute)"
	@$(PIP) --require-hashes --no-deps -r requirements-dev.lock
	@touch $@

# Separate from the tests: locust requires gevent, which changes the standard library.
$(VENV)-bench/.installed: $(VENV)/.installed requirements-bench.lock
	@echo "Installing the packages of the load test and the peers into $(VENV)-bench (once; two minutes)"
	@$(BIN)/python -m venv $(VENV)-bench
	@$(VENV)-bench/bin/python -m pip install $(PIP_OPTIONS) --require-hashes --no-deps -r requirements-bench.lock
	@$(VENV)-bench/bin/python -m pip install $(PIP_OPTIONS) --no-deps --no-build-isolation -e .
	@touch $@

# The tests start many processes. With this variable empty, Python compiles each module only once.
# Four workers also on two cores: the tests mostly wait.
test soak: export PYTHONDONTWRITEBYTECODE =
test: dev  ## the whole suite, on SQLite and on PostgreSQL (the packages of the tests include it)
	@status=0; \
	$(BIN)/python -m pytest -m "not alone" --numprocesses 4 --dist worksteal $(COVERAGE) || status=1; \
	$(BIN)/python -m pytest -m alone --numprocesses 2 --dist worksteal || status=1; \
	exit $$status

test-all:  ## the suite on Python 3.11 and on 3.13
	@for version in 3.11 3.13; do \
		python=$$(for p in python$$version "$$HOME"/.pyenv/versions/$$version*/bin/python; do \
			$$p -c '' 2>/dev/null && echo $$p && break; done); \
		test -n "$$python" || { echo "make test-all needs Python $$version, which is not here"; exit 1; }; \
		$(MAKE) --no-print-directory test PYTHON=$$python VENV=.venv-$$version || exit 1; \
	done

# To measure coverage doubles the CPU time of the tests, so only `make check` does.
check: COVERAGE = --cov --cov-report=term
check: lint test  ## ruff, mypy, and the suite with its minimum of coverage

CASES ?= 100000
fuzz: dev  ## send CASES=100000 requests that the document allows or forbids, in every role, on both databases, and as many damaged byte streams; search for the most expensive request
	@FUZZ_CASES=$(CASES) $(BIN)/python -m pytest --numprocesses auto --maxprocesses 4 --no-header -rP tests/test_fuzz.py
	@MUTATIONS=$(CASES) $(BIN)/python -m pytest --no-header -rP tests/http1/test_mutations.py
	@FUZZ_CASES=$(CASES) $(BIN)/python -m pytest --no-header -rP tests/test_cost.py

soak: dev  ## longer tests: overload, limits, cache and workers under faults, and 10,000 interleavings
	@SOAK=1 $(BIN)/python -m pytest --no-header -rP tests/test_load_shedding.py tests/test_serve.py tests/test_serve_faults.py \
		tests/test_limits_processes.py tests/test_cache_faults.py tests/test_cache_interleavings.py tests/test_cache_history.py \
		tests/test_fast_path.py tests/test_auth.py tests/test_health.py tests/test_slow_clients.py tests/test_idempotency_kills.py

ROOM ?= cache
mutants: $(VENV)-bench/.installed  ## put small defects into ROOM=cache, one at a time, and list those that no test notices (hours)
	@$(VENV)-bench/bin/python -m tests.mutants $(ROOM)

BOOKS ?= 10000
SIZES ?= 10000,100000,1000000
BENCH_SECONDS ?= 2
BENCH_ROUNDS ?= 2
BENCH = $(VENV)-bench/bin/python -m
bench: $(VENV)-bench/.installed  ## measure Octavo and its peers, and write docs/benchmark.md (BOOKS=10000, BENCH_SECONDS=2, BENCH_ROUNDS=2)
	@$(BENCH) bench.run --books $(BOOKS) --seconds $(BENCH_SECONDS) --rounds $(BENCH_ROUNDS)

bench-sizes: $(VENV)-bench/.installed  ## measure what reads cost at SIZES=10000,100000,1000000 books, and write docs/bench-sizes.md
	@$(BENCH) bench.sizes --sizes $(SIZES)

bench-parts: dev  ## measure what a limit and a cached read cost, as ratios in one run (bench.plans needs a DATABASE_URL)
	@$(BIN)/python -m bench.limits && $(BIN)/python -m bench.cache

USERS ?= 20
SECONDS ?= 90
PROFILE ?= service-tier
WORKERS ?= 2
DELAY_MS ?= 0
loadtest: $(VENV)-bench/.installed  ## load-test a real server, and check loadtest/slo.toml: docs/load-testing.md (PROFILE=limits-on, USERS=20, ...)
	@exec $(VENV)-bench/bin/python -m loadtest --profile $(PROFILE) --users $(USERS) --seconds $(SECONDS) \
		--workers $(WORKERS) --books $(BOOKS) --delay-ms $(DELAY_MS)

audit: dev  ## check the locked packages for known vulnerabilities (fails if the advisory database cannot be reached)
	@$(BIN)/pip-audit --strict --require-hashes --disable-pip --progress-spinner off -r requirements.lock

lint: dev  ## ruff and mypy; a warning for each file of more than 400 lines
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@find service -name '*.py' | xargs wc -l | awk '$$1 > 400 && $$2 != "total" {print "warning: " $$2 " has " $$1 " lines (more than 400)"}'

lock: dev  ## resolve the dependencies again, for every supported Python
	@for file in requirements.lock:--group=build requirements-dev.lock:--group=build:--group=dev \
			requirements-bench.lock:--group=build:--group=dev:--group=bench:-crequirements-dev.lock; do \
		set -- $$(echo $$file | tr : ' '); name=$$1; shift; \
		$(BIN)/uv pip compile --quiet pyproject.toml "$$@" --universal --python-version 3.11 \
			--generate-hashes --no-header --no-annotate \
			--upgrade -o $$name; \
	done

clean:  ## remove generated files, but no database
	@rm -rf .venv* .mypy_cache .ruff_cache .pytest_cache .hypothesis .coverage*
