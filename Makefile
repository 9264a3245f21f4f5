# `make` shows what there is. Everything that people and CI type stands here.
VENV ?= .venv
PYTHON ?= python3
# The default is plain torch (CUDA build, runs on a CPU too). TORCH=cpu takes the same version from torch's CPU wheels, whose index
# pip must know (PIP_EXTRA_INDEX_URL); those have no hashes in the lock.
TORCH ?= default
# Folder with diffusers' examples/dreambooth, for `make bench`.
PEERS ?=

BIN := $(abspath $(VENV))/bin
RUN := PATH=$(BIN):$$PATH
CLUSTER := PYTHONPATH=tests $(or $(wildcard $(BIN)/python),$(PYTHON)) -m cluster
STAMP := $(VENV)/.installed

# A part of constraints.txt: for extras $(1), into images/$(2).txt, with flags $(3).
PART = uv pip compile pyproject.toml --extra $(1) -c constraints.txt --generate-hashes --no-emit-index-url --no-emit-find-links --no-header --no-annotate --python-version 3.11 $(3) -o images/$(2).txt

# The asyncio half of the Kubernetes client and what it alone needs: nothing of ours imports it, and the control image is kept small.
ASYNC := $(addprefix --no-emit-package ,aiohappyeyeballs aiohttp aiohttp-retry aiosignal attrs frozenlist multidict propcache yarl)

.DEFAULT_GOAL := help
.PHONY: help setup demo test test-slow test-gpu test-readers test-cluster cluster cluster-images cluster-down check protos bench images chart lock

help: ## Shows this
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F':.*## ' '{printf "  make %-14s %s\n", $$1, $$2}'

setup: $(STAMP) ## Installs everything into $(VENV) (TORCH=cpu: torch's CPU wheels)

$(STAMP): constraints.txt pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
ifeq ($(TORCH),cpu)
	awk '/^[a-z]/ {skip = /^(torch|triton|nvidia-[a-z0-9-]*|cuda-[a-z0-9-]*)==/} !skip' constraints.txt > $(VENV)/constraints-cpu.txt
	$(BIN)/pip install -q --require-hashes -r $(VENV)/constraints-cpu.txt
	$(BIN)/pip install -q "torch==$$(sed -n 's/^torch==\([0-9.]*\).*/\1/p' constraints.txt)+cpu"
else
	$(BIN)/pip install -q --require-hashes -r constraints.txt
endif
	$(BIN)/pip install -q --no-deps --no-build-isolation -e .
	touch $@

demo: setup ## Pictures -> fine-tune -> convert -> merge -> compile -> serve -> picture; look at demo/index.html
	$(RUN) python -m atelier.demo demo

test: setup ## Runs the tests (no GPU, no cluster, within 10 minutes on 2 cores)
	$(RUN) python -m pytest

test-slow: setup ## Runs the tests that take minutes or gigabytes (SD 1.5 size)
	$(RUN) python -m pytest -m slow

test-gpu: setup ## Runs the tests that need a CUDA device
	$(RUN) python -m pytest -m gpu tests/gpu

test-readers: setup ## Reads our files with the tools of the field, each in an environment of its own
	$(RUN) python -m pytest -m readers tests/readers

test-cluster: setup cluster cluster-images ## Runs the tests that need a Kubernetes (KUBECONFIG's, else one of this machine; see make cluster)
	$(RUN) && eval "$$($(CLUSTER) env)" && python -m pytest -s -m cluster tests/cluster

cluster: ## Brings up a Kubernetes on this machine, built from source (root), unless KUBECONFIG names one
	@$(CLUSTER) up

cluster-images: setup ## Builds the images that are stale and brings them into that Kubernetes (ONLY=control)
	@$(CLUSTER) images $(if $(ONLY),--only $(ONLY))

cluster-down: ## Removes that Kubernetes, but not what was built
	@$(CLUSTER) down

check: setup ## ruff, mypy, hadolint, import contracts, buf lint and breaking, helm lint, generated code and pages without drift
	$(RUN) ruff check services tests images charts
	$(RUN) ruff format --check services tests images charts
	$(RUN) hadolint images/Dockerfile
	$(RUN) mypy
	$(RUN) lint-imports
	$(RUN) buf lint protos
	$(RUN) buf breaking protos --against protos/released.binpb
	$(RUN) python protos/generate.py --check
	$(RUN) python -m pytest -q tests/chart/test_readme.py

protos: setup ## Generates services/atelier/v1 from protos/
	$(RUN) buf lint protos
	$(RUN) python protos/generate.py

bench: setup ## Measures against the peers in one run, writes docs/benchmarks.md (PEERS=DIR: diffusers' examples)
	$(RUN) PYTHONPATH=tests python -m bench --peers "$(PEERS)"

images: setup ## Builds the container images with buildah, podman or docker (BASE, TORCH=cpu, TENSORRT=1, ONLY=control)
	$(RUN) python images/build.py $(if $(ONLY),--only $(ONLY))

chart: setup ## Writes the chart's README from its values, tests the chart, and packages it into dist/
	$(RUN) python charts/generate_readme.py
	$(RUN) python -m pytest -q tests/chart
	mkdir -p dist
	$$(PYTHONPATH=tests $(BIN)/python -c "from chart import helm; print(helm.program(4))") package charts/atelier -d dist

lock: ## Resolves pyproject.toml into constraints.txt, and parts of it for the images (needs uv)
	uv pip compile pyproject.toml --extra dev --generate-hashes --no-emit-index-url --no-emit-find-links --no-header --python-version 3.11 -U -o constraints.txt
	$(call PART,control,control,$(ASYNC))
	$(call PART,node,ml)
