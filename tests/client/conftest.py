"""Fixtures of the client's tests."""

from tests.client.fixtures import honest, other_platform, platform, trust

__all__ = ["honest", "other_platform", "platform", "trust"]
