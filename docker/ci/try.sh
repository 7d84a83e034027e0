#!/usr/bin/env bash
# `make compose`: builds the images and tries the whole stack, then leaves nothing. With an engine at hand it takes that
# and the public base image; without one, or with CASEMATE_ENGINE=own, it starts one (see engine.sh).
set -euo pipefail
cd "$(dirname "$0")/../.."
export DOCKER_BUILDKIT=1 COMPOSE_ANSI=never
inside=()

if [[ ${CASEMATE_ENGINE:-} == own ]] || ! docker compose version >/dev/null 2>&1 || ! docker info >/dev/null 2>&1; then
    engine=$(mktemp -d /tmp/casemate-engine-XXXXXX)
    trap 'docker/ci/engine.sh stop "${engine}"' EXIT
    echo "starting an engine of its own in ${engine}"
    docker/ci/engine.sh start "${engine}"
    export DOCKER_HOST=unix://${engine}/docker.sock DOCKER_CONFIG=${engine}/config CASEMATE_BASE=casemate-base:local
    export CASEMATE_PROMETHEUS_IMAGE=casemate-prometheus:local
    inside=(nsenter "--net=/proc/$(<"${engine}/pid")/ns/net")  # where the published port is
fi

echo "building the images (${SECONDS} s)"
docker compose --file docker/compose.yaml --profile client build --quiet
docker images --format '{{.Repository}} {{.Size}}' --filter 'label=org.opencontainers.image.licenses=Apache-2.0'
echo "trying the stack (${SECONDS} s)"
"${inside[@]}" .venv/bin/python -m pytest -p no:cacheprovider tests/compose "$@"
echo "make compose took ${SECONDS} s"
