"""Migrations: forward only, each safe under a rolling upgrade, SQL written by hand."""
