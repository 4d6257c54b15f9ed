# The commands of the project. Each makes the virtual environment it needs; nothing is installed outside this folder.
#
#   make demo    models on real purchases and generated payments, in this process: a few minutes
#   make test    linters, types, all tests against the installed wheel, native tests again with every check compiled in
#   make bench   the figures against the targets; BENCH_ARGS=--short as in CI
#   make soak    property tests with many more examples, then native code, entries for bytes, deadlines, forks for SOAK_SECONDS=3600, from SOAK_SEED=
#   make build   sdist and wheel in build/dist
#   make clean   remove everything that was made here
#
# Rules:
#   * The wheel is built from the sdist, and what is tested, timed and shown is the installed wheel: PYTHONSAFEPATH keeps
#     the source tree off the import path, and tests/conftest.py checks it.
#   * Versions come from requirements/ci.txt. `make test CONSTRAINTS=` takes the newest that pyproject.toml allows.
#   * Feast needs older packages than the rest: it has an environment of its own, with requirements/feast.txt.
#   * MLServer and MLflow, which we are tested with, have one too, without retailinfer: requirements/mlserver.txt.
#   * Stamps in the environments say what is done; an environment is made again when its inputs change.

PYTHON ?= python3
CONSTRAINTS ?= requirements/ci.txt
FEAST_CONSTRAINTS ?= $(if $(CONSTRAINTS),requirements/feast.txt)
MLSERVER_CONSTRAINTS ?= $(if $(CONSTRAINTS),requirements/mlserver.txt)
# More than two processors: workers wait for servers, disks and clocks a good part of their time.
WORKERS ?= 3
# Each worker begins with files of its own, and so makes what a file shares once; who is done takes over from the others.
SPREAD := --dist worksteal
PYTEST_ARGS ?=
BENCH_ARGS ?=
DEMO_ARGS ?=
SOAK_SECONDS ?= 3600
SOAK_SEED ?= $(shell date +%s)
SOAK_SEED := $(SOAK_SEED)

.DELETE_ON_ERROR:
.SUFFIXES:
MAKEFLAGS += --no-builtin-rules
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c

export PIP_DISABLE_PIP_VERSION_CHECK := 1
export PIP_RETRIES ?= 8
# `build` and `pip wheel` set up environments of their own: this is how they get the same versions.
export PIP_CONSTRAINT := $(abspath $(CONSTRAINTS))
PIP := -m pip -qq --no-input --require-virtualenv

DIST := build/dist
BUILT := build/dist.stamp
BUILD_VENV := .venv-build
INSTALLER := requirements/install.py
TEST_VENV := .venv-test
DEMO_VENV := .venv-demo
FEAST_VENV := .venv-feast
MLSERVER_VENV := .venv-mlserver
# The installed retailinfer, and beside it what is not part of the wheel.
BESIDE := build/beside
RUN := PYTHONSAFEPATH=1 PYTHONPATH=$(abspath $(BESIDE))
DEBUG_SITE := build/debug-site
RUN_DEBUG := PYTHONSAFEPATH=1 PYTHONPATH=$(abspath $(DEBUG_SITE)):$(abspath $(BESIDE))

# Tests of what is plain Python, or of other programs: a build with every check in native code would show them nothing new.
PLAIN := acceptance_overload acceptance_release_files acceptance_signed_releases bench breaker check cli cpus decision_log degrade_remote demo docs \
	environments events examples features_from_sklearn follow fuzz ladder last_good layers life lineage log_hook mlflow memory native outbox pack packaging policy_overrides \
	preload public_names readthrough_backoff redis_link redis_registry redis_script registry release remote servers services sources start swap trees_documents

