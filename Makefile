# Everything a clone needs: `make run` shows sglite at work, `make test` checks it. Both set the environment up first.
#
#   make run          the quickstart, on the bundled model
#   make test         lint, types and the fast tests
#   make test-slow    the tests that take longer
#   make test-browser the playground in a headless Chromium, found on the path or named in SGLITE_CHROMIUM
#   make test-clients agents of the clients people use, in the interpreters that SGLITE_CLIENTS_PYTHON names (a:b)
#   make test-faults  attacks, and processes that die: ten minutes; SGLITE_FAULTS=full takes the full numbers
#   make test-gpu     the GPU's kernels and engines on an NVIDIA GPU, which must be there
#   make test-kernels-sanitized   native code under gcc's sanitizers: what it reads and writes, undefined behaviour, races
#   make lint         ruff and mypy alone
#   make wheel        a wheel in dist/ that carries the native libraries, for people without a C++ compiler
#   make bench-constrained   measure constrained generation beside its peers; QUICK=--quick takes a part of it
#   make reference    docs/reference.md from the docstrings, the list of models in docs/models.md from the tests
#   make bench-programs      measure the examples beside the same work as HTTP calls; QUICK=--quick takes small sizes
#   make bench-peers  measure sglite beside vLLM, llama.cpp, OpenVINO and transformers, which it sets up in .peers
#   make demo-model   train the bundled model again (over an hour)
#   make clean        remove caches and build outputs; the next call of any of the above checks the set-up again
#
# PYTHON       the interpreter that makes .venv (3.10 or newer)
# TORCH        the PyTorch requirement, installed first and held at what was installed
# PEERS        options of bench-peers, such as "--models 29M --quick"; see benchmarks/peers/run.py
# TORCH_INDEX  a package index to take it from; empty: pip's own. PyTorch keeps one with small CPU builds

PYTHON ?= python3
TORCH ?= torch==2.13.0
TORCH_INDEX ?=
TEST_SECONDS ?= 2400
PEERS ?=

VENV := .venv
PY := $(VENV)/bin/python
PIP := $(PY) -m pip --quiet --disable-pip-version-check
CONSTRAINTS := $(VENV)/sglite-constraints.txt
READY := $(VENV)/sglite-ready
# One thread each: results do not depend on the machine's cores, and nothing fights over them.
PYTEST := OMP_NUM_THREADS=1 timeout --kill-after=10 $(TEST_SECONDS) $(PY) -m pytest

.DELETE_ON_ERROR:
.PHONY: run test test-slow test-gpu test-browser test-clients test-faults test-kernels-sanitized lint bench-constrained bench-programs \
	bench-peers reference demo-model wheel clean

run: $(READY)
	$(PY) examples/quickstart.py

test: lint
	$(PYTEST) -m "not slow and not gpu"

test-slow: $(READY)
	$(PYTEST) -m "slow and not gpu"

test-browser: $(READY)
	$(PYTEST) tests/blackbox/test_playground.py tests/blackbox/test_playground_answers.py

test-clients: $(READY)
	$(PYTEST) -m slow -rs tests/clients

# Its figures are shown at the end; docs/reliability.md says what each is about.
test-faults: $(READY)
	OMP_NUM_THREADS=1 SGLITE_FAULTS=$${SGLITE_FAULTS:-quick} timeout --kill-after=10 7200 \
		$(PY) -m pytest -W ignore -rs tests/faults

# The same tests of kernels run in Triton's interpreter elsewhere. There is PyTorch for CUDA already where this is called.
test-gpu:
	$(PYTHON) -m pytest -rs --timeout 600 tests/unit/backend -k cuda
	$(PYTHON) -m pytest -rs --timeout 600 -m gpu tests/parity/test_engine_gpu.py tests/parity/test_engine_flashinfer.py

# Built before the sanitizer is loaded into everything. It keeps no record of what is still allocated at the end, which
# of Python and PyTorch is much. Its report is not captured. Threads have a program of their own among the tests.
SANITIZED := SGLITE_SANITIZE=address,undefined CXX=g++
KERNEL_TESTS := $(patsubst %,tests/unit/backend/test_native_%.py,kernels products codes attention mixers dense sampling threads)
test-kernels-sanitized: $(READY)
	$(SANITIZED) $(PY) -c "from sglite.runtime.backend import native_build as k; k.build(k.cache_folder()); \
		from sglite.constrained.engines import native_build as c; c.build(c.cache_folder())"
	$(SANITIZED) ASAN_OPTIONS=detect_leaks=0 UBSAN_OPTIONS=print_stacktrace=1 \
		LD_PRELOAD="$$(g++ -print-file-name=libasan.so) $$(g++ -print-file-name=libstdc++.so)" \
		$(PYTEST) --capture=sys --timeout=600 $(KERNEL_TESTS) \
		tests/unit/constrained/test_constrained_native.py

lint: $(READY)
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy

# The harness and its data are a folder beside the project; SGLITE_BENCH_SHARED names another place.
bench-constrained: $(READY)
	OMP_NUM_THREADS=1 $(PY) -m benchmarks.constrained.run $(QUICK)

reference: $(READY)
	$(PY) -m tools.api_reference
	$(PY) -m tools.model_matrix

bench-programs: $(READY)
	OMP_NUM_THREADS=1 $(PY) -m benchmarks.programs.run $(QUICK)

# An environment that could not be made is told, and its peer left out.
bench-peers: $(READY)
	PYTHON="$(abspath $(PY))" TORCH="$(TORCH)" TORCH_INDEX="$(TORCH_INDEX)" benchmarks/peers/setup.sh .peers
	$(PY) -m benchmarks.peers.run --folder .peers $(PEERS)

demo-model: $(READY)
	$(PY) -m tools.demo_model.build

# A plain wheel or sdist carries the sources alone: `pip wheel . --no-deps`, `python -m build`.
wheel: $(READY)
	$(PY) -m tools.native_wheel

clean:
	rm -rf build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis $(READY)
	find sglite tests tools examples -name __pycache__ -type d -prune -exec rm -rf {} +

# Made again when the requirements change, not when the sources do: the install is editable.
$(READY): pyproject.toml Makefile
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "sglite needs Python 3.10 or newer, $(PYTHON) is " + sys.version.split()[0] + "; give another one with make PYTHON=...")'
	@echo "setting up $(VENV); the first time this downloads PyTorch and takes some minutes"
	@$(PY) -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv $(VENV)
	@$(PIP) install "$(TORCH)" $(if $(TORCH_INDEX),--index-url "$(TORCH_INDEX)")
	@$(PY) -c 'from importlib.metadata import version; print("torch==" + version("torch"))' > $(CONSTRAINTS)
	@$(PIP) install --constraint $(CONSTRAINTS) --editable '.[dev]'
	@touch $@
