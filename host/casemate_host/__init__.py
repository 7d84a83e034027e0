"""The untrusted host: gRPC front, opaque relay, egress proxy."""