EXTENSIONS := $(patsubst retailinfer/_native/%.pyx,retailinfer._native.%,$(wildcard retailinfer/_native/*.pyx))
CC ?= cc
C_WARNINGS := -fsyntax-only -std=gnu11 -Wall -Wextra -Wshadow -Wpointer-arith -Wstrict-prototypes -Wfloat-conversion -Werror

say = @printf '== %s  %s\n' "$$(date +%T)" '$(1)'

SOURCES := $(shell find retailinfer -type f \
	\( -name '*.py' -o -name '*.py[ix]' -o -name '*.pxd' -o -name '*.[ch]' -o -name '*.html' -o -name '*.css' -o -name '*.json' \))

.PHONY: help demo test environments bench soak build check lint types stubs unit feast debug clean FORCE
help:
	@sed -n 's/^#   make/  make/p' Makefile

# --- building ---------------------------------------------------------------------------------------------------------

# Changes when a file comes or goes, which no file's own time would show.
build/sources.txt: FORCE
	@mkdir -p build && printf '%s\n' $(sort $(SOURCES)) > $@.new
	@cmp -s $@.new $@ && rm $@.new || mv $@.new $@

$(BUILD_VENV)/stamp: $(CONSTRAINTS)
	$(call say,making $(BUILD_VENV))
	@rm -rf $(BUILD_VENV) && $(PYTHON) -m venv $(BUILD_VENV)
	@$(BUILD_VENV)/bin/python $(PIP) install build
	@$(BUILD_VENV)/bin/python $(PIP) install --only-binary=:all: uv || echo "   no uv: pip makes the environments, which takes longer"
	@touch $@

$(BUILT): $(SOURCES) build/sources.txt pyproject.toml setup.py MANIFEST.in LICENSE $(wildcard README.md) $(BUILD_VENV)/stamp
	$(call say,building the sdist and the wheel from it)
	@rm -rf $(DIST) retailinfer.egg-info
	@$(BUILD_VENV)/bin/python -m build --outdir $(DIST) . > build/build.log 2>&1 || { cat build/build.log; exit 1; }
	@ls $(DIST) && touch $@

build: $(BUILT)

# --- environments -----------------------------------------------------------------------------------------------------

# What is needed comes from pyproject.toml, so that the wheel can be built meanwhile; `pip check` asks the wheel itself.
# $(1) environment, $(2) extra, $(3) constraints
define environment
$(1)/dependencies.stamp: pyproject.toml $(INSTALLER) $(3) | $(BUILD_VENV)/stamp
	$$(call say,making $(1) for retailinfer[$(2)]: the first time this downloads its packages)
	@rm -rf $(1) && $(PYTHON) -m venv $(1)
	@$(BUILD_VENV)/bin/python $(INSTALLER) $(1) $(if $(3),--constraints $(3)) --extra $(2)
	@touch $$@

$(1)/stamp: $(1)/dependencies.stamp $(BUILT)
	$$(call say,installing the wheel in $(1))
	@$(1)/bin/python $(PIP) install --force-reinstall --no-deps $(DIST)/*.whl
	@$(1)/bin/python -m pip check > $(1)/check.txt || { cat $(1)/check.txt; exit 1; }
	@touch $$@
endef
$(eval $(call environment,$(TEST_VENV),dev,$(CONSTRAINTS)))
$(eval $(call environment,$(DEMO_VENV),demo,$(CONSTRAINTS)))
$(eval $(call environment,$(FEAST_VENV),feast-test,$(FEAST_CONSTRAINTS)))

# The server of MLflow out of its small package, and what its clients need to log a model in ONNX and one of LightGBM.
MLFLOW := "mlflow-skinny>=3" alembic flask flask-cors graphene huey lightgbm onnx onnxruntime sqlalchemy

# Tests start both as programs of their own (tests/mlservers.py, tests/mlflows.py). MLServer has no release for newer Pythons: they
# are skipped there.
$(MLSERVER_VENV)/stamp: $(MLSERVER_CONSTRAINTS) $(INSTALLER) | $(BUILD_VENV)/stamp
	$(call say,making $(MLSERVER_VENV): the first time this downloads its packages)
	@rm -rf $(MLSERVER_VENV) && mkdir $(MLSERVER_VENV)
	@if $(PYTHON) -c 'import sys; sys.exit(sys.version_info >= (3, 13))'; then \
		$(PYTHON) -m venv $(MLSERVER_VENV) && \
		$(BUILD_VENV)/bin/python $(INSTALLER) $(MLSERVER_VENV) $(if $(MLSERVER_CONSTRAINTS),--constraints $(MLSERVER_CONSTRAINTS)) "mlserver>=1.6" $(MLFLOW); \
	fi
	@touch $@

# It has no wheels, only sources; where they cannot be built its tests are skipped.
$(TEST_VENV)/uwsgi.stamp: $(TEST_VENV)/dependencies.stamp
	$(call say,building uWSGI for its tests)
	@$(TEST_VENV)/bin/python $(PIP) install uWSGI > build/uwsgi.log 2>&1 || echo "   not built: see build/uwsgi.log"
	@touch $@

$(BESIDE)/stamp: Makefile
	@rm -rf $(BESIDE) && mkdir -p $(BESIDE)
	@for folder in benchmarks examples; do ln -s "$(abspath .)/$$folder" $(BESIDE)/$$folder; done
	@touch $@

build/debug.stamp: $(BUILT) $(BUILD_VENV)/stamp
	$(call say,building the wheel with every check on)
	@rm -rf $(DEBUG_SITE) build/dist-debug
	@RETAILINFER_DEBUG=1 $(BUILD_VENV)/bin/python $(PIP) wheel --no-deps --no-cache-dir -w build/dist-debug $(DIST)/*.tar.gz
	@$(BUILD_VENV)/bin/python $(PIP) install --no-deps --target $(DEBUG_SITE) build/dist-debug/*.whl
	@touch $@

# --- what people run --------------------------------------------------------------------------------------------------

demo: $(DEMO_VENV)/stamp
	$(call say,demo)
	@PYTHONSAFEPATH=1 $(DEMO_VENV)/bin/python -m retailinfer demo $(DEMO_ARGS)

# Environments are made beside the two builds, the longest first: they are downloading and unpacking, where those are compiling.
# What runs in them runs one after the other.
environments: $(BUILT) $(TEST_VENV)/dependencies.stamp build/debug.stamp $(TEST_VENV)/uwsgi.stamp $(MLSERVER_VENV)/stamp $(FEAST_VENV)/stamp \
	$(TEST_VENV)/stamp $(BESIDE)/stamp

test:
	@$(MAKE) --no-print-directory -j2 environments
	@$(MAKE) --no-print-directory -j2 check feast
	@$(MAKE) --no-print-directory unit debug
	$(call say,all tests passed)

check: lint types stubs

lint: $(TEST_VENV)/stamp
	$(call say,ruff; warnings of the C compiler)
	@$(TEST_VENV)/bin/ruff check --quiet .
	@$(TEST_VENV)/bin/ruff format --quiet --check .
	@$(CC) $(C_WARNINGS) $(wildcard retailinfer/_native/*.c)

types: $(TEST_VENV)/stamp
	$(call say,mypy --strict)
	@$(TEST_VENV)/bin/mypy

stubs: $(TEST_VENV)/stamp $(BESIDE)/stamp
	$(call say,stubs against the compiled modules)
	@$(RUN) $(TEST_VENV)/bin/python -m mypy.stubtest --mypy-config-file pyproject.toml --concise --ignore-disjoint-bases --ignore-positional-only \
		--allowlist tests/stubtest.txt --ignore-unused-allowlist $(EXTENSIONS)

unit: $(TEST_VENV)/stamp $(TEST_VENV)/uwsgi.stamp $(MLSERVER_VENV)/stamp $(BESIDE)/stamp
	$(call say,tests against the installed wheel)
	@$(RUN) RETAILINFER_DIST=$(abspath $(DIST)) $(TEST_VENV)/bin/python -m pytest -n $(WORKERS) $(SPREAD) $(PYTEST_ARGS)

# pandas, pydantic and others warn in there of what is not ours: no warning is an error.
feast: $(FEAST_VENV)/stamp $(BESIDE)/stamp
	$(call say,tests with Feast)
	@$(RUN) $(FEAST_VENV)/bin/python -m pytest -p no:cacheprovider -W ignore $(PYTEST_ARGS) tests/feast

debug: build/debug.stamp $(TEST_VENV)/stamp $(BESIDE)/stamp
	$(call say,tests of native code again with every check on: bounds; null; division; C assertions)
	@$(RUN_DEBUG) RETAILINFER_DIST=$(abspath $(DIST)) RETAILINFER_DEBUG=1 HYPOTHESIS_PROFILE=debug \
		$(TEST_VENV)/bin/python -m pytest -n $(WORKERS) $(SPREAD) -m 'not slow' $(foreach name,$(PLAIN),--ignore-glob='*/test_$(name)*.py') $(PYTEST_ARGS)

bench: $(TEST_VENV)/stamp $(FEAST_VENV)/stamp $(BESIDE)/stamp
	$(call say,benchmarks)
	@$(RUN) FEAST_PYTHON=$(abspath $(FEAST_VENV)/bin/python) $(TEST_VENV)/bin/python -m benchmarks $(BENCH_ARGS)

soak: $(TEST_VENV)/stamp $(BESIDE)/stamp
	$(call say,property tests with many examples)
	@$(RUN) RETAILINFER_DIST=$(abspath $(DIST)) HYPOTHESIS_PROFILE=soak \
		$(TEST_VENV)/bin/python -m pytest -n $(WORKERS) --timeout=3600 -m hypothesis $(PYTEST_ARGS)
	$(call say,native code under sanitisers and fuzzers; every entry for bytes by coverage; deadlines, forks, overload: $(SOAK_SECONDS) s; seed $(SOAK_SEED))
	@$(RUN):$(abspath tests) $(TEST_VENV)/bin/python tests/soak.py --seconds $(SOAK_SECONDS) --seed $(SOAK_SEED) --report build/soak/report.json

clean:
	rm -rf build dist .venv-build .venv-test .venv-demo .venv-feast .venv-mlserver *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis .benchmarks
	find retailinfer tests benchmarks examples \( -name '*.so' -o -name '*.pyd' -o -name '__pycache__' \) -prune -exec rm -rf {} +
