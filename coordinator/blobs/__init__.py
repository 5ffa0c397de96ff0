"""Blob stores: `file://` and `s3://`, and their signed URLs."""
