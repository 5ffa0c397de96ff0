"""The ways to hold a job, behind one small protocol."""
