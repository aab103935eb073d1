"""A private system bus with the project's policy."""

from __future__ import annotations

import socket
import subprocess
import time
from collections.abc import Iterable
from pathlib import Path
from types import TracebackType
from typing import Self

from tests import ROOT
from tests.harness.process import LabError, end, run, spawn, tail, undisturbed

POLICY = ROOT / "dbus" / "org.ipv6natd1.conf"

# Debian's policy of a system bus: it forbids all calls except those of the bus itself.
CONFIG = """<!DOCTYPE busconfig PUBLIC "-//freedesktop//DTD D-Bus Bus Configuration 1.0//EN"
 "http://www.freedesktop.org/standards/dbus/1.0/busconfig.dtd">
<busconfig>
  <type>system</type>
  <listen>unix:path={socket}</listen>
  <auth>EXTERNAL</auth>
  <policy context="default">
    <allow user="*"/>
    <deny own="*"/>
    <deny send_type="method_call"/>
    <allow send_type="signal"/>
    <allow send_requested_reply="true" send_type="method_return"/>
    <allow send_requested_reply="true" send_type="error"/>
    <allow receive_type="method_call"/>
    <allow receive_type="method_return"/>
    <allow receive_type="error"/>
    <allow receive_type="signal"/>
    <allow send_destination="org.freedesktop.DBus"
           send_interface="org.freedesktop.DBus"/>
    <allow send_destination="org.freedesktop.DBus"
           send_interface="org.freedesktop.DBus.Introspectable"/>
    <allow send_destination="org.freedesktop.DBus"
           send_interface="org.freedesktop.DBus.Properties"/>
  </policy>
  <policy user="root">{names}</policy>
  <include ignore_missing="yes">{policy}</include>
</busconfig>
"""


class Bus:
    """dbus-daemon on a socket in `folder`; `address` is for DBUS_SYSTEM_BUS_ADDRESS.

    The bus can be stopped, and started again at the same address.
    """

    def __init__(self, folder: Path, *, names: Iterable[str] = ()) -> None:
        """`names`: additional names that root may own and everyone may call, for fake services."""
        self.socket = folder / "bus.sock"
        self.address = f"unix:path={self.socket}"
        self._names = "".join(
            f'<allow own="{name}"/><allow send_destination="{name}"/>' for name in names
        )
        self._config = folder / "bus.conf"
        self._log = folder / "bus.log"
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        # Readable for all users: some tests run a client as nobody.
        self._config.write_text(CONFIG.format(socket=self.socket, policy=POLICY, names=self._names))
        try:
            self.start()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        with undisturbed():
            self.stop()

    def start(self) -> None:
        with self._log.open("ab") as log:
            self._process = spawn(
                ("dbus-daemon", f"--config-file={self._config}", "--nofork", "--nopidfile"),
                log=log,
            )
        deadline = time.monotonic() + 10
        # The socket file exists before dbus-daemon listens.
        while not self._listens():
            if self._process.poll() is not None or time.monotonic() > deadline:
                raise LabError(f"no bus:\n{tail(self._log)}")
            time.sleep(0.005)

    def _listens(self) -> bool:
        with socket.socket(socket.AF_UNIX) as asking:
            return asking.connect_ex(str(self.socket)) == 0

    def stop(self) -> None:
        if self._process is not None:
            end(self._process)
        self.socket.unlink(missing_ok=True)
        self._process = None

    def kill(self) -> None:
        if self._process is not None:
            self._process.kill()
        self.stop()

    def busctl(self, *words: str, check: bool = True) -> str:
        """The output of busctl."""
        return run("busctl", f"--address={self.address}", *words, check=check).strip()
