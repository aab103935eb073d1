"""Checks the endpoint: file type and permissions of the socket, certificates, advice for errors.

The program that answers at the endpoint decides what this host forwards. Write access to the
engine's socket is equivalent to root.
"""

from __future__ import annotations

import os
import re
import shlex
import ssl
import stat
from collections.abc import Iterator
from pathlib import Path

from ipv6natd.system.process import in_image

UNIX = "unix://"
CA, CERT, KEY = "ca.pem", "cert.pem", "key.pem"
"""The file names in `cert_path`, as for the docker command."""
_START_HINT = "set endpoint to the socket of the engine, or start it: systemctl start docker"
_VOLUME_HINT = "start this container with --volume /var/run/docker.sock:/var/run/docker.sock:ro"
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
        "the certificate of its authority lacks an extension that newer Python versions require; "
        "create it again: openssl req -x509 -addext keyUsage=critical,keyCertSign ...",
    ),
    (
        "doesn't match|[Mm]ismatch, certificate|is not valid for",
        "its certificate is for another name: use the name of the certificate in endpoint, or "
        "create a certificate for this name (subjectAltName)",
    ),
    (
        "certificate has expired",
        "its certificate has expired: install a new one on the engine's host",
    ),
    (
        "not yet valid",
        "its certificate is not valid yet: compare the clocks of both hosts (timedatectl)",
    ),
    (
        "(?i)alert (handshake failure|certificate required|unknown ca|bad certificate|certificate "
        "expired|access denied|unsupported certificate)",
        "it rejects the client certificate: put a cert.pem and a key.pem that its authority signed "
        "into {folder}",
    ),
    (
        "(?i)wrong.version.number|record.layer.failure|has been closed .EOF|unexpected.eof|EOF occ",
        "it does not speak TLS: use its TLS port in endpoint (usually 2376)",
    ),
    (
        "HTTP request to an HTTPS server|RemoteDisconnected|reset by peer",
        "it does not answer plain HTTP: if it requires TLS, {verify}",
    ),
)
"""Errors of Python, OpenSSL or the engine -> cause and advice. The first match counts."""


def explain_error(endpoint: str, cert_path: str, message: str) -> str:
    """The cause of an error of the library, and advice; "" for an unknown `message`."""
    if "Read timed out" in message:
        return "it accepts connections and does not answer; see: systemctl status docker"
    if endpoint.startswith(UNIX):
        if "Permission denied" in message:
            return "this user cannot write to the socket: add the user to the group docker"
        if "No such file" in message and in_image():
            return f"this container does not have the socket of the engine: {_VOLUME_HINT}"
        if "No such file" in message or "refused" in message:
            return f"no engine listens there: {_START_HINT}"
        return ""
    authority = (
        f"its certificate is not signed by {cert_path}/ca.pem: put the certificate of the "
        "authority that signed it there"
        if cert_path
        else "this host does not trust the authority of its certificate: put the certificate of "
        "the authority as ca.pem into a directory, and set cert_path to the directory"
    )
    folder = cert_path or "a directory, and set cert_path to it"
    for pattern, text in _TLS_ERRORS:
        if re.search(pattern, message):
            return text.format(authority=authority, folder=folder, verify=_verify_hint(endpoint))
    return ""


def _verify_hint(endpoint: str) -> str:
    """The settings with which the engine must present a certificate."""
    plain = endpoint.startswith("http://")
    scheme = "use tcp:// in endpoint, and " if plain else ""
    return f"{scheme}set tls_verify = true and cert_path"


def certificate_error(cert_path: str, *, verify: bool) -> str:
    """The fault of the certificates in a directory, with advice; "" if they can be used.

    The two files of a client may be missing. With `verify`, ca.pem must exist: without it the
    library would trust the public authorities.
    """
    if not cert_path:
        # An empty path must not mean the working directory.
        return f"cert_path is not set: set it to the directory with {CA}"
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
    remedy = f"put both files of a client into {cert.parent}, or none"
    existing = [path.name for path in (cert, key) if path.exists()]
    if not existing:
        return ""
    if len(existing) == 1:
        missing = KEY if CERT in existing else CERT
        return f"there is no {missing} beside {existing[0]} in {cert.parent}: {remedy}"
    try:
        # Without a password argument, OpenSSL would ask for one on the terminal.
        context.load_cert_chain(cert, key, password="")
    except ssl.SSLError:
        return f"{cert} and {key} are not a certificate and its key without a password: {remedy}"
    except OSError as error:
        return f"{cert} or {key} cannot be read: {error.strerror}"
    return ""


def wrong_file_type(endpoint: str) -> str:
    """The fault if the endpoint is a file but not a socket, with advice; else ""."""
    if not endpoint.startswith(UNIX):
        return ""
    path = endpoint.removeprefix(UNIX)
    try:
        kind = stat.S_IFMT(Path(path).stat().st_mode)
    except OSError:
        return ""  # the error of the connect has more details
    if kind == stat.S_IFSOCK:
        return ""
    return (
        f"{path} is {_FILE_TYPES[kind]} and not a socket: remove it, then: systemctl restart docker"
    )


def security_warnings(endpoint: str, *, verified: bool) -> Iterator[str]:
    """Who else could impersonate the engine or become root by it; each text ends with advice."""
    if not endpoint.startswith(UNIX):
        if not verified:
            yield (
                f"{endpoint} is not verified, so another host on the network path can impersonate "
                f"the engine: {_verify_hint(endpoint)}"
            )
        return
    path = Path(endpoint.removeprefix(UNIX))
    try:
        resolved = path.resolve(strict=True)
        yield from _socket_warnings(resolved)
        owners = {0, os.geteuid(), resolved.stat().st_uid}
        for folder in dict.fromkeys((*path.parents, *resolved.parents)):
            direct = folder in (path.parent, resolved.parent)
            yield from _directory_warnings(folder, owners, direct=direct)
    except OSError:
        return  # the socket does not exist any more; the connect reports that


def _socket_warnings(path: Path) -> Iterator[str]:
    status = path.stat()
    # The endpoint may be a link into a directory of a user, who chooses the names there.
    quoted = shlex.quote(str(path))
    if status.st_mode & stat.S_IWOTH:
        yield (f"every user of this host can write to {path} and become root: chmod o-rwx {quoted}")
    if status.st_uid not in (0, os.geteuid()):
        yield (
            f"{path} belongs to user {status.st_uid}, who can decide what this host forwards; if "
            f"this is not intended: chown root {quoted}"
        )


def _directory_warnings(folder: Path, owners: set[int], *, direct: bool) -> Iterator[str]:
    """Who can replace the socket, or a folder on the way to it. `direct`: the socket's folder."""
    status = folder.stat()
    sticky = status.st_mode & stat.S_ISVTX
    if status.st_mode & stat.S_IWOTH and (direct or not sticky):
        yield (
            f"every user of this host can create a socket in {folder}: let the engine listen in "
            "/run, and set endpoint to that socket"
        )
    elif status.st_uid not in owners:
        yield (
            f"{folder} belongs to user {status.st_uid}, who can replace the engine's socket; if "
            f"this is not intended: chown root {shlex.quote(str(folder))}"
        )
