"""Headrace: CI/CD on your own machines. The bare package is the client SDK: `headrace.client`."""
