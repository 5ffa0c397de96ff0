"""The daemon that plans and dispatches."""
