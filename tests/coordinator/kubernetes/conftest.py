"""One API server for all tests of this folder; each has a namespace of its own."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from tests.forge.kubernetes import Kube, Pod, kube_apiserver


@pytest.fixture(scope="session")
def kube(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Kube]:
    with kube_apiserver(tmp_path_factory.mktemp("kube")) as running:
        yield running


@pytest.fixture
def pod(kube: Kube) -> Pod:
    return kube.namespace()
