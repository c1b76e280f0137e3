# Everything here works from a clean clone with Python 3.10 or newer and make; a C++ compiler, if
# there is one, builds the kernels of native/. `make help` lists the targets.
#
#   make quickstart PYTHON=python3.12    another interpreter, whose environment is .venv-3.12
#   make test VERSIONS=floor             the oldest allowed packages, in .venv-3.11-floor or the like
#   make test VENV=/path/to/venv         another place for the environment

VERSION_OF = -c 'import sys; print("%d.%d" % sys.version_info[:2])'
# Each interpreter has an environment of its own, and so have the oldest packages.
ifneq ($(origin PYTHON),undefined)
ASKED := $(or $(shell $(PYTHON) $(VERSION_OF)),$(error PYTHON is "$(PYTHON)", which does not run: give the path of a Python 3.10 or newer))
NAME := -$(ASKED)
endif
PYTHON ?= python3
VERSIONS ?= pinned
ifneq ($(VERSIONS),pinned)
$(if $(filter floor,$(VERSIONS)),,$(error VERSIONS is "$(VERSIONS)", allowed are pinned and floor))
NAME := -$(or $(ASKED),$(shell $(PYTHON) $(VERSION_OF)))-floor
endif
VENV ?= .venv$(NAME)
BIN := $(VENV)/bin
ifneq ($(words $(VENV)),1)
$(error VENV is "$(VENV)": make knows no names with blanks; give another, or a path relative to this folder)
endif
FOUND := $(if $(ASKED),$(shell [ ! -x $(BIN)/python ] || $(BIN)/python $(VERSION_OF)))
ifneq ($(or $(FOUND),$(ASKED)),$(ASKED))
$(error $(VENV) has Python $(FOUND), and PYTHON is $(ASKED): give another VENV, or remove $(VENV))
endif

