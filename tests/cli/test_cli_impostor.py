"""GHSA-j3rq-4xjw-xg63: every command against impostors. Nothing but the request for a quote may ever reach one.

Which commands there are comes from the command tree: a new one that takes an endpoint fails here until it has a row.
"""

from __future__ import annotations

import json
from base64 import b64encode
from collections.abc import Callable, Iterator

import click
import pytest
from tests.cli.session import Session, everything_sent, recovery_public_key
from tests.client.coordinators import (
    FakeCoordinator,
    coordinator,
    failure,
    manifest_routes,
    mint,
    quote_maker,
    serving,
    success,
)
from tests.client.fixtures import PRODUCT

from marblerun.attestation.simulated import SimulatedPlatform
from marblerun.cli.main import NounGroup, cli

QUOTE = "GET /api/v2/quote"
USER = ("--cert", "c.pem", "--key", "k.pem")

COMMANDS: dict[str, tuple[str, ...]] = {
    "manifest set": ("manifest", "set", "m.json", "@", "--recoverydata", "rec.json"),
    "manifest get": ("manifest", "get", "@", "-u", "--keep-cert"),
    "manifest verify": ("manifest", "verify", "m.json", "@"),
    "manifest log": ("manifest", "log", "@"),
    "manifest update apply": ("manifest", "update", "apply", "new.json", "@", *USER, "-r", "rec.json"),
    "manifest update acknowledge": ("manifest", "update", "acknowledge", "new.json", "@", *USER),
    "manifest update cancel": ("manifest", "update", "cancel", "@", *USER),
    "manifest update get": ("manifest", "update", "get", "@"),
    "secret get": ("secret", "get", "s", "@", *USER),
    "secret set": ("secret", "set", "secrets.json", "@", *USER),
    "certificate root": ("certificate", "root", "@"),
    "certificate intermediate": ("certificate", "intermediate", "@"),
    "certificate chain": ("certificate", "chain", "@"),
    "status": ("status", "@"),
    "state verify": ("state", "verify", "@"),
    "recover": ("recover", "secret.bin", "@", "-k", "recovery.pem", "--manifest", "m.json"),
    "recover-with-signature send": ("recover-with-signature", "secret.bin", "@", "-s", "secret.bin"),
    "recover-with-signature public-key": ("recover-with-signature", "public-key", "@", "-o", "coordinator.pem"),
}
WITH_REHEARSALS = COMMANDS | {
    f"{name}, rehearsed": (*COMMANDS[name], "--rehearse") for name in COMMANDS if name.startswith("recover")
}


def _endpoint_commands(command: click.Command, name: str = "") -> Iterator[str]:
    """The names of all commands that take an endpoint."""
    if isinstance(command, NounGroup):
        there = {noun: entry for noun, entry in command.nouns.items() if entry.is_there}
        for noun, entry in there.items():
            yield from _endpoint_commands(entry.load(), f"{name} {noun}".strip())
    if isinstance(command, click.Group):
        for verb, child in command.commands.items():
            yield from _endpoint_commands(child, f"{name} {verb}".strip())
    elif any(param.name == "endpoint" for param in command.params):
        yield name


def test_every_command_that_takes_an_endpoint_has_a_row() -> None:
    assert sorted(_endpoint_commands(cli)) == sorted(COMMANDS)


def _stranger(platform: SimulatedPlatform) -> FakeCoordinator:
    """A fresh certificate and no evidence: the simplest man in the middle."""
    fake = coordinator(platform)
    fake.evidence = lambda _: b""
    return fake


def _garbage(platform: SimulatedPlatform) -> FakeCoordinator:
    fake = coordinator(platform)
    fake.evidence = lambda _: b"\x03\x00\x02\x00" + bytes(1000)
    return fake


def _relay(platform: SimulatedPlatform) -> FakeCoordinator:
    """Shows a genuine quote of the genuine enclave, which is bound to another root."""
    fake = coordinator(platform)
    fake.evidence = quote_maker(platform, mint("MarbleRun Coordinator").der, product_id=PRODUCT)
    return fake


def _man_in_the_middle(platform: SimulatedPlatform) -> FakeCoordinator:
    """Passes genuine certificates and quotes through, and terminates TLS with a certificate of his own."""
    fake = coordinator(platform, product_id=PRODUCT)
    fake.tls = mint("MarbleRun Coordinator")
    return fake


def _marble(platform: SimulatedPlatform) -> FakeCoordinator:
    """A Marble of the deployment poses as its Coordinator: its certificate chains to the genuine root."""
    fake = coordinator(platform, product_id=PRODUCT)
    fake.tls = mint("marble", fake.intermediate, ca=False)
    return fake


def _other_enclave(platform: SimulatedPlatform) -> FakeCoordinator:
    return coordinator(platform, product_id=PRODUCT, signer_id=b"\x66" * 32)


def _debug_enclave(platform: SimulatedPlatform) -> FakeCoordinator:
    return coordinator(platform, product_id=PRODUCT, debug=True)


def _replay(platform: SimulatedPlatform) -> FakeCoordinator:
    fake = coordinator(platform, product_id=PRODUCT)
    fake.ignores_nonce = True
    return fake


def _old(platform: SimulatedPlatform) -> FakeCoordinator:
    """Pretends to know only the first API version, and has no evidence there either."""
    fake = _stranger(platform)
    fake.routes = {"GET /quote": fake.quote_route_v1}
    return fake


