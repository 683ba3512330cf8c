"""``marblerun simulator``: make a simulated platform, take quotes from it, serve its collateral.

Imports are inside the functions: a co-process that asks for one quote should not wait for a web server's modules.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Final

import click

from marblerun.errors import NotFound

if TYPE_CHECKING:
    import ssl

    from marblerun.attestation.simulated import EnclaveIdentity, SimulatedPlatform
    from marblerun.attestation.simulated.pccs import Publisher

_MAX_LINE: Final = 1024
_DIRECTORY = click.Path(file_okay=False, path_type=Path)
_FILE = click.Path(dir_okay=False, path_type=Path)


@click.group("simulator")
def simulator() -> None:
    """A software TEE with a root of trust of its own: for development and tests, it protects nothing.

    \b
    Example:
      marblerun simulator init ./platform
      EDG_SIMULATED_PLATFORM=./platform marblerun coordinator
    """


@simulator.command("init")
@click.argument("directory", metavar="DIR", type=_DIRECTORY)
def init(directory: Path) -> None:
    """Make a new platform in DIR, which must not exist or be empty.

    DIR/root-ca.pem is what relying parties need in order to trust it; everything else in DIR is the machine itself.

    \b
    Example:
      marblerun simulator init ./platform
    """
    from datetime import UTC, datetime

    from marblerun.attestation.simulated import SimulatedPlatform

    platform = SimulatedPlatform.create(directory, at=datetime.now(UTC))
    click.echo(
        f"Simulated platform in {directory} (FMSPC {platform.fmspc.hex()}). It is not hardware: trust it by name only."
    )
    click.echo(f"Root certificate: {directory / 'root-ca.pem'}")


def _parse_digest(_context: click.Context, _parameter: click.Parameter, text: str | None) -> bytes | None:
    from marblerun.attestation.simulated.identity import parse_digest

    if text is None:
        return None
    try:
        return parse_digest(text)
    except ValueError as error:
        raise click.BadParameter(str(error)) from None


@simulator.command("quote")
@click.argument("directory", metavar="DIR", type=_DIRECTORY)
@click.option("--unique-id", metavar="HEX", callback=_parse_digest, help="MRENCLAVE, 64 hex digits.")
@click.option("--signer-id", metavar="HEX", callback=_parse_digest, help="MRSIGNER, 64 hex digits.")
@click.option(
    "--product-id", metavar="N", type=click.IntRange(0, 0xFFFF), default=1, show_default=True, help="ISVPRODID."
)
@click.option(
    "--security-version", metavar="N", type=click.IntRange(0, 0xFFFF), default=1, show_default=True, help="ISVSVN."
)
@click.option("--debug", is_flag=True, help="Quote as a debug enclave.")
def quote(
    directory: Path,
    unique_id: bytes | None,
    signer_id: bytes | None,
    product_id: int,
    security_version: int,
    debug: bool,
) -> None:
    """Quote report data from standard input: a line of 64 or 128 hex digits in, a quote in hex out.

    The quote has the 16-byte Open Enclave header, as EGo's and the Coordinator's have. Every line is answered at once,
    so another program can keep this running beside it and ask again.

    \b
    Example:
      sha256sum cert.der | cut -d' ' -f1 | marblerun simulator quote ./platform --product-id 3
    """
    from marblerun.attestation.simulated import EnclaveIdentity, SimulatedPlatform
    from marblerun.attestation.simulated.identity import DEFAULT_SIGNER_ID, DEFAULT_UNIQUE_ID

    platform = SimulatedPlatform.load(directory)
    identity = EnclaveIdentity(
        unique_id or DEFAULT_UNIQUE_ID, signer_id or DEFAULT_SIGNER_ID, product_id, security_version, debug
    )
    _answer_lines(platform, identity)


def _answer_lines(platform: SimulatedPlatform, identity: EnclaveIdentity) -> None:
    from marblerun.attestation.dcap.quote import add_oe_header

    lines, answers = sys.stdin.buffer, sys.stdout.buffer
    number = 0
    while line := lines.readline(_MAX_LINE):
        number += 1
        if text := line.strip():
            answer = add_oe_header(platform.quote_as(identity, _report_data(text, number)))
            answers.write(answer.hex().encode() + b"\n")
            answers.flush()


def _report_data(text: bytes, number: int) -> bytes:
    try:
        data = bytes.fromhex(text.decode("ascii"))
    except ValueError:
        data = b""
    if len(text) not in (64, 128) or len(data) * 2 != len(text):
        raise click.UsageError(f"line {number}: report data must be 64 or 128 hex digits")
    return data


def _parse_listen(_context: click.Context, _parameter: click.Parameter, text: str) -> tuple[str, int]:
    host, colon, port = text.rpartition(":")
    if not colon or not (port.isascii() and port.isdigit()) or int(port) > 0xFFFF:
        raise click.BadParameter("must be HOST:PORT, for example localhost:8081")
    return host.removeprefix("[").removesuffix("]") or "127.0.0.1", int(port)


@simulator.command("serve")
@click.argument("directory", metavar="DIR", type=_DIRECTORY)
@click.option(
    "--listen",
    metavar="ADDR",
    callback=_parse_listen,
    default="localhost:8081",
    show_default=True,
    help="HOST:PORT, port 0 for a free one.",
)
@click.option("--tls-cert", type=_FILE, help="Serve https with this PEM certificate chain.")
@click.option("--tls-key", type=_FILE, help="The certificate's PEM key.")
def serve(directory: Path, listen: tuple[str, int], tls_cert: Path | None, tls_key: Path | None) -> None:
    """Serve the collateral of the platform in DIR like a PCCS (API version 4), until SIGTERM.

    The first line of output is the URL. A directory of recorded collateral (nine-field JSON files) is served as it is.

    \b
    Example:
      marblerun simulator serve ./platform --listen localhost:8081
      EDG_PCCS_URL=http://localhost:8081 marblerun coordinator
    """
    from marblerun.attestation.simulated.pccs import CollateralServer

    if (tls_cert is None) != (tls_key is None):
        raise click.UsageError("--tls-cert and --tls-key belong together")
    if not directory.is_dir():
        raise NotFound(f"there is no directory {directory}")
    tls = _tls_context(tls_cert, tls_key) if tls_cert and tls_key else None
    try:
        server = CollateralServer(_publisher(directory), listen, tls=tls)
    except OSError as error:
        raise click.BadParameter(f"cannot listen there: {error.strerror}", param_hint="--listen") from None
    with server:
        click.echo(server.url)
        sys.stdout.flush()
        _wait_for_signal()


def _publisher(directory: Path) -> Publisher:
    from datetime import UTC, datetime

    from marblerun.attestation.simulated import SimulatedPlatform
    from marblerun.attestation.simulated.pccs import PlatformPublisher, RecordedPublisher
    from marblerun.attestation.simulated.platform import is_simulated_platform

    if is_simulated_platform(directory):
        return PlatformPublisher(SimulatedPlatform.load(directory), clock=lambda: datetime.now(UTC))
    return RecordedPublisher.load(directory, clock=lambda: datetime.now(UTC))


def _tls_context(certificate: Path, key: Path) -> ssl.SSLContext:
    import ssl

    for file in (certificate, key):
        if not file.exists():
            raise NotFound(f"there is no file {file}")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    try:
        context.load_cert_chain(certificate, key)
    except (ssl.SSLError, OSError) as error:
        raise click.UsageError(f"--tls-cert and --tls-key cannot be used: {error}") from None
    return context


def _wait_for_signal() -> None:
    import signal
    import threading

    stopped = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stopped.set())
    stopped.wait()
