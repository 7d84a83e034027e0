"""The enclave image in a virtual machine on this machine, with a real ``/dev/nsm`` and vsock."""
