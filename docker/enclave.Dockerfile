# The enclave's image: the staged tree and nothing else. No base image, no shell, no package manager.
# Build it from the staged tree, which is the context, so that what is measured is what is packed:
#   make stage && docker build -f docker/enclave.Dockerfile -t casemate-enclave .stage/tree
FROM scratch
COPY . /
USER 65534:65534
# The canonical argument vector of the form `container` (SPEC 4.3; casemate/attestation/cmdline.py).
ENTRYPOINT ["/usr/bin/python3", "-I", "-S", "-B", "-X", "pycache_prefix=/nonexistent", "/app/boot.py", \
    "--listen", "unix:/run/casemate/enclave.sock", "--egress", "unix:/run/casemate/egress.sock", \
    "--nsm", "unix:/run/nsm/nsm.sock", "--form", "container"]
