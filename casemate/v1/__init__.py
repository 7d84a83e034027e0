"""The outer service: messages between a client and the untrusted host."""
