"""Kubernetes, as far as Coordinators need it that share one state."""
