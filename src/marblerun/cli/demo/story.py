"""The demo's story: what happens, in order, and what must be seen at each step."""

from __future__ import annotations

import http.client
import json
import os
import shutil
import signal
import ssl
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import click

from marblerun.cli.demo.manifest import (
    COORDINATOR_PRODUCT,
    COORDINATOR_SIGNER,
    COORDINATOR_VERSION,
    PRODUCTS,
    SECURITY_VERSION,
    coordinator_policy,
    demo_manifest,
    enclave,
)
from marblerun.cli.demo.replay import replay_quote
from marblerun.cli.demo.world import Finished, Running, World, clean_environment, free_port
from marblerun.errors import MarbleRunError

POLICY_FILE: Final = "coordinator-policy.json"
MANIFEST_FILE: Final = "manifest.json"


class StepFailed(Exception):
    """A step did not show what it should."""


@dataclass(slots=True)
class Story:
    """Tells and checks."""

    world: World
    mesh: str
    client: str
    ports: dict[str, int]
    services: dict[str, Running] = field(default_factory=dict)
    coordinator: Running | None = None
    step: int = 0
    refused: int = 0

    # -- telling -------------------------------------------------------------------------------------------------

    def chapter(self, title: str) -> None:
        """A new step."""
        self.step += 1
        click.secho(f"\n{self.step}. {title}", bold=True)

    def say(self, text: str) -> None:
        """A line below the step."""
        for line in text.splitlines():
            click.echo(f"   {line}")

    def check(self, holds: bool, what: str, otherwise: str = "") -> None:
        """A fact that must hold."""
        click.echo(f"   {click.style('ok', fg='green') if holds else click.style('FAILED', fg='red')}  {what}")
        if not holds:
            raise StepFailed(f"{what}\n{otherwise}".strip())

    def marblerun(self, *arguments: str) -> Finished:
        """Show and run a command; it must succeed."""
        self.say(click.style(f"$ marblerun {' '.join(arguments)}", fg="cyan"))
        finished = self.world.run(arguments)
        if finished.code != 0:
            raise StepFailed(f"marblerun {' '.join(arguments)} ended with code {finished.code}:\n{finished.output}")
        return finished

    # -- the steps -----------------------------------------------------------------------------------------------

    def platform(self) -> None:
        """A machine with a (simulated) TEE and its collateral service."""
        self.chapter("A machine with a trusted execution environment (simulated) and its collateral service (PCCS)")
        self.marblerun("simulator", "init", "platform")
        port = free_port()
        pccs = self.world.start("pccs", ["simulator", "serve", "platform", "--listen", f"127.0.0.1:{port}"])
        self.world.wait_for_port(port, pccs)
        self.world.environment["EDG_SIMULATED_PLATFORM"] = str(self.world.directory / "platform")
        self.world.environment["EDG_PCCS_URL"] = f"http://127.0.0.1:{port}"
        self.check(True, f"collateral is served on port {port}")

    def start_coordinator(self) -> None:
        """The Coordinator as a process of its own."""
        environment = {
            **enclave(COORDINATOR_PRODUCT, signer=COORDINATOR_SIGNER, version=COORDINATOR_VERSION),
            "EDG_COORDINATOR_MESH_ADDR": self.mesh,
            "EDG_COORDINATOR_CLIENT_ADDR": self.client,
            "EDG_COORDINATOR_SEAL_DIR": str(self.world.directory / "coordinator-state"),
        }
        self.coordinator = self.world.start("coordinator", ["coordinator"], environment=environment)
        self.world.wait_for_port(int(self.client.rpartition(":")[2]), self.coordinator)
        self.world.wait_for_port(int(self.mesh.rpartition(":")[2]), self.coordinator)

    def open_coordinator(self) -> None:
        """Start it and give it a manifest, after verifying it."""
        self.chapter("A Coordinator starts, alone and without a manifest")
        self.start_coordinator()
        self.check(True, f"it serves Marbles on {self.mesh} and people on {self.client}")
        self.chapter("The owner verifies the Coordinator's evidence, then gives it the manifest")
        self.write_json(POLICY_FILE, coordinator_policy())
        self.write_json(MANIFEST_FILE, demo_manifest())
        self.marblerun("manifest", "set", MANIFEST_FILE, self.client, "--era-config", POLICY_FILE)
        status = self.marblerun("status", self.client)
        self.check("3: " in status.output, "the Coordinator accepts Marbles", status.output)

    def verify(self) -> None:
        """A customer checks one statement instead of every enclave."""
        self.chapter("A customer verifies one statement, and with it the whole application")
        done = self.marblerun("manifest", "verify", MANIFEST_FILE, self.client, "--era-config", POLICY_FILE)
        self.check("OK" in done.output, "the Coordinator is genuine and enforces exactly this manifest", done.output)

    def start_services(self) -> None:
        """Three services get their identity."""
        self.chapter("Three services start; each shows evidence before it gets certificate, key and secrets")
        for role in ("ledger", "orders", "shop"):
            self.start_service(role, self.world.directory / role)
            self.check(True, f"{role} was admitted and serves on port {self.ports[role]}")

    def start_service(self, role: str, home: Path) -> None:
        """One service under ``marblerun run``."""
        home.mkdir(exist_ok=True)
        environment = {
            **enclave(PRODUCTS[role]),
            "EDG_MARBLE_TYPE": role,
            "EDG_MARBLE_COORDINATOR_ADDR": self.mesh,
            "EDG_MARBLE_DNS_NAMES": f"localhost,{role}",
            "DEMO_PORT": str(self.ports[role]),
            "DEMO_PEERS": json.dumps({name: f"localhost:{port}" for name, port in self.ports.items()}),
        }
        program = ["run", "--", sys.executable, "-m", "marblerun.cli.demo.service", role]
        self.services[role] = self.world.start(f"{role}-{home.name}", program, cwd=home, environment=environment)
        self.world.wait_for_port(self.ports[role], self.services[role])

    def request(self, item: str) -> dict[str, Any]:
        """A customer's order to the shop, over TLS that ends in the shop's process."""
        chain = (self.world.directory / "chain.pem").read_text()
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.load_verify_locations(cadata=chain[chain.rindex("-----BEGIN") :])
        connection = http.client.HTTPSConnection("localhost", self.ports["shop"], context=context, timeout=15)
        try:
            connection.request("POST", "/order", body=item.encode())
            answer: dict[str, Any] = json.loads(connection.getresponse().read(65536))
        finally:
            connection.close()
        return answer

    def one_request(self) -> None:
        """A request through all services."""
        self.chapter("A customer's request flows through all of them, over mutual TLS that ends in each process")
        self.marblerun("certificate", "chain", self.client, "-o", "chain.pem", "--era-config", POLICY_FILE)
        answer = self.request("a book")
        self.say(" -> ".join(answer.get("way", [])))
        names = [hop.split(" ")[0] for hop in answer.get("way", [])]
        self.check(names == ["shop", "orders", "ledger"], "shop, orders and ledger each handled it", str(answer))
        self.check(not self.is_open_to_strangers(), "the ledger does not talk to a stranger without certificate")

    def is_open_to_strangers(self) -> bool:
        """Whether the ledger answers somebody who is no Marble."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        connection = http.client.HTTPSConnection("localhost", self.ports["ledger"], context=context, timeout=5)
        try:
            connection.request("GET", "/")
            connection.getresponse()
        except (OSError, http.client.HTTPException):
            return False
        finally:
            connection.close()
        return True

    def impostors(self) -> None:
        """Four who must stay outside, each told why."""
        self.chapter("Impostors ask for the ledger's identity and are refused, each with the reason")
        product = PRODUCTS["ledger"]
        self.impostor("another measurement", enclave(product, signer="ab" * 32), "SignerID")
        self.impostor("a debug enclave", enclave(product, debug=True), "Debug")
        self.impostor("an old version", enclave(product, version=SECURITY_VERSION - 1), "SecurityVersion")
        environment = {**self.world.environment, **enclave(product)}
        told = replay_quote(environment, self.mesh, "ledger")
        self.say(f"a genuine quote, replayed on another connection: {told}")
        self.check("report-data" in told, "refused", told)
        self.refused += 1

    def impostor(self, what: str, identity: dict[str, str], reason: str) -> None:
        """One impostor under ``marblerun run``."""
        home = self.world.directory / "impostor"
        home.mkdir(exist_ok=True)
        environment = {
            **identity,
            "EDG_MARBLE_TYPE": "ledger",
            "EDG_MARBLE_COORDINATOR_ADDR": self.mesh,
            "EDG_MARBLE_ACTIVATION_TIMEOUT": "20s",
        }
        finished = self.world.run(["run", "--", "env"], cwd=home, environment=environment)
        told = next((line for line in finished.output.splitlines() if "Error:" in line), finished.output)
        self.say(f"{what}: {told}")
        holds = finished.code != 0 and reason in told and "LEDGER_KEY" not in finished.output
        self.check(holds, "refused", finished.output)
        self.refused += 1

    def crash(self) -> None:
        """The Coordinator dies and comes back."""
        self.chapter("The Coordinator is killed (SIGKILL); the services do not notice; it comes back as the same")
        before = (self.world.directory / "chain.pem").read_bytes()
        assert self.coordinator is not None
        self.coordinator.kill()
        answer = self.request("a pen, while the Coordinator is dead")
        self.check(len(answer.get("way", [])) == 3, "a request still flows while the Coordinator is dead", str(answer))
        self.start_coordinator()
        status = self.marblerun("status", self.client)
        self.check("3: " in status.output, "after the restart it accepts Marbles, without anybody's help")
        self.marblerun("certificate", "chain", self.client, "-o", "chain-after.pem", "--era-config", POLICY_FILE)
        after = (self.world.directory / "chain-after.pem").read_bytes()
        self.check(before == after, "same root certificate, unsealed from disk")

    def move(self) -> None:
        """The ledger goes to another host."""
        self.chapter("The ledger moves: killed, its files gone, started elsewhere with the same UUID and its old data")
        old, new = self.world.directory / "ledger", self.world.directory / "ledger-on-another-host"
        self.services["ledger"].kill()
        new.mkdir()
        shutil.copy(old / "uuid", new / "uuid")
        shutil.copy(old / "ledger.sealed", new / "ledger.sealed")
        shutil.rmtree(old)
        self.ports["ledger"] = int(self.ports["ledger"])
        self.start_service("ledger", new)
        answer = self.request("a stamp, after the move")
        self.say(f"the ledger now holds {answer.get('entries')} entries")
        self.check(answer.get("entries") == 3, "same sealing key: it reads what it encrypted before", str(answer))

    def write_json(self, name: str, content: dict[str, Any]) -> None:
        """A file in the demo's directory."""
        (self.world.directory / name).write_text(json.dumps(content, indent=2) + "\n")

    def steps(self) -> tuple[Callable[[], None], ...]:
        """In order."""
        return (
            self.platform,
            self.open_coordinator,
            self.verify,
            self.start_services,
            self.one_request,
            self.impostors,
            self.crash,
            self.move,
        )


