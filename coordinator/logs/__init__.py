"""Logs: durable frames, live tails, sealing and compaction."""
