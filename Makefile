# make run      start on 127.0.0.1:8080 with the shipped model and the sandbox provider (HOST= PORT= CONFIG=)
# make install  the virtualenv with what serving needs
# make test     the whole test suite
# make litellm  a LiteLLM proxy in an environment of its own, for the tests that ask one (some 750 MB)
# make check    ruff, mypy strict, the import contract, the tests
# make train    data to shipped artifact (MIRROR=DIR EXCLUDE=shingles.npy DATA=my.jsonl START=models/… TRAIN_FLAGS=…)
# make study    what each source and ingredient is worth: many short trainings (RUN= STUDY_FLAGS=…)
# make bench    all benchmarks but the peers
# make eval     recall, calibration, and other detectors on the same rows (CORPUS=DIR or MIRROR=DIR, EXCLUDE=… EVAL_FLAGS=…)

PYTHON ?= python3
VENV ?= .venv
LITELLM_VENV ?= .venv-litellm
LITELLM_VERSION := 1.108.7
CONFIG ?= firewall.toml
HOST ?=
PORT ?=
MIRROR ?=
EXCLUDE ?=
DATA ?=
START ?=
TRAIN_FLAGS ?=
STUDY_FLAGS ?=
RUN ?= .runs/study
BENCH_FLAGS ?=
CORPUS ?=
EVAL_FLAGS ?=

BIN := $(VENV)/bin
# Stamps: an install is repeated only when what it depends on has changed.
SERVING := $(VENV)/.installed-serving
TESTING := $(VENV)/.installed-test
TRAINING := $(VENV)/.installed-train
BENCHING := $(VENV)/.installed-bench
PROXY := $(LITELLM_VENV)/.installed-$(LITELLM_VERSION)

.PHONY: run install test litellm check train study bench eval clean
.DELETE_ON_ERROR:

run: $(SERVING)
	$(BIN)/semantic-firewall serve --config $(CONFIG) $(if $(HOST),--host $(HOST)) $(if $(PORT),--port $(PORT))

install: $(SERVING)

test: $(TESTING)
	$(BIN)/python -m pytest $(TEST_FLAGS)

litellm: $(PROXY)

check: $(TESTING)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python -m pytest $(TEST_FLAGS)

train: $(TRAINING)
	$(BIN)/python -m training.pipeline $(if $(MIRROR),--mirror $(MIRROR)) $(if $(EXCLUDE),--exclude $(EXCLUDE)) \
		$(if $(DATA),--data $(DATA)) $(if $(START),--start $(START)) $(TRAIN_FLAGS)

study: $(TRAINING)
	$(BIN)/python -m training.pipeline --pack --run $(RUN) $(if $(MIRROR),--mirror $(MIRROR)) \
		$(if $(EXCLUDE),--exclude $(EXCLUDE)) $(if $(DATA),--data $(DATA)) $(TRAIN_FLAGS)
	$(BIN)/python -m training.study $(RUN) $(STUDY_FLAGS)

bench: $(BENCHING)
	$(BIN)/python -m benchmarks $(BENCH_FLAGS)

eval: $(BENCHING)
	$(BIN)/python -m benchmarks eval $(if $(CORPUS),--corpus $(CORPUS)) $(if $(MIRROR),--mirror $(MIRROR)) \
		$(if $(EXCLUDE),--exclude $(EXCLUDE)) $(EVAL_FLAGS)

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "Python 3.11 or newer is needed; $(PYTHON) is older. Name another: make PYTHON=python3.12 …" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)

$(SERVING): pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --quiet --editable .
	@touch $@

$(TRAINING): pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --quiet --editable '.[train]'
	@touch $@ $(SERVING)

$(TESTING): pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --quiet --editable '.[train,test]'
	@touch $@ $(SERVING) $(TRAINING)

$(BENCHING): pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --quiet --editable '.[bench,train]'
	@touch $@ $(SERVING)

# Apart from ours: it pins other versions of what we use. Python compiles what of it is used; all of it takes minutes.
$(PROXY):
	$(PYTHON) -m venv --clear $(LITELLM_VENV)
	$(LITELLM_VENV)/bin/python -m pip install --quiet --no-compile 'litellm[proxy]==$(LITELLM_VERSION)'
	@touch $@

clean:
	rm -rf $(VENV) $(LITELLM_VENV) .venvs .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
