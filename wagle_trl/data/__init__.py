"""Rows: loading, formats, pairing, provenance."""
