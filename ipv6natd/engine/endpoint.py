"""What stands at an endpoint: whether it can be an engine, who else may write to it, whether the
certificates for it can be used, and what helps when it does not answer.

Whoever answers there decides what this host forwards; an engine's own socket is as good as root.
"""

from __future__ import annotations

import os
import re
import shlex
import ssl
import stat
from collections.abc import Iterator
from pathlib import Path

UNIX = "unix://"
CA, CERT, KEY = "ca.pem", "cert.pem", "key.pem"
"""Names of certificates and key in `cert_path`, as the docker command has them."""
_NETWORK_SCHEMES = ("tcp://", "http://", "https://")
_START_HINT = "start the engine there, or name another with endpoint: systemctl start docker"
_FILE_TYPES = {
    stat.S_IFDIR: "a directory",
    stat.S_IFREG: "a file",
    stat.S_IFIFO: "a pipe",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}
_TLS_ERRORS = (
    (
        "unable to get local issuer|self.signed certificate|unable to verify the first",
        "{authority}",
    ),
    (
        "key usage extension|Missing \\w+ Key Identifier",
        "the certificate of its authority lacks what newer versions of Python ask for; make it "
        "again: openssl req -x509 -addext keyUsage=critical,keyCertSign ...",
    ),
    (
        "doesn't match|[Mm]ismatch, certificate|is not valid for",
        "its certificate is for another name: name the engine in endpoint as its certificate does, "
        "or have one made for this name (subjectAltName)",
    ),
    ("certificate has expired", "its certificate has expired: put a new one on the engine's host"),
    (
        "not yet valid",
        "its certificate is not valid yet: look at the clocks of both hosts (timedatectl)",
    ),
    (
        "(?i)alert (handshake failure|certificate required|unknown ca|bad certificate|certificate "
        "expired|access denied|unsupported certificate)",
        "it does not accept our certificate: put a cert.pem and a key.pem that its authority "
        "signed into {folder}",
    ),
    (
        "(?i)wrong.version.number|record.layer.failure|has been closed .EOF|unexpected.eof|EOF occ",
        "it does not speak TLS: name its port for TLS in endpoint (2376 as a rule)",
    ),
    (
        "HTTP request to an HTTPS server|RemoteDisconnected|reset by peer",
        "it answers no plain HTTP: if it wants TLS, {verify}",
    ),
)
"""What Python, OpenSSL or the engine say -> what that means and what helps. In this order."""


def explain_error(endpoint: str, cert_path: str, said: str) -> str:
    """What failed as a sentence that says what to do; "" where only the library's own words help.

    `said` are those words.
    """
    if "Read timed out" in said:
        return "it takes calls and does not answer: systemctl status docker says why"
    if endpoint.startswith(UNIX):
        if "Permission denied" in said:
            return "we may not write to it: make this user a member of group docker"
        if "No such file" in said or "refused" in said:
            return f"nobody listens there: {_START_HINT}"
        return ""
    authority = (
        f"its certificate is not signed by {cert_path}/ca.pem: put the certificate of the "
        "authority that signed it there"
        if cert_path
        else "this host knows nobody who signed its certificate: put the ca.pem of who did into a "
        "folder, and name that with cert_path"
    )
    folder = cert_path or "a folder, and name that with cert_path"
    for pattern, text in _TLS_ERRORS:
        if re.search(pattern, said):
            return text.format(authority=authority, folder=folder, verify=_verify_hint(endpoint))
    return ""


def _verify_hint(endpoint: str) -> str:
    """What to write so that the engine has to show a certificate."""
    plain = endpoint.startswith("http://")
    scheme = "write tcp:// in endpoint, and " if plain else ""
    return f"{scheme}set tls_verify = true and cert_path"


def certificate_error(cert_path: str, *, verify: bool) -> str:
    """What is wrong with the certificates in a directory, as a sentence; "" where nothing is.

    Those of a client may be missing, both of them, and ca.pem where nothing is verified: in its
    place the library would take the public authorities.
    """
    if not cert_path:
        # Not the directory that we happen to run in.
        return f"there is no cert_path: name there the directory with {CA}"
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    folder = Path(cert_path)
    if verify:
        remedy = f"put the certificate of the authority that signed the engine's there as {CA}"
        try:
            context.load_verify_locations(folder / CA)
        except FileNotFoundError:
            return f"there is no {CA} in {folder}: {remedy}"
        except ssl.SSLError:
            return f"there is no certificate in {folder / CA}: {remedy}"
        except OSError as error:
            return f"{folder / CA} cannot be read: {error.strerror}"
    return _client_certificate_error(context, folder / CERT, folder / KEY)


def _client_certificate_error(context: ssl.SSLContext, cert: Path, key: Path) -> str:
    remedy = f"put both of a client into {cert.parent}, or none"
    there = [path.name for path in (cert, key) if path.exists()]
    if not there:
        return ""
    if len(there) == 1:
        missing = KEY if CERT in there else CERT
        return f"there is no {missing} beside {there[0]} in {cert.parent}: {remedy}"
    try:
        # With a password that is none: OpenSSL would ask a terminal for one.
        context.load_cert_chain(cert, key, password="")
    except ssl.SSLError:
        return f"{cert} and {key} are no certificate and its key without a password: {remedy}"
    except OSError as error:
        return f"{cert} or {key} cannot be read: {error.strerror}"
    return ""


def wrong_file_type(endpoint: str) -> str:
    """What stands in the place of the engine's socket, as a sentence; "" where nothing does."""
    if not endpoint.startswith(UNIX):
        return ""
    path = endpoint.removeprefix(UNIX)
    try:
        kind = stat.S_IFMT(Path(path).stat().st_mode)
    except OSError:
        return ""  # the connect says it better
    if kind == stat.S_IFSOCK:
        return ""
    return (
        f"{path} is {_FILE_TYPES[kind]} and no socket: take it away, then: systemctl restart docker"
    )


def security_warnings(endpoint: str, *, verified: bool) -> Iterator[str]:
    """Who else could be the engine, or become root through it: sentences that say what to do."""
    if endpoint.startswith(_NETWORK_SCHEMES):
        if not verified:
            yield (
                f"{endpoint} is not checked, so that anybody on the way there can pose as the "
                f"engine: {_verify_hint(endpoint)}"
            )
        return
    path = Path(endpoint.removeprefix(UNIX))
    try:
        yield from _socket_warnings(path.resolve(strict=True))
        for folder in {path.parent, path.resolve(strict=True).parent}:
            yield from _directory_warnings(folder)
    except OSError:
        return  # it has gone; the connect says so


def _socket_warnings(path: Path) -> Iterator[str]:
    status = path.stat()
    # A link to it may lead into the folder of a user, who names what is there.
    quoted = shlex.quote(str(path))
    if status.st_mode & stat.S_IWOTH:
        yield (
            f"everybody on this host may write to {path}, and so become root: chmod o-rwx {quoted}"
        )
    if status.st_uid not in (0, os.geteuid()):
        yield (
            f"{path} belongs to user {status.st_uid}, who so decides what this host forwards; if "
            f"that is not meant: chown root {quoted}"
        )


def _directory_warnings(folder: Path) -> Iterator[str]:
    status = folder.stat()
    if status.st_mode & stat.S_IWOTH:
        yield (
            f"everybody on this host may put a socket of his own into {folder}: have the engine "
            "listen in /run, and name that with endpoint"
        )
