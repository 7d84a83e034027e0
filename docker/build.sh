#!/bin/sh
# Builds what the images are made of: `build.sh PYTHON OUTPUT`, in a checkout. PYTHON has build.txt and devkit.txt.
set -eu
umask 022
python=$1 output=$2
cd "$(dirname "$0")/.."
export PIP_DISABLE_PIP_VERSION_CHECK=1 PYTHONDONTWRITEBYTECODE=1
export PYTHONPATH=$PWD:$PWD/enclave:$PWD/kms_client:$PWD/host:$PWD/devkit

"$python" -m pip wheel --quiet --no-deps --no-build-isolation --no-index --wheel-dir "$output/wheels" \
    . ./kms_client ./enclave ./host ./devkit
"$python" -m casemate_devkit.stage --output "$output/enclave" ${ACCELERATOR:+--accelerator "$ACCELERATOR"}

rootfs() {
    image=$1 lock=$2
    shift 2
    for name in "$@"; do set -- "$@" "$(echo "$output/wheels/$name"-[0-9]*.whl)"; shift; done
    "$python" -m casemate_devkit.rootfs --output "$output/$image" --lock "requirements/$lock.txt" "$@"
}
rootfs host host casemate casemate_host
rootfs client client casemate
rootfs devkit devkit casemate casemate_kms casemate_enclave casemate_host casemate_devkit
mkdir "$output/devkit/examples"
cp -r examples/wdbc "$output/devkit/examples/"

# What named volumes begin as: COPY takes over the modes and sets the owners.
mkdir -p "$output/state/parties" "$output/state/nsm" "$output/state/kms"
mkdir -m 0700 "$output/state/parties/vendor" "$output/state/parties/clinic" "$output/state/parties/operator"
mkdir -m 0711 "$output/state/nsm/nitro"
mkdir -m 0770 "$output/state/kms/kms"

find "$output" -exec touch --no-dereference --date "@$SOURCE_DATE_EPOCH" {} +
