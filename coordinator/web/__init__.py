"""HTTP: blob endpoint, metrics, health."""