def run_demo(*, keep: bool, directory: Path | None) -> int:
    """Tell the story; returns the exit code."""
    began = time.monotonic()
    place = Path(tempfile.mkdtemp(prefix="marblerun-demo-")) if directory is None else directory.resolve()
    if directory is not None and place.exists() and any(place.iterdir()):
        raise click.UsageError(f"{place} is not empty; choose another --directory or remove it")
    place.mkdir(parents=True, exist_ok=True)
    (place / "config").mkdir()
    environment = {**clean_environment(os.environ), "XDG_CONFIG_HOME": str(place / "config")}
    world = World(place, environment)
    ports = {role: free_port() for role in PRODUCTS}
    story = Story(world, f"localhost:{free_port()}", f"localhost:{free_port()}", ports)
    failed = False
    try:
        for step in story.steps():
            step()
        summary(story, time.monotonic() - began)
        if keep:
            wait_for_the_user(story)
    except (StepFailed, MarbleRunError, OSError) as error:
        failed = True
        click.secho(f"\nThe demo failed in step {story.step}: {error}", fg="red", err=True)
    finally:
        world.stop_all()
        if directory is None and not failed:
            shutil.rmtree(place, ignore_errors=True)
        elif failed:
            click.echo(f"Logs are in {place}", err=True)
    return 1 if failed else 0


