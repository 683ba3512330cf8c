"""What an update of the manifest means: who may join, read and change what, that could not before.

``meaning(old, new)`` gives statements, each with what it is about, whether somebody gains or loses something, and the
place in the manifest. Nothing is compared line by line: two manifests that admit, give and allow the same have no
statements between them.
"""

from marblerun.manifest.meaning.meaning import Kind, Meaning, meaning
from marblerun.manifest.meaning.statement import Effect, Statement, Topic

__all__ = ["Effect", "Kind", "Meaning", "Statement", "Topic", "meaning"]
