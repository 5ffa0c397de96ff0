"""The pipeline language: load, check, expand. Pure: no I/O, no clock, no asyncio."""
