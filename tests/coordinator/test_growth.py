"""What grows with use has an end, and whoever may do little cannot use it up for those who may do more."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from tests.coordinator.manifests import encode
from tests.coordinator.people import office, person
from tests.coordinator.states import INPUTS, deployed

from marblerun.coordinator.commands.update_log import MAX_BY_PACKAGES, MAX_BY_SECRETS, logged
from marblerun.coordinator.commands.update_manifest import update_manifest
from marblerun.coordinator.commands.write_secrets import write_secrets
from marblerun.coordinator.state import State
from marblerun.coordinator.store.file import FileStore
from marblerun.errors import Denied, Unavailable
from marblerun.secrets.upload import SecretUpload
from marblerun.wire.limits import MAX_SEALED_STATE_BYTES

USERS = {"writer": ["writer"], "patcher": ["frontend"], "updater": ["updater"]}
PATCH = encode({"Packages": {"frontend": {"SecurityVersion": 2}}})


def with_log(size: int) -> State:
    return replace(deployed(encode(office(USERS))), update_log="x" * (size - 1) + "\n")


def upload(state: State) -> None:
    write_secrets(state, person("writer").der, {"userPlain": SecretUpload(key=b"value")}, INPUTS)


def patch(state: State) -> None:
    update_manifest(state, person("patcher").der, PATCH, INPUTS, {})


def test_uploads_stop_before_updates_of_packages_and_those_before_updates_of_the_manifest() -> None:
    upload(with_log(MAX_BY_SECRETS - 1000))
    full = with_log(MAX_BY_SECRETS)
    with pytest.raises(Denied, match="update log"):
        upload(full)
    patch(full)
    fuller = with_log(MAX_BY_PACKAGES)
    with pytest.raises(Denied, match="update log"):
        patch(fuller)
    new = encode(office(USERS, RotateRootSecret=True))
    assert update_manifest(fuller, person("updater").der, new, INPUTS, {}).state.update_log.endswith("\n")


def test_the_log_is_measured_in_bytes() -> None:
    state = replace(deployed(), update_log="\U0001f600" * 10)
    assert len(logged(state, "x", 41)) == 11
    with pytest.raises(Denied):
        logged(state, "xx", 41)


def test_a_state_that_could_not_be_read_again_is_never_written(tmp_path: Path) -> None:
    store = FileStore(tmp_path)
    store.save(b"state", b"key")
    with pytest.raises(Unavailable, match="larger"):
        store.save(bytes(MAX_SEALED_STATE_BYTES + 1), b"key")
    sealed = store.load()
    assert sealed is not None
    assert sealed.data == b"state"
    store.close()
