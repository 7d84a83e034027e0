# Everything a contributor runs. Needs Python 3.11 to 3.13 with pip and venv, and make; `make lock` needs uv too.
# Where packages come from is pip's own configuration; nothing here names an index.

PYTHON ?= python3

# Images of containers often set it; then each process would compile all that it imports anew: the tests take twice as long.
unexport PYTHONDONTWRITEBYTECODE

VENV   := .venv
BIN    := $(VENV)/bin
# With ACCELERATOR=openvino or cuda: the enclave's tree with another build of onnxruntime (docs/guides/accelerators.md).
ACCELERATOR ?=
STAGE  := .stage/tree$(if $(ACCELERATOR),-$(ACCELERATOR))
STAMP  := $(VENV)/.installed
FUZZ   := .venv-fuzz

RUNS           ?= 1000000
WORKERS        ?= 3
SOAK_MINUTES   ?= 30
ROUNDS         ?= 5
SERVERS        ?= sealed sealed-grpc plain plain-front plain-framed bare triton kserve mlserver
FOREIGN        := $(filter triton kserve mlserver,$(SERVERS))
PEERS          := $(if $(FOREIGN),client) $(FOREIGN)
PEERS_PYTHON   ?= /usr/bin/python3.11
VERIFIER_TESTS := tests/unit/attestation tests/unit/test_cbor.py tests/unit/test_vectors.py \
    tests/property/test_documents.py tests/security/test_documents.py tests/security/test_certificates.py \
    tests/security/test_chain_cache.py tests/security/test_evidence_binding.py tests/security/test_eif.py

MANIFESTS := pyproject.toml kms_client/pyproject.toml enclave/pyproject.toml host/pyproject.toml devkit/pyproject.toml
LOCKS     := requirements/dev.txt requirements/protoc.txt

# What machines are made of, and the tests that run in them: the main path, a restart, a changed
# byte, two machines; with ALL=1 every integration test that starts an enclave. Each boot costs 10 to
# 30 s of a core.
QEMU := .qemu
MACHINES ?= 2
MACHINE_TESTS := tests/machine tests/integration$(if $(filter 1,$(ALL)),,/test_deployment.py) \
    tests/security/test_key_substitution.py::test_k2_h6_one_changed_byte_of_code_is_refused_by_kms_by_name_and_by_the_client

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help venv stage demo eif qemu accelerator units test check lint types drift coverage mutants fuzz bench bench-peers peers large soak compose wheels sbom rehearsal docs protos lock clean

help: ## List the targets
	@awk 'BEGIN {FS = ":.*## "} /^[a-z-]+:.*## / {printf "  make %-11s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

venv: $(STAMP) ## Build .venv from the hash-pinned locks, with the five distributions editable

# A lock with hashes cannot list editables: the locks come first, then the distributions without dependencies. Python
# compiles what is imported, a small part of it all, by itself.
$(STAMP): $(LOCKS) $(MANIFESTS)
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' 2>/dev/null || { \
	    echo "Casemate needs Python 3.11, 3.12 or 3.13, and '$(PYTHON)' is: $$($(PYTHON) --version 2>&1 || true)." >&2; \
	    echo "Name another with: make PYTHON=python3.12 $(MAKECMDGOALS)" >&2; exit 1; }
	@echo "building $(VENV) (a minute or two the first time)"
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install -qq --disable-pip-version-check --no-compile --require-hashes -r requirements/dev.txt
	@$(BIN)/python -m pip install -qq --disable-pip-version-check --no-compile --require-hashes --no-deps -r requirements/protoc.txt
	@$(BIN)/python -m pip install -qq --disable-pip-version-check --no-deps --no-build-isolation \
	    $(foreach manifest,$(MANIFESTS),-e ./$(dir $(manifest)))
	@touch $@

stage: venv ## Build the enclave's staged tree: the one artefact that is measured and run
	@$(BIN)/python -m casemate_devkit.stage --output $(STAGE) $(if $(ACCELERATOR),--accelerator $(ACCELERATOR))

demo: stage ## Walk through the whole service on this machine (KEEP=1 leaves it running)
	@$(BIN)/python -m casemate_devkit.demo $(if $(filter 1,$(KEEP)),--keep)

eif: stage $(QEMU)/tools/toolbox.json ## Build the enclave image for QEMU and print what it measures
	@$(BIN)/python -m casemate_devkit.eif --tree $(STAGE) --profile docker/eif/qemu.toml --output $(QEMU)/casemate.eif \
	    --kernel $(QEMU)/tools/kernel/boot/vmlinuz-* --drivers $(QEMU)/tools/kernel

$(QEMU)/tools/toolbox.json: devkit/casemate_devkit/vm/toolbox.py | venv
	@$(BIN)/python -m casemate_devkit.vm.toolbox $(QEMU)/tools

qemu: stage $(QEMU)/tools/toolbox.json ## Boot the enclave image in QEMU and run tests against it (ALL=1: all of tests/integration)
	@$(BIN)/python -m pytest --form vm $(if $(filter 1,$(ALL)),-n $(MACHINES) --dist loadfile) $(MACHINE_TESTS)

# Nothing is skipped: without the wheels, or for CUDA without a GPU and its driver, this fails and says what is missing.
accelerator: venv ## Run models on ACCELERATOR (openvino, or cuda on a machine with a GPU), sealed, and measure
	@$(BIN)/python -m casemate_devkit.stage --output .stage/tree-$(or $(ACCELERATOR),openvino) --accelerator $(or $(ACCELERATOR),openvino)
	@ACCELERATOR=$(or $(ACCELERATOR),openvino) $(BIN)/python -m pytest tests/accelerators
	@$(BIN)/python -m bench.accelerator --accelerator $(or $(ACCELERATOR),openvino) --rounds 1

