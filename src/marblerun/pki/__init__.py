"""Certificates: profiles, issuing, chain checks. Pure; nothing is signed outside this room."""
