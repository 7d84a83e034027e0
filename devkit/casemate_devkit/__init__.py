"""What only developers and tests run: simulated security module, KMS double, launcher."""