units: stage $(if $(filter vm,$(FORM)),$(QEMU)/tools/toolbox.json) ## Run deploy/systemd under a systemd of its own (needs root; FORM=vm: its enclaves in QEMU)
	@$(BIN)/python -m pytest $(if $(FORM),--form $(FORM)) tests/systemd

test: stage ## Run every test, WORKERS files at a time (3: most of them wait for processes)
	@$(BIN)/python -m pytest -n $(WORKERS) --dist loadfile $(OPTIONS)

check: lint types drift ## Lint, format, import contracts, types, drift of generated files

lint: venv
	@$(BIN)/ruff check --quiet
	@$(BIN)/ruff format --check --quiet
	@report=$$($(BIN)/lint-imports --no-logo 2>&1) || { echo "$$report" >&2; exit 1; }

types: venv
	@$(BIN)/mypy --no-error-summary

drift: venv
	@$(BIN)/python protos/generate.py --check
	@$(BIN)/python docs/reference/generate.py --check
	@$(BIN)/python tests/vectors/generate.py --check
	@$(BIN)/python tests/vectors/generate_attestation.py --check

coverage: venv ## Every branch of casemate.attestation and casemate.cbor is tested, or it fails
	@$(BIN)/python -m coverage run -m pytest -q -p no:cacheprovider $(VERIFIER_TESTS)
	@$(BIN)/python -m coverage report

mutants: venv ## Disable each check in turn, in a copy: a named test must notice
	@$(BIN)/python -m tests.mutants

fuzz: $(FUZZ)/.installed ## Throw RUNS (1,000,000) damaged documents at the parsers
	@$(FUZZ)/bin/python -m tests.fuzz.documents --runs $(RUNS)

bench: stage ## Measure against the targets of docs/performance.md (JSON=1 for machines; BENCHES="hop flat": only these)
	@$(BIN)/python -m bench.all $(if $(filter 1,$(JSON)),--json) $(BENCHES)

wheels: venv ## Build the wheels into dist/: the same bytes wherever they are built
	@SOURCE_DATE_EPOCH=1580601600 $(BIN)/python -m pip wheel --quiet --disable-pip-version-check --no-deps --no-build-isolation \
	    --no-index --wheel-dir dist $(foreach manifest,$(MANIFESTS),./$(dir $(manifest)))
	@sha256sum dist/*.whl

sbom: stage ## Write bills of materials (CycloneDX) to dist/sbom
	@mkdir -p dist/sbom && cp $(STAGE)/app/sbom.cdx.json dist/sbom/enclave.cdx.json
	@for lock in host client devkit; do $(BIN)/python -m casemate_devkit.sbom --subject casemate-$$lock \
	    --lock requirements/$$lock.txt --output dist/sbom/$$lock.cdx.json || exit 1; done
	@ls dist/sbom

rehearsal: stage ## Rehearse a release with a throw-away key: two builders, log, clients (docs/releasing.md)
	@$(BIN)/python -m pytest -q -s -p no:cacheprovider tests/integration/test_release.py

compose: venv ## Build the images and try the whole compose stack (starts an engine if there is none)
	@docker/ci/try.sh

soak: stage ## Mixed load for SOAK_MINUTES (30): nothing may rise
	@SOAK_MINUTES=$(SOAK_MINUTES) $(BIN)/python -m bench.soak $(if $(filter 1,$(JSON)),--json)

# All on PEERS_PYTHON: one that was built without profile-guided optimisation, as pyenv builds them, is half as slow again.
bench-peers: $(foreach peer,$(PEERS),.bench/$(peer)/.installed) ## Measure beside other servers (ROUNDS=5; SERVERS="sealed triton"; OPTIONS=--keep; writes .bench/peers.json and plots)
	@$(MAKE) --no-print-directory VENV=.bench/casemate PYTHON=$(PEERS_PYTHON) peers

peers: stage
	@$(BIN)/python -m bench.peers --servers $(SERVERS) --rounds $(ROUNDS) --json .bench/peers.json --plots .bench/plots $(OPTIONS)

# Each server in an environment of its own, from its lock; Triton's stub is linked to Debian's Python 3.11.2.
.bench/%/.installed: bench/peers/requirements/%.txt
	@echo "building .bench/$* (minutes and gigabytes the first time)"
	@test -x .bench/$*/bin/python || $(PEERS_PYTHON) -m venv .bench/$*
	@.bench/$*/bin/python -m pip install -qq --disable-pip-version-check --require-hashes -r $<
	@touch $@

large: stage ## A tensor of 1 GiB through a stream: what each side holds beside it (needs 4 GiB of memory)
	@$(BIN)/python -m bench.large $(if $(filter 1,$(JSON)),--json)

# Apart from the other tools: instrumented, and for Linux alone.
$(FUZZ)/.installed: requirements/client.txt requirements/fuzz.txt
	@test -x $(FUZZ)/bin/python || $(PYTHON) -m venv $(FUZZ)
	@$(FUZZ)/bin/python -m pip install -qq --disable-pip-version-check --require-hashes \
	    -r requirements/client.txt -r requirements/fuzz.txt
	@touch $@

docs: venv ## Write the API reference from the docstrings
	@$(BIN)/python docs/reference/generate.py

protos: venv ## Regenerate the committed code from protos/
	@$(BIN)/python protos/generate.py

lock: ## Regenerate requirements/*.txt (UPGRADE=1 takes newer versions); needs uv
	@requirements/lock.sh

clean: ## Remove what the other targets made
	@rm -rf $(VENV) $(FUZZ) .fuzz .stage .bench $(QEMU) .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache build dist
	@find . -name __pycache__ -type d -not -path './.git/*' -prune -exec rm -rf {} +
