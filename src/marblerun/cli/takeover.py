"""``marblerun state takeover``: from a state directory of the reference to a running Coordinator, and back."""

from __future__ import annotations

import fcntl
import hashlib
import os
import shlex
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

import click

from marblerun.cli.connection import read_file
from marblerun.cli.output import emit, emit_json, for_terminal, format_option, note
from marblerun.cli.state_view import described, show
from marblerun.errors import Denied, Malformed, MarbleRunError, NotFound

if TYPE_CHECKING:
    from collections.abc import Sequence

    from cryptography.hazmat.primitives.asymmetric import rsa

    from marblerun.coordinator.commands.recover import Found, Gathering
    from marblerun.coordinator.state import State

MAX_FILE_BYTES: Final = 1024 * 1024
_FILE: Final = click.Path(dir_okay=False)
_ENDPOINT: Final = "HOST:4433"


@dataclass(frozen=True, slots=True)
class Step:
    """One thing to do, whether it is done (``None``: cannot be seen from here), and what to type."""

    text: str
    done: bool | None
    command: str = ""


@dataclass(frozen=True, slots=True)
class Inside:
    """What the secrets opened."""

    root_certificate: str
    """SHA-256 of the DER, hex."""
    manifest_fingerprint: str
    seal_mode: str
    recovery_keys: tuple[str, ...]
    needed: int
    """How many of the recovery keys have to sign."""
    signatures: bool
    """Whether they were made and are right; without the private keys nobody can know."""
    written_by_us: bool
    """Whether this implementation wrote the state last."""

    def document(self) -> dict[str, object]:
        """For JSON."""
        return {
            "rootCertificate": self.root_certificate,
            "manifestFingerprint": self.manifest_fingerprint,
            "sealMode": self.seal_mode,
            "recoveryKeys": list(self.recovery_keys),
            "needed": self.needed,
            "signaturesVerified": self.signatures,
            "writtenByReference": not self.written_by_us,
        }


@click.command("takeover")
@click.argument("directory", metavar="DIR", type=click.Path(file_okay=False))
@click.option(
    "--secret",
    "secrets",
    metavar="FILE",
    type=_FILE,
    multiple=True,
    help="Recovery data, or one secret of it, to try on the state here and now; may be repeated.",
)
@click.option(
    "--recovery-key",
    "keys",
    metavar="FILE",
    type=_FILE,
    multiple=True,
    help="A party's private key (RSA, PEM) that decrypts the secrets and signs them; may be repeated.",
)
@click.option("--back", is_flag=True, help="The way back to the reference.")
@format_option(short=True)
def takeover(directory: str, secrets: tuple[str, ...], keys: tuple[str, ...], back: bool, output_format: str) -> None:
    """Guide through taking over a deployment from the state that a Coordinator of the reference wrote.

    Shows what can be known from outside, and every step with its command. With the recovery secrets it verifies,
    without any Coordinator and without a network, that they open the state, and shows what is inside: compare root
    certificate and manifest with what you know. Nothing is written and nothing is sent; no secret is shown.

    \b
    Example:
      marblerun state takeover marblerun-coordinator-data
      marblerun state takeover marblerun-coordinator-data --secret recovery.json --recovery-key key.pem
      marblerun state takeover marblerun-coordinator-data --back
    """
    from marblerun.coordinator.store.backup import read_generation

    if keys and not secrets:
        raise click.UsageError("a recovery key needs something to decrypt: give --secret FILE too")
    folder = Path(directory)
    sealed = read_generation(folder)
    outside = described(sealed)
    inside, problem = _try(sealed.data, secrets, keys) if secrets else (None, "")
    steps = (_steps_back if back else _steps)(folder, _is_used(folder), _opens_here(outside), inside)
    if output_format == "json":
        opened = inside.document() if inside is not None else None
        emit_json(
            {
                "directory": directory,
                **outside,
                "inside": opened,
                "problem": problem or None,
                "steps": [asdict(step) for step in steps],
            }
        )
    else:
        show(outside)
        _show_inside(inside)
        _show_steps(steps)
    if problem:
        raise Denied(problem)


