# Everything runs in a virtual environment inside the checkout; the first target to need it makes it.
PYTHON ?= python3
VENV := .venv
READY := $(VENV)/.ready
APP := build/app
PACKAGES := -c 'import sysconfig; print(sysconfig.get_path("purelib"))'
SOURCES := pyproject.toml setup.py constraints.txt $(wildcard csrc/* csrc/*/*)

.PHONY: demo test test-app lint format bench sanitize clean help

help:
	@echo "make demo    draw portraits of built-in faces: trains the full method small, three to five minutes"
	@echo "make test    run the tests"
	@echo "make test-app  the demo app's tests, with gradio in an environment of its own"
	@echo "make lint    check style        make format  mend it"
	@echo "make bench   the CPU benchmarks (a few minutes; wants an idle machine)"
	@echo "make sanitize  the kernels' tests under AddressSanitizer and UBSan, in a copy of the sources"
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
	@$(VENV)/bin/python -m pytest -q -n auto --maxprocesses 4 --dist loadfile --no-loadscope-reorder

# gradio and what it needs stay out of the first environment, whose packages this one sees below its own.
$(APP)/.ready: $(READY) constraints-app.txt
	@echo "[+] gradio in $(APP)"
	@$(VENV)/bin/python -m venv $(APP)
	@echo "import site; site.addsitedir('$$($(VENV)/bin/python $(PACKAGES))')" > "$$($(APP)/bin/python $(PACKAGES))/first.pth"
	@$(APP)/bin/python -m pip install -qq -c constraints-app.txt gradio pillow
	@touch $@

test-app: $(APP)/.ready
	@$(APP)/bin/python -m pytest -q tests/use/test_app.py

bench: $(READY)
	@$(VENV)/bin/fastsketch bench

# In a copy, so that the ordinary build stays as it is.
sanitize: $(READY)
	@rm -rf build/sanitize && mkdir -p build/sanitize
	@cp -r csrc fastsketch tests setup.py pyproject.toml README.md LICENSE build/sanitize && rm -f build/sanitize/fastsketch/*.so
	@cd build/sanitize && FASTSKETCH_BUILD=1 FASTSKETCH_CUDA=0 FASTSKETCH_SANITIZE=1 \
	  ../../$(VENV)/bin/python setup.py -q build_ext --inplace
	@cd build/sanitize && PYTHONPATH=. ASAN_OPTIONS=detect_leaks=0:halt_on_error=1 \
	  UBSAN_OPTIONS=halt_on_error=1:print_stacktrace=1 \
	  LD_PRELOAD="$$(gcc -print-file-name=libasan.so) $$(gcc -print-file-name=libubsan.so) $$(gcc -print-file-name=libstdc++.so.6)" \
	  ../../$(VENV)/bin/python -m pytest -q -p no:cacheprovider tests/cpu tests/nn/test_attend.py \
	  tests/nn/test_attend_rows.py tests/nn/test_blur.py tests/nn/test_direct.py tests/nn/test_feature_distance.py tests/nn/test_instance_norm.py tests/nn/test_max_pool.py \
	  tests/nn/test_winograd.py tests/reference/test_transport.py \
	  tests/reference/test_relation.py tests/reference/test_project_and_normalize.py

lint: $(READY)
	@$(VENV)/bin/ruff check -q . && $(VENV)/bin/ruff format --check -q . && echo "style: all well"

format: $(READY)
	@$(VENV)/bin/ruff check -q --fix . ; $(VENV)/bin/ruff format -q .

clean:
	rm -rf $(VENV) build dist runs *.egg-info fastsketch/*.so
