"""The manifest: frozen model, parsing as Go does it, checks, templates, and what an update changes. Pure."""