def _is_used(folder: Path) -> bool:
    """Whether a Coordinator of this implementation holds the directory; the reference has no lock."""
    try:
        descriptor = os.open(folder / "lock", os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except OSError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    finally:
        os.close(descriptor)
    return False


def _opens_here(outside: dict[str, object]) -> bool:
    keys = outside["keys"]
    return isinstance(keys, list) and any(key["opens"] for key in keys)


# -- the secrets -------------------------------------------------------------------------------------------------


def _try(data: bytes, secrets: Sequence[str], keys: Sequence[str]) -> tuple[Inside | None, str]:
    """What the secrets open, or why they do not; raises what is wrong with the files."""
    from marblerun.client.recovery import sign_recovery_secret
    from marblerun.coordinator.commands.recover import begin, give

    gathering = begin(data)
    problem = ""
    for secret, key in _plain_secrets(secrets, keys):
        try:
            progress = give(gathering, secret, sign_recovery_secret(key, secret) if key is not None else b"")
        except MarbleRunError as error:
            return None, str(error)
        if progress.found is not None:
            return _look_inside(progress.gathering, progress.found, signed=bool(keys))
        gathering, problem = progress.gathering, progress.message
    if gathering.expected is not None:
        return None, f"each of these secrets is one of this state, but they are too few to open it: {problem}"
    return None, f"the secrets do not open the state: {problem}"


def _plain_secrets(secrets: Sequence[str], keys: Sequence[str]) -> list[tuple[bytes, rsa.RSAPrivateKey | None]]:
    """Every plain secret in the files once, with the key that decrypted it."""
    from marblerun.client.recovery import load_recovery_key, plain_secret, recovery_secret

    loaded = [load_recovery_key(read_file(Path(key), MAX_FILE_BYTES)) for key in keys]
    found: dict[bytes, rsa.RSAPrivateKey | None] = {}
    for path in secrets:
        raw = read_file(Path(path), MAX_FILE_BYTES)
        plain = plain_secret(raw)
        if plain is not None and len(loaded) > 1:
            raise Malformed("is decrypted already, and nobody knows whose it is; give the encrypted one", where=path)
        if not loaded and plain is None:
            raise Malformed("is encrypted; give the --recovery-key that it was made for", where=path)
        before = len(found)
        for key in loaded:
            with suppress(Malformed):
                found.setdefault(recovery_secret(raw, key), key)
        if not loaded and plain is not None:
            found.setdefault(plain, None)
        if len(found) == before:
            raise Malformed("holds no secret for these recovery keys that was not given before", where=path)
    return list(found.items())


def _look_inside(gathering: Gathering, found: Found, *, signed: bool) -> tuple[Inside | None, str]:
    """What a Coordinator would find after recovery; with signatures all that it would verify is verified."""
    from marblerun.coordinator.commands.recover import recovered_state
    from marblerun.coordinator.store.entries import decode_state
    from marblerun.coordinator.store.lineage import SEQUENCE
    from marblerun.secrets.box import open_sealed_data

    try:
        entries = open_sealed_data(found.key, gathering.sealed_data)
        state = recovered_state(gathering, found) if signed else decode_state(entries)
        return _inside(state, signed=signed, written_by_us=SEQUENCE in entries), ""
    except MarbleRunError as error:
        return None, f"the secrets open the state, but a recovery would fail: {error}"


def _inside(state: State, *, signed: bool, written_by_us: bool) -> Inside:
    from marblerun.manifest.parse import parse_manifest

    deployment = state.deployment
    if deployment is None:
        raise NotFound("there is no manifest inside")
    manifest = parse_manifest(deployment.manifest)
    holders = tuple(sorted(manifest.recovery_keys))
    return Inside(
        root_certificate=hashlib.sha256(state.authority.root_der).hexdigest(),
        manifest_fingerprint=hashlib.sha256(deployment.manifest).hexdigest(),
        seal_mode=deployment.config.seal_mode or "ProductKey",
        recovery_keys=holders,
        needed=manifest.config.recovery_threshold or len(holders),
        signatures=signed,
        written_by_us=written_by_us,
    )


# -- the way -----------------------------------------------------------------------------------------------------


def _steps(folder: Path, used: bool, opens: bool, inside: Inside | None) -> tuple[Step, ...]:
    name = shlex.quote(str(folder))
    taken = used or (inside is not None and inside.written_by_us)
    fingerprint = inside.manifest_fingerprint if inside is not None else "manifest.json"
    return (
        Step("Stop the Coordinator of the reference: two on one state destroy it", True if taken else None),
        Step("Keep a copy", None, f"marblerun state backup {name} before-takeover.tar"),
        Step(
            "Verify that the recovery secrets open the state, and compare root certificate and manifest",
            inside is not None,
            f"marblerun state takeover {name} --secret recovery.json --recovery-key key.pem",
        ),
        Step("Start a Coordinator on the state", used, f"marblerun coordinator --seal-dir {name}"),
        Step(
            "Its key opens the state: no recovery is needed"
            if opens
            else "Recover it: each holder with their own key, until no more secrets are needed",
            # What was recovered once, and is stopped, may need it again where it is started.
            True if opens or (used and inside is not None and inside.written_by_us) else None,
            "" if opens else f"marblerun recover recovery.json {_ENDPOINT} -k key.pem --manifest manifest.json",
        ),
        Step("Verify the result", None, f"marblerun manifest verify {fingerprint} {_ENDPOINT}"),
        Step("Find out whether the next recovery would succeed", None, _rehearse()),
    )


def _steps_back(folder: Path, used: bool, opens: bool, inside: Inside | None) -> tuple[Step, ...]:
    name = shlex.quote(str(folder))
    return (
        Step("Find out whether the holders' secrets would recover, while it is still running", None, _rehearse()),
        Step("Stop this Coordinator", not used, "kill -TERM PID" if used else ""),
        Step("Keep a copy", None, f"marblerun state backup {name} before-handing-back.tar"),
        Step(
            "Verify that the recovery secrets open the state",
            inside is not None,
            f"marblerun state takeover {name} --secret recovery.json --recovery-key key.pem --back",
        ),
        Step(
            "Give sealed_data to the reference as its state; sealed_key only if the key lies in it in the clear"
            if opens
            else "Give sealed_data to the reference as its state; sealed_key opens for this implementation only",
            None,
            f"cp {name}/sealed_data {name + '/sealed_key ' if opens else ''}SEAL_DIR_OF_THE_REFERENCE/",
        ),
        Step("Start the reference's Coordinator, and recover it with its own 'marblerun recover'", None),
    )


def _rehearse() -> str:
    return f"marblerun recover recovery.json {_ENDPOINT} -k key.pem --manifest manifest.json --rehearse"


def _show_inside(inside: Inside | None) -> None:
    if inside is None:
        return
    emit("\nthe secrets open it; inside:")
    emit(f"  root certificate  SHA-256 {inside.root_certificate}")
    emit(f"  manifest          SHA-256 {inside.manifest_fingerprint}")
    emit(f"  seal mode         {inside.seal_mode}")
    holders = for_terminal(", ".join(inside.recovery_keys)) or "none: nobody can recover it"
    emit(f"  recovery keys     {holders}; {inside.needed} needed")
    emit(f"  written by        {'this implementation' if inside.written_by_us else 'the reference'}")
    if not inside.signatures:
        note("A recovery also needs signatures by the recovery keys; give --recovery-key to verify that too")


def _show_steps(steps: Sequence[Step]) -> None:
    emit("")
    for number, step in enumerate(steps, start=1):
        mark = {True: "done", False: "to do", None: "?"}[step.done]
        emit(f"{number}. [{mark}] {step.text}")
        if step.command:
            emit(f"     {step.command}")
