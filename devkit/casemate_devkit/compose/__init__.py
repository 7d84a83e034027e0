"""What the compose stack runs beside enclave and host: the hypervisor's part, and the parties'."""
