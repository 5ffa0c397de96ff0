"""Mirror and checkout, artifacts, and the only way to read what a job wrote."""
