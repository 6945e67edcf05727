# `make benchmark` and `make test` do all their own set-up: they need Python 3.11 to 3.13, make and a package index.

# The first Python on the path that TensorFlow supports; PYTHON=... chooses another.
PYTHON ?= $(shell for p in python3 python3.13 python3.12 python3.11 python; do \
	$$p -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' 2>/dev/null && echo $$p && break; done)
# uv is several times faster than pip where it is there; where it fails (an index with its own certificate), pip takes over.
UV := $(shell command -v uv 2>/dev/null)
STORE ?= runs/quick
# Processes that run tests, each with a TensorFlow of its own.
WORKERS ?= 2
# What runs on a backend other than TensorFlow, in an environment without it: all of it in `make test-all`, one test of
# each promise in `make test`.
OTHER_BACKEND = tests/test_benchmarks.py tests/test_other_backend.py tests/models/test_saved_elsewhere.py tests/testing/test_checks.py \
	tests/training/test_augmentation.py tests/training/test_loop.py tests/models/test_any_net.py \
	tests/training/test_cache.py tests/training/test_optimizer.py tests/models/test_explain.py
CACHE = tests/training/test_cache.py::test
LOOP = tests/training/test_loop.py::test
OTHER_BACKEND_SHORT = tests/test_other_backend.py tests/models/test_saved_elsewhere.py tests/training/test_optimizer.py \
	tests/testing/test_checks.py::test_a_builtin_backbone[cnn-training] \
	tests/testing/test_checks.py::test_a_builtin_backbone[cnn-saving] \
	tests/training/test_augmentation.py::test_the_whole_chain_is_the_same_on_every_backend_within_one_grey_level \
	$(LOOP)_an_interrupted_fit_continues_to_the_same_bits \
	$(LOOP)_a_head_has_the_same_losses_step_by_step_and_in_groups_of_steps[plain] \
	$(CACHE)_features_of_an_image_do_not_depend_on_those_beside_it[cnn] \
	$(CACHE)_a_head_on_cached_features_predicts_as_one_trained_through_the_frozen_net

.DEFAULT_GOAL := help
.PHONY: help benchmark test test-all test-torch test-encoders lint dist docs clean

help: ## Show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' Makefile

benchmark: .venv/core ## Train and compare five networks on synthetic cells (about 6 minutes on two cores)
	.venv/bin/leukemia-dl benchmark --dataset synthetic --recipe quick --store $(STORE)

test: .venv/test .venv-jax/ready ## Lint, types and the offline tests, then the leg on JAX without TensorFlow
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/mypy
	.venv/bin/python -m pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder
	KERAS_BACKEND=jax .venv-jax/bin/python -m pytest -p no:cacheprovider $(OTHER_BACKEND_SHORT)

test-all: test ## Then what takes minutes: five large nets, soak tests, Ray, every real image
	.venv/bin/python -m pytest -m slow
	HYPOTHESIS_PROFILE=thorough .venv/bin/python -m pytest -n $(WORKERS) -m "hypothesis and not slow"
	KERAS_BACKEND=jax .venv-jax/bin/python -m pytest -p no:cacheprovider -m "not gpu and not network" $(OTHER_BACKEND)

test-torch: .venv-torch/ready ## The leg on torch without TensorFlow (downloads several GB the first time)
	KERAS_BACKEND=torch .venv-torch/bin/python -m pytest -p no:cacheprovider $(OTHER_BACKEND)

test-encoders: .venv-encoders/ready ## The examples on torch, timm and keras-hub (downloads several GB the first time)
	.venv-encoders/bin/python -m pytest -m "not gpu and not network" tests/examples/test_timm.py tests/examples/test_kerashub.py

lint: .venv/test ## Fix formatting and imports, then check style and types
	.venv/bin/ruff check --fix .
	.venv/bin/ruff format .
	.venv/bin/mypy

dist: .venv/test ## Build wheel and sdist into dist/
	rm -rf dist
	.venv/bin/python -m hatchling build

docs: .venv/docs ## Build the documentation into site/, strictly
	NO_MKDOCS_2_WARNING=1 .venv/bin/mkdocs build --strict

clean: ## Delete environments, caches and built files (not runs/)
	rm -rf .venv .venv-jax .venv-torch .venv-encoders site dist build .mypy_cache .ruff_cache .pytest_cache .hypothesis

# install VENV ARGUMENTS: into an environment of our own, with the versions of constraints.txt.
define install
	@test -x $(1)/bin/python || $(MAKE) --no-print-directory environment VENV=$(1)
	@echo "Installing into $(1) (a minute or two the first time)"
	@{ test -n "$(UV)" && "$(UV)" pip install --quiet --python $(1)/bin/python --constraint constraints.txt $(2); } \
		|| $(1)/bin/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt $(2)
endef

.PHONY: environment
environment:
	@test -n "$(PYTHON)" || { echo "No Python 3.11, 3.12 or 3.13 found: install one, or say make PYTHON=/path/to/python3"; exit 1; }
	$(PYTHON) -m venv $(VENV)

.venv/core: pyproject.toml constraints.txt
	$(call install,.venv,--editable .)
	@touch $@

# pip older than 25.1 knows no dependency groups, so a small script reads them.
.venv/test: .venv/core
	.venv/bin/python .ci/group.py test > .venv/test.txt
	$(call install,.venv,--requirement .venv/test.txt)
	@touch $@

.venv/docs: .venv/core
	.venv/bin/python .ci/group.py docs > .venv/docs.txt
	$(call install,.venv,--requirement .venv/docs.txt)
	@touch $@

# The library itself without its dependencies, then all of those but TensorFlow, and JAX or torch.
.venv-%/ready: pyproject.toml constraints.txt
	@test -x .venv-$*/bin/python || $(MAKE) --no-print-directory environment VENV=.venv-$*
	.venv-$*/bin/python .ci/group.py --core-without tensorflow $* > .venv-$*/core.txt
	$(call install,.venv-$*,--requirement .venv-$*/core.txt pytest hypothesis)
	.venv-$*/bin/python -m pip install --quiet --disable-pip-version-check --no-deps --editable .
	@touch $@

# keras-hub 0.32 pins another kagglesdk than the one that is tested with the rest.
.venv-encoders/ready: pyproject.toml constraints.txt
	@test -x .venv-encoders/bin/python || $(MAKE) --no-print-directory environment VENV=.venv-encoders
	grep -v '^kagglesdk==' constraints.txt > .venv-encoders/constraints.txt
	.venv-encoders/bin/python -m pip install --quiet --disable-pip-version-check --constraint .venv-encoders/constraints.txt \
		--editable . pytest hypothesis "hatchling>=1.27" "torch>=2.6" "timm>=1.0" "keras-hub>=0.32"
	@touch $@
