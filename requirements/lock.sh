#!/usr/bin/env bash
# Regenerates every lock beside this file. Run through `make lock`; needs uv.
# Pins already in the locks are kept; `UPGRADE=1 make lock` moves everything to the newest versions.
set -euo pipefail
cd "$(dirname "$0")/.."

compile() {
    local output=$1
    shift
    # --fork-strategy fewest: one version of each package for every supported Python, so that what is tested
    # on one is what runs on another. --emit-index-url and the like stay off: locks carry no addresses.
    uv pip compile --quiet --universal --python-version 3.11 --fork-strategy fewest \
        --generate-hashes --no-emit-index-url --no-emit-find-links --no-header ${UPGRADE:+--upgrade} \
        --no-emit-package casemate --no-emit-package casemate-kms --no-emit-package casemate-host \
        --output-file "requirements/${output}" "$@" >/dev/null
}

# dev.txt holds all that the others hold; they are constrained by it, so a package has one version everywhere.
compile dev.txt pyproject.toml kms_client/pyproject.toml enclave/pyproject.toml host/pyproject.toml \
    devkit/pyproject.toml --extra aws --extra top --extra otel requirements/dev.in
for lock in client.txt:pyproject.toml host.txt:host/pyproject.toml host-otel.txt:host/pyproject.toml enclave.txt:enclave/pyproject.toml \
    devkit.txt:devkit/pyproject.toml build.txt:requirements/build.in \
    train.txt:requirements/train.in fuzz.txt:requirements/fuzz.in protoc.txt:requirements/protoc.in; do
    constraint=(--constraint requirements/dev.txt)
    extra=()
    case ${lock} in
        client.txt:*) extra=(--extra aws --extra top) ;;
        host-otel.txt:*) extra=(--extra otel) ;;
        protoc.txt:*) constraint=(--no-deps) ;;
    esac
    compile "${lock%%:*}" "${lock#*:}" "${constraint[@]}" "${extra[@]}"
done

# The enclave with another build of onnxruntime, and all else as in its own lock. sympy is for tools that are not staged.
for accelerator in openvino cuda; do
    compile "enclave-${accelerator}.txt" "requirements/enclave-${accelerator}.in" --constraint requirements/enclave.txt \
        --no-emit-package sympy --no-emit-package mpmath
done

# The servers of `make bench-peers`, each for itself, for Linux and the Python that Triton's stub needs.
for peer in client triton kserve mlserver; do
    uv pip compile --quiet --python-version 3.11 --python-platform x86_64-manylinux_2_36 \
        --generate-hashes --no-emit-index-url --no-emit-find-links --no-header --no-annotate ${UPGRADE:+--upgrade} \
        --output-file "bench/peers/requirements/${peer}.txt" "bench/peers/requirements/${peer}.in" >/dev/null
done

# The enclave's lock is its bill of materials.
if grep -qiE '^(grpcio|boto3|click)' requirements/enclave*.txt; then
    echo "a lock of the enclave holds a package that must not run inside the enclave" >&2
    exit 1
fi
# No address and no path of the machine that made the locks.
if grep -nE '://|file:|--(index-url|extra-index-url|find-links)|(^|[ (])/' requirements/*.txt bench/peers/requirements/*.txt; then
    echo "a lock names an address or a path" >&2
    exit 1
fi
