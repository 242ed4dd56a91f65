# Each target does all its own set-up: `make demo` and `make test` run on a fresh machine with only Python 3.11.
PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
THREADS := OMP_NUM_THREADS=1 OMP_WAIT_POLICY=PASSIVE
TEST_PROCESSES ?= 2

.PHONY: setup test faults load demo check generate format images images-cuda release-images locks kind-test bench bench-engine bench-memory bench-elastic bench-placement bench-serving bench-operator bench-autoscale bench-autoscale-live clean

setup: $(STAMP)

$(STAMP): pyproject.toml requirements.lock
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c requirements.lock -e '.[operator,worker,dev]'
	@touch $@

test: $(STAMP)
	$(THREADS) $(BIN)/python -m pytest -n $(TEST_PROCESSES)

# Kills every part in every phase of a reconfiguration, and rewrites the table of docs/reliability.md.
faults: $(STAMP)
	FLEXPERT_FAULTS=1 $(THREADS) $(BIN)/python -m pytest tests/faults

# A thousand streams at once for five minutes, while the pool grows and parts of it die; build/load.json.
load: $(STAMP)
	FLEXPERT_LOAD=300 $(THREADS) $(BIN)/python -m pytest -n0 -s tests/faults/test_faults_load.py

demo: $(STAMP)
	$(BIN)/python examples/demo/main.py

check: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	MYPYPATH=examples/demo $(BIN)/mypy examples/demo/*.py
	MYPYPATH=benchmarks $(BIN)/mypy benchmarks/*.py
	$(BIN)/mypy charts/readme.py
	$(BIN)/lint-imports
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/python -m flexpert_proto.generate --check
	$(BIN)/python -m flexpert_operator.api.generate --check
	$(BIN)/python charts/readme.py --check

generate: $(STAMP)
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/python -m flexpert_proto.generate
	$(BIN)/python -m flexpert_operator.api.generate
	$(BIN)/python charts/readme.py

format: $(STAMP)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# Container images. `make release-images` takes nothing that may be another tomorrow: the base by digest, Debian's packages by day.
REGISTRY ?= ghcr.io/flexpert
TAG ?= 0.1.0
PYTHON_IMAGE ?= docker.io/library/python:3.11-slim-bookworm
DEBIAN_SNAPSHOT ?=
OUTPUT ?= --load
BUILD = docker buildx build $(OUTPUT) --build-arg PYTHON_IMAGE=$(PYTHON_IMAGE) --build-arg DEBIAN_SNAPSHOT=$(DEBIAN_SNAPSHOT) \
	--build-arg VERSION=$(TAG) --build-arg REVISION=$(shell git rev-parse HEAD 2>/dev/null) \
	--build-arg SOURCE_DATE_EPOCH=$(shell git log -1 --format=%ct 2>/dev/null)

images:
	$(BUILD) --file operator/Dockerfile --tag $(REGISTRY)/operator:$(TAG) .
	$(BUILD) --file workers/Dockerfile --tag $(REGISTRY)/flexpert:$(TAG) .

images-cuda:
	$(BUILD) --file workers/Dockerfile --tag $(REGISTRY)/flexpert:$(TAG)-cuda --build-arg TORCH_INDEX= .

# To a registry, with an SBOM, and every file of the time of the commit. Needs BuildKit 0.13 or newer.
release-images: OUTPUT = --output type=registry,rewrite-timestamp=true --sbom=true --provenance=mode=max
release-images:
	@case "$(PYTHON_IMAGE)" in *@sha256:*) ;; *) echo "name the base by digest: PYTHON_IMAGE=...@sha256:..." >&2; exit 2;; esac
	@case "$(DEBIAN_SNAPSHOT)" in 20*T*Z) ;; *) echo "name a day of Debian's packages: DEBIAN_SNAPSHOT=20261101T000000Z" >&2; exit 2;; esac
	@test -z "$$(git status --porcelain)" || { echo "commit first: an image is of a commit" >&2; exit 2; }
	$(BUILD) --file operator/Dockerfile --tag $(REGISTRY)/operator:$(TAG) .
	$(BUILD) --file workers/Dockerfile --tag $(REGISTRY)/flexpert:$(TAG) .
	$(BUILD) --file workers/Dockerfile --tag $(REGISTRY)/flexpert:$(TAG)-cuda --build-arg TORCH_INDEX= .

# What images install, with the hashes of all its wheels and archives: after requirements.lock or pyproject.toml changed. Needs uv.
# The lists are the same for Arm. What only GPUs need has a file of its own; botocore wants an older python-dateutil than the rest.
LOCK = UV_CUSTOM_COMPILE_COMMAND="make locks" uv pip compile --quiet --python-version 3.11 --python-platform x86_64-manylinux_2_36 \
	--generate-hashes --no-annotate --default-index https://pypi.org/simple
locks:
	mkdir -p build
	$(LOCK) --constraints requirements.lock --extra operator pyproject.toml --output-file operator/requirements.lock
	grep -v '^python-dateutil==' requirements.lock > build/constraints.txt
	$(LOCK) --constraints build/constraints.txt --extra worker --extra tracing --extra stores --extra cuda pyproject.toml \
		--output-file build/workers.lock
	awk '/^[^ ]/ {gpu = /^(torch|triton|cuda-|cupy-|nvidia-)/} !gpu' build/workers.lock > workers/requirements.lock
	awk '/^[^ ]/ {gpu = /^(#|torch|triton|cuda-|cupy-|nvidia-)/} gpu' build/workers.lock > workers/requirements-cuda.lock
	echo hatchling | $(LOCK) --constraints requirements.lock - --output-file requirements-build.lock

# A cluster of three nodes with KubeRay: apply, stream, scale, lose a pod and a node, upgrade. Needs docker, kind, kubectl, helm.
kind-test: $(STAMP)
	FLEXPERT_KIND=1 $(BIN)/python -m pytest tests/e2e

bench: bench-engine bench-memory bench-elastic bench-placement bench-serving bench-operator bench-autoscale bench-autoscale-live

bench-engine: $(STAMP)
	$(BIN)/python benchmarks/bench_engine.py

bench-memory: $(STAMP)
	$(THREADS) $(BIN)/python benchmarks/bench_memory.py

bench-elastic: $(STAMP)
	$(THREADS) $(BIN)/python benchmarks/bench_elastic.py

bench-placement: $(STAMP)
	$(THREADS) $(BIN)/python benchmarks/bench_placement.py $(if $(TRACES),--traces $(TRACES))

bench-serving: $(STAMP)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c requirements.lock fastapi
	$(THREADS) $(BIN)/python benchmarks/bench_serving.py

bench-operator: $(STAMP)
	$(THREADS) $(BIN)/python benchmarks/bench_operator.py

bench-autoscale: $(STAMP)
	$(THREADS) $(BIN)/python benchmarks/bench_autoscale.py $(if $(TRACE),--trace $(TRACE))

# The simulator beside a live pool on the same requests; about ten minutes, and it wants the machine for itself.
bench-autoscale-live: $(STAMP)
	$(THREADS) $(BIN)/python benchmarks/autoscale_live.py

clean:
	rm -rf build .flexpert .mypy_cache .ruff_cache .pytest_cache .import_linter_cache
