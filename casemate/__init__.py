"""Confidential inference: what every party shares, and the client."""
