# Thin wrappers: each target runs the command a user would type. `make help` lists them.
PYTHON ?= python3.11
VENV   := .venv
TANDEM := $(VENV)/bin/tandem
OUTPUT ?= runs/quickstart
TEST_PROCESSES ?= 2
STAMP  := $(VENV)/.installed

.PHONY: help install run test test-flink lint bench clean

help:     ## List the targets
	@grep -E '^[a-z_-]+: .*##|^[a-z_-]+:  *##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*##/\t/' | expand -t 14

install: $(STAMP)  ## Create .venv and install the locked environment

# pip alone suffices; where uv is at hand it does the same from the same lock, faster.
$(STAMP): requirements.txt pyproject.toml
	$(PYTHON) -m venv $(VENV)
	@if $(VENV)/bin/python -m pip install --quiet --disable-pip-version-check uv 2>/dev/null; then \
		echo "Installing the locked environment (uv) ..."; \
		$(VENV)/bin/uv pip install --quiet --python $(VENV)/bin/python --no-deps -r requirements.txt && \
		$(VENV)/bin/uv pip install --quiet --python $(VENV)/bin/python --no-deps -e . ; \
	else \
		echo "Installing the locked environment (pip) ..."; \
		$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check --no-deps -r requirements.txt && \
		$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check --no-deps -e . ; \
	fi
	@touch $(STAMP)

run: install  ## Generate the sample marketplace, run the pipeline, ask the served model
	$(TANDEM) run quickstart --output $(OUTPUT)

# Two processes, files kept whole, in the order of their names: the long ones (distributed, e2e) come first.
test: install  ## Run the tests (distributed, serving and end-to-end ones included); TEST_PROCESSES=N for more cores
	$(VENV)/bin/python -m pytest --numprocesses=$(TEST_PROCESSES) --dist=loadscope --no-loadscope-reorder

test-flink: install  ## The data nodes on Apache Flink: same records as on the direct runner (Java 17, Maven Central)
	$(VENV)/bin/python tests/flink/job_servers.py
	TANDEM_TEST_ENGINE=flink $(VENV)/bin/python -m pytest tests/flink

lint: install  ## Format check, lint and types
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/ruff check .
	$(VENV)/bin/mypy

BENCHMARKS = "exact_scan.py" "serving.py overhead" "serving.py batching" "cold_start.py" "data_path.py compare"

bench: install  ## Run the benchmarks that need no data set (half an hour); all commands are in benchmarks/README.md
	@for run in $(BENCHMARKS); do echo "== $$run"; $(VENV)/bin/python benchmarks/$$run || echo "MISSED or failed: $$run"; done

clean:    ## Remove the environment, caches and runs
	rm -rf $(VENV) runs .pytest_cache .mypy_cache .ruff_cache *.egg-info
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
