# `make demo`, `make test` and `make lint` each work alone on a fresh checkout: they create .venv and install first.
# The stamp file remembers the install until pyproject.toml or the constraints change.
#
#   make install PYTHON=python3.12     another interpreter
#   make test ARGS="-k mask"           more arguments for pytest; `make demo ARGS=...` for the demo
#
# Other versions, each in a fresh checkout (or after `rm -rf .venv`), as .github/workflows has them:
#
#   make test CONSTRAINTS=constraints-lowest.txt     the lowest that pyproject.toml allows
#   make test CONSTRAINTS=                           the newest
#   make test CONSTRAINTS= WITH="trl@git+https://github.com/huggingface/trl"     more requirements for pip

PYTHON  ?= python3
WORKERS ?= 2
ARGS    ?=
WITH    ?=
CONSTRAINTS ?= constraints.txt
EXAMPLES ?= 100000
SEED     ?= $(shell date +%s)

VENV  := .venv
PY    := $(VENV)/bin/python
STAMP := $(VENV)/.installed

# No test needs the network. A worker gets one thread: the tests use tiny models, on which a second thread gains little,
# and several workers with a thread pool each would oversubscribe the cores. For more speed raise WORKERS, not threads.
TEST_ENV := HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false OMP_NUM_THREADS=1 MKL_NUM_THREADS=1

.DEFAULT_GOAL := help
.PHONY: help install demo test fuzz docs lint format clean

help:
	@echo "make demo      unlearn a small model on this machine and show what changed"
	@echo "make test      run the tests (no network, no GPU)"
	@echo "make fuzz      damage files of every kind in many ways (hours; EXAMPLES=$(EXAMPLES) of each, SEED=...)"
	@echo "make docs      build the documentation in site/ (strictly, no network)"
	@echo "make lint      ruff check, ruff format --check and the types (basedpyright, a minute)"
	@echo "make format    apply ruff's fixes and formatting"
	@echo "make install   create $(VENV) and install the package for development"
	@echo "make clean     remove caches and build products (keeps $(VENV))"

install: $(STAMP)

$(STAMP): pyproject.toml $(CONSTRAINTS)
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
		|| { echo "Python 3.11 or newer is needed: make $(or $(MAKECMDGOALS),install) PYTHON=python3.11" >&2; exit 2; }
	@test -x $(PY) || $(PYTHON) -m venv $(VENV)
	@echo "Installing into $(VENV) (some minutes the first time)"
	@$(PY) -m pip install -q --disable-pip-version-check $(addprefix -c ,$(CONSTRAINTS)) -e ".[dev]" $(WITH)
	@touch $@

demo: $(STAMP)
	@$(VENV)/bin/wagle demo $(ARGS)

test: $(STAMP)
	@$(TEST_ENV) $(PY) -m pytest -n $(WORKERS) --dist worksteal $(ARGS)

fuzz: $(STAMP)
	@echo "SEED=$(SEED)"
	@$(TEST_ENV) WAGLE_FUZZ_EXAMPLES=$(EXAMPLES) WAGLE_FUZZ_SEED=$(SEED) \
		$(PY) -m pytest -n $(WORKERS) --dist worksteal tests/files/test_fuzzed_files.py tests/files/test_fuzzed_texts.py $(ARGS)

# Not with --quiet: mkdocs does not count the warnings that it does not show, and strict would let all pass
docs: $(STAMP)
	@HF_HUB_OFFLINE=1 NO_MKDOCS_2_WARNING=1 DISABLE_MKDOCS_2_WARNING=true $(VENV)/bin/mkdocs build

lint: $(STAMP)
	@$(VENV)/bin/ruff check .
	@$(VENV)/bin/ruff format --check .
	@$(VENV)/bin/basedpyright

format: $(STAMP)
	@$(VENV)/bin/ruff check --fix .
	@$(VENV)/bin/ruff format .

clean:
	rm -rf build dist site .cache *.egg-info .pytest_cache .ruff_cache .hypothesis demo-output
	find . -name __pycache__ -type d -not -path './$(VENV)/*' -prune -exec rm -rf {} +
