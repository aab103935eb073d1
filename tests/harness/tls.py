"""A TLS proxy for the engine's socket, and valid and invalid certificates."""

from __future__ import annotations

import socket
import ssl
import threading
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Self

from tests.harness.namespace import Namespace
from tests.harness.process import run, undisturbed

ALWAYS = ("20200101000000Z", "20990101000000Z")
PAST = ("20200101000000Z", "20200102000000Z")
FUTURE = ("20980101000000Z", "20990101000000Z")

CONFIG = """
[ca]
default_ca = lab
[lab]
dir = .
database = $dir/index
new_certs_dir = $dir
serial = $dir/serial
default_md = sha256
unique_subject = no
policy = any
x509_extensions = none
[any]
commonName = supplied
[none]
"""


class Authority:
    """An authority that signs certificates; `ca` is its own certificate."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.ca = folder / "ca.pem"
        folder.mkdir(mode=0o700)
        (folder / "index").touch()
        (folder / "serial").write_text("01\n")
        (folder / "config").write_text(CONFIG)
        new = ("openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2")
        # Python of Debian unstable rejects an authority without key usage.
        usage = ("-addext", "keyUsage=critical,keyCertSign")
        files = ("-keyout", f"{folder}/ca-key.pem", "-out", str(self.ca))
        run(*new, *usage, *files, "-subj", "/CN=lab")

    def signed(
        self, name: str, *, host: str = "IP:127.0.0.1", valid: tuple[str, str] = ALWAYS
    ) -> Path:
        """A folder with cert.pem, key.pem and ca.pem for a server or a client."""
        made = self.folder / name
        made.mkdir(mode=0o700)
        (made / "ext").write_text(
            f"subjectAltName={host}\nextendedKeyUsage=serverAuth,clientAuth\n"
            "subjectKeyIdentifier=hash\nauthorityKeyIdentifier=keyid\n"
        )
        run(
            *("openssl", "req", "-newkey", "rsa:2048", "-nodes", "-subj", f"/CN={name}"),
            *("-keyout", f"{made}/key.pem", "-out", f"{made}/request"),
        )
        run(
            *("openssl", "ca", "-batch", "-config", "config", "-notext", "-extfile", f"{made}/ext"),
            *("-cert", str(self.ca), "-keyfile", f"{self.folder}/ca-key.pem"),
            *("-startdate", valid[0], "-enddate", valid[1]),
            *("-in", f"{made}/request", "-out", f"{made}/cert.pem"),
            cwd=self.folder,
        )
        (made / "ca.pem").write_bytes(self.ca.read_bytes())
        return made


class TlsFront:
    """Listens on 127.0.0.1:2376 of a namespace and passes data to the engine's socket.

    `show` is the folder of its certificate, None for a connection without TLS. `trust` is the
    authority of accepted clients, None for all clients.
    """

    def __init__(self, ns: Namespace, engine: Path, show: Path | None, trust: Path | None) -> None:
        self.endpoint = "tcp://127.0.0.1:2376"
        self.show = show
        self.trust = trust
        self._engine = engine
        self._open: set[socket.socket] = set()
        self._listener = ns.within(lambda: socket.create_server(("127.0.0.1", 2376)))

    def __enter__(self) -> Self:
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        with undisturbed():
            _end(self._listener)
            self.cut()

    def change(self, show: Path | None, trust: Path | None) -> None:
        """Use another certificate from now on, and end all connections."""
        self.show, self.trust = show, trust
        self.cut()

    def cut(self) -> None:
        """End every connection."""
        for sock in list(self._open):
            _end(sock)

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        self._open.add(client)
        with suppress(OSError):
            client = self._wrapped(client)
            self._open.add(client)
            engine = socket.socket(socket.AF_UNIX)
            self._open.add(engine)
            engine.connect(str(self._engine))
            answers = threading.Thread(target=_pass, args=(engine, client), daemon=True)
            answers.start()
            _pass(client, engine)
            return
        _end(client)

    def _wrapped(self, client: socket.socket) -> socket.socket:
        if self.show is None:
            return client
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(self.show / "cert.pem", self.show / "key.pem")
        if self.trust is not None:
            context.verify_mode = ssl.CERT_REQUIRED
            context.load_verify_locations(self.trust)
        return context.wrap_socket(client, server_side=True)


def _pass(source: socket.socket, target: socket.socket) -> None:
    with suppress(OSError):
        while data := source.recv(65536):
            target.sendall(data)
    for sock in (source, target):
        _end(sock)


def _end(sock: socket.socket) -> None:
    """Shut down and close a socket. Only a shutdown wakes a thread that waits for it."""
    with suppress(OSError):
        sock.shutdown(socket.SHUT_RDWR)
    sock.close()
