"""Attested key release from AWS KMS, and sealed models."""
