"""The demo's services: shop, orders and ledger, one program in three roles.

Each is an ordinary HTTPS server that was started by ``marblerun run``; its identity, its peers' root and its key come
from the environment that the Coordinator filled. TLS ends in this process. Run as a module, never by hand.
"""

from __future__ import annotations

import http.client
import json
import os
import ssl
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Final

from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from marblerun.marble import Identity
from marblerun.marble.keyfile import load_key_pair

# Who calls whom: role to the role it asks, and the roles that may call it (None: customers, anybody).
ROLES: Final[dict[str, tuple[str | None, frozenset[str] | None]]] = {
    "shop": ("orders", None),
    "orders": ("ledger", frozenset({"shop"})),
    "ledger": (None, frozenset({"orders"})),
}
LEDGER_FILE: Final = Path("ledger.sealed")
_NONCE_BYTES: Final = 12


class Ledger:
    """Entries in one file, encrypted under this instance's own key."""

    def __init__(self, key: bytes, path: Path) -> None:
        self._box = AESGCM(key)
        self._path = path

    def read(self) -> list[str]:
        """All entries."""
        if not self._path.exists():
            return []
        data = self._path.read_bytes()
        entries: list[str] = json.loads(self._box.decrypt(data[:_NONCE_BYTES], data[_NONCE_BYTES:], None))
        return entries

    def append(self, entry: str) -> int:
        """Add an entry; returns how many there are."""
        entries = [*self.read(), entry]
        nonce = os.urandom(_NONCE_BYTES)
        self._path.write_bytes(nonce + self._box.encrypt(nonce, json.dumps(entries).encode(), None))
        return len(entries)


class Application:
    """What a role does with an order."""

    def __init__(self, role: str, environment: dict[str, str]) -> None:
        self.role = role
        self.identity = Identity.from_environment()
        self._next, self.callers = ROLES[role]
        self._peers = json.loads(environment["DEMO_PEERS"])
        self._ledger: Ledger | None = None
        if role == "ledger":
            self._ledger = Ledger(bytes.fromhex(environment["LEDGER_KEY"]), LEDGER_FILE)

    def order(self, item: str) -> dict[str, Any]:
        """Handle an order and say whose hands it went through."""
        me = f"{self.role} ({str(self.identity.peer.uuid)[:8]})"
        if self._ledger is not None:
            return {"way": [me], "entries": self._ledger.append(item)}
        assert self._next is not None
        answer = self._ask(self._next, item)
        return {**answer, "way": [me, *answer["way"]]}

    def entries(self) -> list[str]:
        """What the ledger holds."""
        return self._ledger.read() if self._ledger else []

    def _ask(self, role: str, item: str) -> dict[str, Any]:
        host, _, port = str(self._peers[role]).rpartition(":")
        context = self.identity.client_context(marble_types={role})
        connection = http.client.HTTPSConnection(host, int(port), context=context, timeout=10)
        try:
            connection.request("POST", "/order", body=item.encode())
            answer: dict[str, Any] = json.loads(connection.getresponse().read(65536))
            return answer
        finally:
            connection.close()


def handler_for(application: Application) -> type[BaseHTTPRequestHandler]:
    """The request handler of an application."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            size = min(int(self.headers.get("Content-Length", "0")), 4096)
            item = self.rfile.read(size).decode("utf-8", "replace")
            try:
                self._answer(200, application.order(item))
            except (OSError, ssl.SSLError, ValueError) as error:
                self._answer(502, {"error": f"{application.role}: {type(error).__name__}"})

        def do_GET(self) -> None:
            self._answer(200, {"entries": application.entries()})

        def _answer(self, status: int, content: dict[str, Any]) -> None:
            body = json.dumps(content).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: Any) -> None:
            print(f"{application.role}: {format % args}", file=sys.stderr, flush=True)

    return Handler


class TlsServer(ThreadingHTTPServer):
    """An HTTPS server whose handshakes run in the connection's own thread, so that nobody can block the others."""

    daemon_threads = True

    def __init__(self, port: int, handler: type[BaseHTTPRequestHandler], context: ssl.SSLContext) -> None:
        super().__init__(("127.0.0.1", port), handler)
        self._context = context

    def finish_request(self, request: Any, client_address: Any) -> None:
        """Do the handshake, then answer."""
        request.settimeout(10)
        with self._context.wrap_socket(request, server_side=True) as connection:
            super().finish_request(connection, client_address)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """One line: a refused peer is no reason for a traceback."""
        print(f"connection refused: {sys.exc_info()[1]}", file=sys.stderr, flush=True)


def server_context(application: Application) -> ssl.SSLContext:
    """Mutual TLS with the roles that may call; the shop serves customers, who have no certificate."""
    if application.callers is not None:
        return application.identity.server_context(marble_types=application.callers)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    load_key_pair(context, application.identity.chain, application.identity.private_key)
    return context


def main() -> None:
    """Serve the role in ``argv[1]`` on port ``DEMO_PORT`` of the loopback interface."""
    role = sys.argv[1]
    application = Application(role, dict(os.environ))
    server = TlsServer(int(os.environ["DEMO_PORT"]), handler_for(application), server_context(application))
    print(f"{role}: serving on port {server.server_port}", file=sys.stderr, flush=True)
    server.serve_forever()


if __name__ == "__main__":
    main()