def summary(story: Story, seconds: float) -> None:
    """What was seen."""
    click.secho("\nSummary", bold=True)
    for line in (
        "one Coordinator, verified before anything was sent to it",
        "3 services admitted by their evidence, talking mutual TLS that ends in the process",
        f"{story.refused} impostors refused, each with the reason",
        "killed and restarted: same root certificate, services unaffected",
        "moved to another host: same sealing key, old data readable",
    ):
        click.echo(f"   {click.style('ok', fg='green')}  {line}")
    click.echo(f"   {story.step} steps in {seconds:.1f} s. The platform was simulated: this machine protected nothing.")


def wait_for_the_user(story: Story) -> None:
    """Leave everything running until Ctrl-C."""
    place = story.world.directory
    variables = " ".join(
        f"{name}={story.world.environment[name]}" for name in ("EDG_SIMULATED_PLATFORM", "EDG_PCCS_URL")
    )
    click.secho("\nEverything is running. Try, in another terminal:", bold=True)
    click.echo(f"  cd {place}")
    click.echo(f"  export {variables}")
    click.echo(f"  marblerun manifest verify {MANIFEST_FILE} {story.client} --era-config {POLICY_FILE}")
    click.echo(f"  marblerun manifest get {story.client} --era-config {POLICY_FILE}")
    click.echo(f"  curl --cacert chain.pem -d 'a lamp' https://localhost:{story.ports['shop']}/order")
    click.echo("  tail *.log")
    click.echo("Ctrl-C ends it.")
    try:
        signal.pause()
    except KeyboardInterrupt:
        click.echo("")
