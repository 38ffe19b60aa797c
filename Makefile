# clipflow. "make demo" and "make test" need nothing but Python 3.11: they install what they need into .venv first.
VENV ?= .venv
PHOTOS ?=
MODEL ?=
export VENV
# In two processes, file by file; then those that measure, one after the other.
define TESTS
$(VENV)/bin/python -m pytest -n 2 --dist loadfile -m 'not alone'
$(VENV)/bin/python -m pytest -m alone
endef

.PHONY: help setup setup-runtimes demo test long unit gpu memory chaos containers containers-short check config clean

help:  ## Show this help
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /  make \1	/' | expand -t 24

setup:  ## Install everything into .venv
	@scripts/setup

setup-runtimes:  ## Install the optional runtimes of the encoder too
	@scripts/setup runtimes

demo: setup  ## Start the service, index photographs (PHOTOS=folder for your own), search them, draw the results
	$(VENV)/bin/python scripts/demo.py $(if $(PHOTOS),"$(PHOTOS)")

test: setup-runtimes check  ## All tests
	$(TESTS)

long: setup-runtimes check  ## All tests in their long forms, with foreign servers and clients in their own environments
	CLIPFLOW_TEST_LONG=1 CLIPFLOW_TEST_KILLS=200 REQUESTS=10000 $(VENV)/bin/python -m pytest --timeout 0

unit: setup  ## The tests that start no service (under two minutes)
	$(VENV)/bin/python -m pytest tests/unit tests/congruence tests/architecture

gpu: setup  ## With an NVIDIA GPU and a torch for CUDA in .venv: the tests that need one, then its figures (MODEL=folder)
	$(VENV)/bin/python -m pytest --timeout 0 -rs tests/gpu
	$(VENV)/bin/python benchmarks/gpu.py $(if $(MODEL),--model "$(MODEL)")

memory: setup  ## Ten thousand requests through one service; "make test" sends fewer
	REQUESTS=10000 $(VENV)/bin/python -m pytest --timeout 0 tests/crash/test_memory.py

chaos: setup  ## Kill the index 200 times at random moments, and damage its files; "make test" kills it 24 times
	CLIPFLOW_TEST_KILLS=200 $(VENV)/bin/python -m pytest --timeout 0 tests/crash/test_index_killed.py

containers: setup  ## The images and the Kubernetes manifests in real containers; as root, with podman (ten minutes and more)
	CLIPFLOW_REQUIRE_CONTAINERS=1 $(VENV)/bin/python -m pytest --timeout 0 tests/containers

containers-short: setup  ## Of these the images, and what happens when an encoder, a shard or the gateway dies
	CLIPFLOW_REQUIRE_CONTAINERS=1 $(VENV)/bin/python -m pytest --timeout 0 tests/containers -k 'found or shard or killed'

check: setup  ## Format, lint and types
	@scripts/check

config: setup  ## Write docs/configuration.md from the settings classes
	$(VENV)/bin/python scripts/write_configuration.py

clean:  ## Remove what was made here (not the workspace)
	rm -rf $(VENV) out .cache .mypy_cache .pytest_cache .ruff_cache .hypothesis *.egg-info
