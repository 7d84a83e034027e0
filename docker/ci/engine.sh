#!/usr/bin/env bash
# A container engine of its own on a Debian machine without one, for `make compose`: `engine.sh start DIR`, `engine.sh
# stop DIR`. It lies whole in DIR: data, sockets, the compose plugin. Needs root and apt. No image is pulled: the base of
# the images is made by debootstrap, and it brings the wheels that the locks name.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
root=$(cd "${here}/../.." && pwd)
python=${root}/.venv/bin/python

# What Debian 12 lacks, from Debian 13: `trixie DIR PACKAGE...` leaves the packages in DIR/apt. Compose, as Debian 12 has
# version 1 alone; and Prometheus of the same minor version as the one that compose.yaml names.
trixie() {
    local apt=${1}/apt mirror
    mkdir -p "${apt}/lists/partial" "${apt}/archives/partial"
    mirror=$(apt-get indextargets --format '$(SITE)' 'Created-By: Packages' | grep -m1 debian)
    echo "deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] ${mirror} trixie main" >"${apt}/sources.list"
    local -a options=(-qq -o "Dir::Etc::sourcelist=${apt}/sources.list" -o Dir::Etc::sourceparts=/dev/null
        -o "Dir::State::lists=${apt}/lists" -o "Dir::Cache::archives=${apt}/archives" -o Dir::Cache::pkgcache=
        -o Dir::Cache::srcpkgcache= -o APT::Sandbox::User=root)
    apt-get "${options[@]}" update
    (cd "${apt}" && apt-get "${options[@]}" download "${@:2}")
}

plugin() {
    mkdir -p "${1}/config/cli-plugins"
    dpkg-deb --fsys-tarfile "${1}"/apt/docker-compose_*.deb |
        tar -x -C "${1}/apt" --wildcards '*/cli-plugins/docker-compose'
    find "${1}/apt" -name docker-compose -type f -exec cp {} "${1}/config/cli-plugins/" \;
}

packages() {
    local -a missing=()
    command -v dockerd >/dev/null || missing+=(docker.io)
    command -v debootstrap >/dev/null || missing+=(debootstrap)
    command -v chromium >/dev/null || missing+=(chromium fonts-dejavu-core)  # looks at the dashboard
    apt-get -qq update
    [[ ${#missing[@]} -eq 0 ]] && return
    DEBIAN_FRONTEND=noninteractive apt-get -qq install --yes --no-install-recommends "${missing[@]}" >/dev/null
}

wheels() {
    local lock
    for lock in build devkit enclave host client; do
        "${python}" -m pip download -qq --disable-pip-version-check --no-deps --require-hashes \
            --only-binary :all: --python-version 3.11 --dest "${1}" --requirement "${root}/requirements/${lock}.txt"
    done
}

# Debian's Prometheus with the libraries it needs, for the profile `observe`; busybox, as in the public image.
prometheus() {
    mkdir -p "${1}/prometheus/bin"
    dpkg-deb --fsys-tarfile "${1}"/apt/prometheus_*.deb | tar -x -C "${1}/prometheus" ./usr/bin/prometheus
    dpkg-deb --fsys-tarfile "${1}"/apt/busybox-static_*.deb | tar -x -C "${1}/prometheus" --wildcards '*bin/busybox'
    find "${1}/prometheus" -name busybox -exec mv {} "${1}/prometheus/bin/wget" \;
    ldd "${1}/prometheus/usr/bin/prometheus" | grep -o '/[^ ]*' | xargs cp --dereference --parents \
        --target-directory "${1}/prometheus"
}

daemon() {
    # Networks and mounts of its own: nothing of it is seen outside, and nothing stays when it ends.
    unshare --mount --net sh -c "mount --make-rprivate / && ip link set lo up && exec dockerd \
        --host unix://${1}/docker.sock --data-root ${1}/data --exec-root ${1}/exec --pidfile ${1}/pid" \
        >"${1}/dockerd.log" 2>&1 &
    for _ in $(seq 300); do
        docker info >/dev/null 2>&1 && return
        sleep 0.1
    done
    tail -n 20 "${1}/dockerd.log" >&2
    return 1
}

start() {
    mkdir -p "${1}"
    packages
    trixie "${1}" docker-compose prometheus busybox-static &
    local trixie=$!
    mkdir -p "${1}/base"
    wheels "${1}/wheels" &
    local wheels=$!
    debootstrap --variant=minbase --include=python3,python3-venv bookworm "${1}/base" >"${1}/debootstrap.log" || {
        tail -n 20 "${1}/debootstrap.log" >&2
        return 1
    }
    rm -rf "${1}"/base/var/cache/apt/archives/*.deb "${1}"/base/var/lib/apt/lists/*
    wait "${wheels}"
    mv "${1}/wheels" "${1}/base/wheels"
    printf '[global]\nno-index = true\nfind-links = /wheels\n' >"${1}/base/etc/pip.conf"
    wait "${trixie}"
    plugin "${1}"
    prometheus "${1}"
    daemon "${1}"
    tar -C "${1}/prometheus" -c . |
        docker import --change 'ENTRYPOINT ["/usr/bin/prometheus"]' - casemate-prometheus:local >/dev/null
    tar -C "${1}/base" -c . | docker import - casemate-base:local >/dev/null
    rm -rf "${1}/base" "${1}/apt" "${1}/prometheus"
}

stop() {
    if [[ -s ${1}/pid ]]; then
        local pid
        pid=$(<"${1}/pid")
        docker ps --quiet --all | xargs --no-run-if-empty docker rm --force --volumes >/dev/null || true
        kill "${pid}"
        for _ in $(seq 300); do
            kill -0 "${pid}" 2>/dev/null || break
            sleep 0.1
        done
    fi
    rm -rf "${1}"
    find /sys/fs/cgroup -depth -type d -path '*/docker*' -exec rmdir {} + 2>/dev/null || true
}

export DOCKER_HOST=unix://${2}/docker.sock DOCKER_CONFIG=${2}/config
"$1" "$2"
