"""The pure core: what should happen. No I/O, no clock, no SQL."""
