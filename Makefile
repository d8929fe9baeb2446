# The commands of the project. `make setup` builds .venv once; every other target makes sure of it first.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
PIP := $(BIN)/python -m pip --disable-pip-version-check install --quiet --constraint constraints.txt

# Two workers with one thread each (`tests/conftest.py`): the tests are many and small. A file stays with one worker, so
# that what its tests share is made once; slow files come first, so that no worker waits for one at the end.
PYTEST := $(BIN)/pytest -n 2 --dist loadfile --no-loadscope-reorder

.PHONY: setup demo study-tables test public-test kernel-test slurm-test browser-test fuzz lint check format docs clean

setup: $(INSTALLED)

# torch comes before deepspeed, whose build imports it; --no-build-isolation lets that build see it.
$(INSTALLED): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' || \
		{ echo 'error: ecdit needs Python 3.11 to 3.13. Name one that you have: make PYTHON=python3.12' >&2; exit 1; }
	@echo 'setup, 1 of 4: a virtual environment in $(VENV)'
	@$(PYTHON) -m venv $(VENV)
	@echo 'setup, 2 of 4: downloads and installs torch, which takes a minute or more'
	@$(PIP) setuptools wheel packaging numpy torch
	@echo 'setup, 3 of 4: builds DeepSpeed'
	@$(PIP) --no-build-isolation deepspeed
	@echo 'setup, 4 of 4: installs ecdit and what its tests and docs need, which takes a minute or more'
	@$(PIP) --no-build-isolation --editable '.[dev]'
	@touch $@

demo: setup
	$(BIN)/ecdit sweep quickstart --out out/demo
	$(BIN)/ecdit compare-routing out/demo --out out/demo/tables
	$(BIN)/ecdit plot all out/demo --out out/demo/figures

# Rebuilds every number, table and figure of the docs that follows from the committed tables of runs; the fits of the
# scaling laws take minutes.
study-tables: setup
	$(BIN)/python docs/study/renew.py

test: setup
	$(PYTEST) -m 'not slurm and not browser and not fuzz'

# Triton's kernels: on an accelerator, else in Triton's interpreter. torch brings Triton along where it has a use for it;
# elsewhere it lies apart, since it makes every process of torch 70 MB larger.
kernel-test: setup
	@$(BIN)/python -c 'import triton' 2>/dev/null || test -d $(VENV)/triton || \
		$(PIP) --no-deps --target $(VENV)/triton triton==3.6.0
	PYTHONPATH=$(VENV)/triton $(PYTEST) -rs tests/unit/layers/test_*_kernels.py

# Starts a Slurm of three nodes on this machine; root on Debian or Ubuntu gets its packages installed first.
slurm-test: setup
	ECDIT_INSTALL_SLURM=1 $(BIN)/pytest -rs tests/slurm

# Opens a report, and the site where `make docs` built it, in a headless Chromium; root on Debian or Ubuntu gets it
# installed first.
browser-test: setup
	ECDIT_INSTALL_CHROMIUM=1 $(BIN)/pytest -rs tests/browser

# Compares imported weights and steps of training with the public code, in checkouts that ECDIT_PUBLIC_DIT,
# ECDIT_PUBLIC_DIT_MOE, ECDIT_PUBLIC_MICRO_DIFFUSION and ECDIT_PUBLIC_DIFFMOE name. The public networks need timm, which
# is not installed here.
public-test: setup
	$(BIN)/pytest -s -rs tests/integration/test_public_code.py tests/integration/test_beside_public.py

# Throws generated settings, sweep files and damaged records at the commands; FUZZ_SEED and FUZZ_CASES choose which and
# how many.
fuzz: setup
	$(PYTEST) -m fuzz tests/fuzz

lint: setup
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports

check: lint
	$(PYTEST) -m 'not slow and not multi and not gpu and not slurm and not browser and not fuzz'

format: setup
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

# The documentation as a site that can be opened from disk, site/index.html. A broken link or anchor fails (--quiet would
# also silence the warnings that --strict counts).
docs: setup
	@$(BIN)/python -c 'import material' 2>/dev/null || $(PIP) --no-build-isolation --editable '.[docs]'
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --config-file docs/_generator/mkdocs.yml

# Runs and figures in out/ are results, and stay.
clean:
	rm -rf $(VENV) build dist site *.egg-info .mypy_cache .ruff_cache .pytest_cache .import_linter_cache
	find . -name __pycache__ -not -path './.git/*' -prune -exec rm -rf {} +
