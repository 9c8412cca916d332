# Everything runs in a virtual environment inside the checkout; the first target to need it makes it.
PYTHON ?= python3
VENV := .venv
READY := $(VENV)/.ready
SOURCES := pyproject.toml setup.py constraints.txt $(wildcard csrc/* csrc/*/*)

.PHONY: demo test lint format bench clean help

help:
	@echo "make demo    draw portraits of built-in faces: trains the full method small, about three minutes"
	@echo "make test    run the tests"
	@echo "make lint    check style        make format  mend it"
	@echo "make bench   the CPU benchmarks"
	@echo "make clean   remove the environment, builds and runs"

$(READY): $(SOURCES)
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || { echo "fastsketch needs Python 3.10 or later"; exit 1; }
	@echo "[1/3] virtual environment in $(VENV)"
	@test -x $(VENV)/bin/python || $(PYTHON) -m venv $(VENV)
	@echo "[2/3] torch and what goes with it (a few minutes the first time)"
	@$(VENV)/bin/python -m pip install -qq -c constraints.txt torch torchvision setuptools wheel ninja pybind11
	@echo "[3/3] fastsketch and its kernels"
	@$(VENV)/bin/python -m pip install -qq -c constraints.txt --no-build-isolation -e '.[dev]'
	@touch $@

demo: $(READY)
	@$(VENV)/bin/fastsketch demo --out runs/demo

test: $(READY)
	@$(VENV)/bin/python -m pytest -q

lint: $(READY)
	@$(VENV)/bin/ruff check -q . && $(VENV)/bin/ruff format --check -q . && echo "style: all well"

format: $(READY)
	@$(VENV)/bin/ruff check -q --fix . ; $(VENV)/bin/ruff format -q .

clean:
	rm -rf $(VENV) build dist runs *.egg-info fastsketch/*.so