# What an installation depends on: a newer one of these installs again.
SOURCES := setup.cfg pyproject.toml constraints.txt setup.py $(wildcard native/*.cpp native/core/*)
RUNTIME := $(VENV)/.installed
DEVELOPMENT := $(VENV)/.installed-dev

export PIP_DISABLE_PIP_VERSION_CHECK := 1
# The pinned versions have dropped Python 3.10; there pip chooses from the floors in setup.cfg.
ifeq ($(VERSIONS),floor)
CONSTRAINTS = -c $(FLOORS)
FLOORS := $(VENV)/floors.txt
else
CONSTRAINTS = $(shell $(BIN)/python -c 'import sys; print("-c constraints.txt" * (sys.version_info >= (3, 11)))')
endif
INSTALL = $(BIN)/python -m pip install --quiet --prefer-binary $(CONSTRAINTS)

# Ray and torch each start a thread per core otherwise, in every process of every test.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest
# Processes that share out the files of tests; `make test WORKERS=0` runs them in this one.
WORKERS ?= 2

.DEFAULT_GOAL := help
.PHONY: help quickstart install lint check-device test test-slow test-chaos test-extras test-portable test-fast parity sanitize bench bench-data bench-native fuzz constraints clean

help:  ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

quickstart: $(RUNTIME)  ## install, make a small data set, train on it, print the COCO numbers
	$(BIN)/python -m orchestrator.data.demo.digits data/digits
	$(BIN)/python -m orchestrator.run experiments/quickstart.yaml
	$(BIN)/orchestrator predict runs/quickstart 'data/digits/images/val_0000*.jpg' --output runs/quickstart/predictions.json --draw runs/quickstart/drawn
	@echo
	@echo "Look at '$(CURDIR)/runs/quickstart/report.html' and at the pictures in '$(CURDIR)/runs/quickstart/drawn'."
	@echo "# next, a folder of your own:"
	@echo "'$(abspath $(BIN))/orchestrator' init FOLDER"

install: $(RUNTIME)  ## the environment without development tools, in .venv

lint: $(DEVELOPMENT)  ## ruff, mypy and the import contracts
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

test: $(if $(filter floor,$(VERSIONS)),$(DEVELOPMENT),lint)  ## everything CI runs: lint and all tests but the slow ones
	$(PYTEST) -n $(WORKERS) --dist loadfile --no-loadscope-reorder \
		-m "not slow and not chaos"

test-slow: $(DEVELOPMENT)  ## the tests that take minutes: compilers, learning VGG, a submitted job
	$(PYTEST) -m "slow and not chaos"

test-chaos: $(DEVELOPMENT)  ## runs killed, stopped, poisoned and cut off by the hundred: docs/reliability.md
	$(PYTEST) -m chaos

test-extras: $(DEVELOPMENT)  ## the tests of export and serving, which need packages of their own
	$(INSTALL) -e '.[dev,export,serve]'
	$(call usable_cv2)
	$(PYTEST) tests/export tests/predict tests/serving -m "not chaos"

test-portable: $(DEVELOPMENT)  ## the numerical tests under each set of vector instructions: long
	$(BIN)/python tests/portable.py $(WORKERS)

test-fast: $(DEVELOPMENT)  ## the tests that start no Ray cluster and take no minute
	$(PYTEST) -m "not ray and not slow and not chaos"

parity: $(DEVELOPMENT)  ## 20,000 drawn cases: compiled kernels against their reference
	ORCHESTRATOR_NATIVE=1 ORCHESTRATOR_PARITY_CASES=20000 $(PYTEST) tests/native/test_native_parity.py

fuzz: $(DEVELOPMENT)  ## SECONDS (600) of random damage to images, annotations and experiments
	OMP_NUM_THREADS=1 OPENCV_LOG_LEVEL=SILENT PYTHONPATH=. \
		$(BIN)/python tests/catalogue/fuzz.py $(or $(SECONDS),600)

sanitize: $(DEVELOPMENT)  ## the kernels under the address, undefined and thread sanitizers
	PYTHON=$(BIN)/python tests/native/sanitize.sh

# The files called study_* train for what is learnt, not for speed, and are run by hand.
bench: $(RUNTIME)  ## every benchmark in benchmarks/, one after the other, and what got slower
	set -e; for each in benchmarks/bench_*.py; do OMP_NUM_THREADS=1 $(BIN)/python $$each; done
	$(BIN)/python benchmarks/results.py

bench-data: $(RUNTIME)  ## images/s through Ray Data beside bare loops and a DataLoader
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/bench_data.py

bench-native: $(RUNTIME)  ## the kernels beside their peers: the tables of docs/performance.md
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/bench_nms.py
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/bench_matching.py
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/bench_postprocess.py

check-device:  ## nine minutes of a GPU or NPU, with the python of this machine: docs/devices.md
	OMP_NUM_THREADS=$${OMP_NUM_THREADS:-8} $(PYTHON) -m orchestrator.benchmark.check_device $(CHECK)

constraints: $(RUNTIME)  ## resolve the newest allowed versions into constraints.txt
	$(BIN)/python -m pip install --quiet --dry-run --ignore-installed --prefer-binary \
		--report $(VENV)/resolution.json -e '.[dev,export,tune,s3,serve]'
	$(BIN)/python .ci/constraints.py < $(VENV)/resolution.json > constraints.txt

clean:  ## remove caches and build products; the environment, data and runs stay
	rm -rf build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis \
		.import_linter_cache
	rm -f native/*.so .venv*/.installed* $(RUNTIME) $(DEVELOPMENT)  # installing builds the kernels
	find orchestrator detectors native tests benchmarks -name __pycache__ -type d -prune -exec rm -rf {} +

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit("Python %d.%d found, 3.10 or newer is needed: PYTHON=/path/to/python make ..." % sys.version_info[:2] if sys.version_info < (3, 10) else 0)'
	$(PYTHON) -m venv $(VENV) || { rm -f $@; exit 1; }  # without pip it is no environment

$(FLOORS): setup.cfg .ci/floors.py | $(BIN)/python
	$(BIN)/python .ci/floors.py > $@.new && mv $@.new $@

$(RUNTIME): $(SOURCES) $(FLOORS) | $(BIN)/python
	@echo "Installing into $(VENV): torch and Ray are large, this takes minutes the first time."
	$(INSTALL) -e .
	$(call usable_cv2)
	@touch $@

$(DEVELOPMENT): $(SOURCES) $(FLOORS) | $(BIN)/python
	@echo "Installing into $(VENV): torch and Ray are large, this takes minutes the first time."
	$(INSTALL) -e '.[dev]'
	$(call usable_cv2)
	@touch $(RUNTIME) $@

# opencv-python draws windows and so needs libGL, which servers and containers often lack; the
# headless build of the same version is the same cv2 without windows, and replaces it there.
define usable_cv2
@$(BIN)/python -c 'import cv2' 2> $(VENV)/cv2.log || { \
	tail -n 1 $(VENV)/cv2.log; echo "Taking the headless build of OpenCV instead."; \
	$(BIN)/python -m pip install --quiet --force-reinstall --no-deps opencv-python-headless==$$( \
		$(BIN)/python -c 'from importlib.metadata import version; print(version("opencv-python"))') && \
	$(BIN)/python -c 'import cv2'; }
endef
