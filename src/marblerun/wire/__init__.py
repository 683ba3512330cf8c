"""Bytes to values and back, with limits. Pure."""
