"""A TCP port that stays the same while what is behind it goes away and comes back elsewhere."""

from __future__ import annotations

import contextlib
import socket
import threading


class Front:
    """Passes connections on to a port of this machine; closes them at once while there is none."""

    def __init__(self) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=128)
        self.port: int = self._listener.getsockname()[1]
        self.target: int | None = None
        """The port behind it."""
        self._open: set[socket.socket] = set()
        self._lock = threading.Lock()
        threading.Thread(target=self._accept, daemon=True).start()

    def cut(self) -> None:
        """Nothing is behind it any more; open connections break."""
        self.target = None
        with self._lock:
            for connection in self._open:
                with contextlib.suppress(OSError):
                    connection.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Break everything and give the port back."""
        self.cut()
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            target = self.target
            try:
                behind = socket.create_connection(("127.0.0.1", target or 0)) if target else None
            except OSError:
                behind = None
            if behind is None:
                connection.close()
                continue
            with self._lock:
                self._open |= {connection, behind}
            for source, sink in ((connection, behind), (behind, connection)):
                threading.Thread(target=self._pump, args=(source, sink), daemon=True).start()

    def _pump(self, source: socket.socket, sink: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                sink.sendall(data)
        with contextlib.suppress(OSError):
            sink.shutdown(socket.SHUT_RDWR)
        with self._lock:
            self._open.discard(source)
        source.close()
