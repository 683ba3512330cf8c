"""Secrets: kinds, generation, derivation, recovery shares, the sealed box. Pure; randomness comes in as entropy."""
