"""What runs inside the enclave: the trusted computing base."""