def _failing(platform: SimulatedPlatform) -> FakeCoordinator:
    fake = coordinator(platform)
    fake.routes[QUOTE] = lambda _: failure(500, "no quote today")
    return fake


IMPOSTORS: dict[str, Callable[[SimulatedPlatform], FakeCoordinator]] = {
    "stranger": _stranger,
    "garbage": _garbage,
    "relay": _relay,
    "man in the middle": _man_in_the_middle,
    "marble": _marble,
    "other enclave": _other_enclave,
    "debug enclave": _debug_enclave,
    "replay": _replay,
    "old": _old,
    "failing": _failing,
}
CODES = {"other enclave": 4, "debug enclave": 4, "failing": 1, "garbage": 7}
"""Denied by policy, an API error, not a quote; everything else is untrusted, 3."""
SAME_ROOT = {"man in the middle", "marble"}
"""Those who show the genuine root; only their TLS gives them away."""


def _greedy(fake: FakeCoordinator) -> None:
    """Has a pleasant answer to everything, so that a command that does not verify would go through."""
    fake.routes |= manifest_routes(b'{"Packages": {}}\n')
    for path in ("manifest", "update", "update-manifest", "update-cancel", "secrets", "recover"):
        fake.routes.setdefault(f"POST /api/v2/{path}", lambda _: success({}))
    for path in ("update", "update-manifest", "secrets"):
        fake.routes.setdefault(f"GET /api/v2/{path}", lambda _: success({}))
    public = {"algorithm": "RSA", "ephemeralPublicKey": b64encode(recovery_public_key()).decode()}
    fake.routes["GET /api/v2/recover/public-key"] = lambda _: success(public)
    fake.routes["GET /api/v2/recover/rehearse/public-key"] = lambda _: success(public)
    text = json.dumps({"statement": 1, "sequence": 1, "rootCertificate": fake.root.pem.decode()})
    fake.routes["GET /api/v2/statement"] = lambda _: success({"statement": text})
    fake.routes["GET /api/v2/status"] = lambda _: success({"code": 1, "message": "fine"})


def _run(session: Session, fake: FakeCoordinator, name: str, *options: str) -> tuple[int, set[str]]:
    with serving(fake):
        arguments = [fake.endpoint if text == "@" else text for text in WITH_REHEARSALS[name]]
        result = session.run(*arguments, *options)
    sent = everything_sent(fake)
    assert b"canary" not in sent
    assert b"Packages" not in sent
    assert fake.certificates_seen in ([], [None], [None, None])
    return result.exit_code, set(fake.sent_requests)


# Every command against those who differ in what gives them away; the other lies, against one command of each kind.
MATRIX = [
    (name, who)
    for name in WITH_REHEARSALS
    for who in IMPOSTORS
    if who in ("stranger", "relay", "man in the middle", "marble", "other enclave")
    or name in ("manifest set", "certificate chain", "secret set")
]


@pytest.mark.parametrize(("name", "who"), MATRIX)
def test_no_impostor_gets_more_than_the_quote_request(
    session: Session, platform: SimulatedPlatform, name: str, who: str
) -> None:
    """With a policy, and the genuine root in the cache where the command looks there."""
    fake = IMPOSTORS[who](platform)
    _greedy(fake)
    if name.startswith("certificate"):
        # These two only fetch: whoever passes the genuine chain through has done no harm, and there it ends.
        session.cache(fake.root if who in SAME_ROOT else mint("MarbleRun Coordinator"))
    code, sent = _run(session, fake, name, "--era-config", "era.json")
    assert sent <= {QUOTE, "GET /quote"}
    if not (name.startswith("certificate") and who in SAME_ROOT):
        assert code == CODES.get(who, 3)
        assert session.cached is None or name.startswith("certificate")
    assert not (session.folder / "rec.json").exists()


PINNED = [
    name for name in COMMANDS if name.split()[0] in ("secret", "status", "state") or "log" in name or "update" in name
]


@pytest.mark.parametrize("who", ["stranger", "man in the middle", "marble"])
@pytest.mark.parametrize("name", PINNED)
def test_a_pinned_command_sends_an_impostor_nothing_at_all(
    session: Session, platform: SimulatedPlatform, name: str, who: str
) -> None:
    fake = IMPOSTORS[who](platform)
    _greedy(fake)
    session.cache(fake.root if who in SAME_ROOT else mint("MarbleRun Coordinator"))
    code, sent = _run(session, fake, name)
    assert (code, sent) == (3, set())


@pytest.mark.parametrize("name", COMMANDS)
def test_without_policy_and_cache_nothing_is_even_connected(
    session: Session, platform: SimulatedPlatform, name: str
) -> None:
    fake = coordinator(platform, product_id=PRODUCT)
    _greedy(fake)
    code, sent = _run(session, fake, name)
    assert (code, sent, fake.certificates_seen) == (9, set(), [])


@pytest.mark.parametrize("name", COMMANDS)
def test_insecure_goes_through_with_a_warning(session: Session, platform: SimulatedPlatform, name: str) -> None:
    """The counter-check: the very same impostor would be obeyed, and the user is told so."""
    fake = _stranger(platform)
    _greedy(fake)
    with serving(fake):
        arguments = [fake.endpoint if text == "@" else text for text in WITH_REHEARSALS[name]]
        result = session.run("--insecure", *arguments)
    assert "Warning: --insecure" in result.stderr
    assert result.exit_code == 0, result.output
