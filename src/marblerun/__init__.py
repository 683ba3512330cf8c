"""MarbleRun: the service mesh for confidential computing."""

from marblerun.version import __version__

__all__ = ["__version__"]
