"""Builds the parts of the service, runs them in one TaskGroup and handles signals."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import signal
from collections.abc import Callable
from functools import partial

from ipv6natd.config import ConfigError, Settings
from ipv6natd.conntrack.stale import Exposure
from ipv6natd.dbus.connection import BusError
from ipv6natd.dbus.firewalld import Firewalld
from ipv6natd.dbus.service import BusService, serve
from ipv6natd.engine.client import EngineAddress, EngineUnavailable
from ipv6natd.engine.watcher import EngineWatcher
from ipv6natd.firewall.backend import FirewallError
from ipv6natd.firewall.leftovers import read_leftovers, remove_leftovers
from ipv6natd.firewall.select import open_firewall
from ipv6natd.host.addresses import watch as watch_addresses
from ipv6natd.host.facts import docker_ipv6nat
from ipv6natd.host.findings import Finding
from ipv6natd.model import EngineState
from ipv6natd.netfilter.docker_rules import Leftover
from ipv6natd.netfilter.rules import Backend, Ruleset
from ipv6natd.report.explain import Explanation, parse_port
from ipv6natd.report.facts import facts_text
from ipv6natd.report.ports import ConnectionsRow
from ipv6natd.report.status import State, Status, SyncResult, counted, one_line
from ipv6natd.report.textfile import Textfile
from ipv6natd.report.traces import TraceRow, parse_source
from ipv6natd.sync.applier import Applier
from ipv6natd.sync.forwarding import Forwarding
from ipv6natd.sync.local_host import LocalHost
from ipv6natd.sync.queries import Queries
from ipv6natd.sync.reconciler import Reconciler, settle
from ipv6natd.sync.saved_ports import PortSaver
from ipv6natd.sync.variant import chosen_backend
from ipv6natd.system import logs
from ipv6natd.system.messages import MessageId, log_fields
from ipv6natd.system.sd_notify import Notifier, watchdog_interval
from ipv6natd.system.threads import in_thread

log = logging.getLogger(__name__)

STOPPED, FAILED = 0, 1

READY_TIMEOUT = 10.0
"""Seconds that READY=1 waits for the first pass or for the reason why there is none."""


class Daemon:
    """The running service.

    `load` reads the settings again and may raise ConfigError. `saved` and `exposure` are the result
    of `close_networks`. It has many attributes, because it makes each part and connects them.
    """

    def __init__(
        self,
        settings: Settings,
        load: Callable[[], Settings],
        saved: Ruleset | None,
        exposure: Exposure,
    ) -> None:
        self._settings = settings
        self._load = load
        self._notifier = Notifier()
        self._stop = asyncio.Event()
        self._reloads: asyncio.Queue[asyncio.Future[BusError | None]] = asyncio.Queue()
        firewalld = Firewalld(self._recheck_host)
        self._host = LocalHost(Forwarding(wanted=settings.ip_forward), firewalld.zones)
        self._watch = self._new_watch()
        backend = settings.backend
        applier = Applier(
            lambda: open_firewall(chosen_backend(backend)),
            self._host,
            expected_backend=Backend.NFT if backend == "auto" else Backend(backend),
            exposure=exposure,
            saved=saved,
        )
        self._reconciler = Reconciler(
            engine=self._watch, applier=applier, observer=self, policy=settings.policy
        )
        self._queries = Queries(applier, self._reconciler.snapshot)
        self._ports = PortSaver(self._host.saved_ports, self._reconciler.departures)
        self._textfile = Textfile(settings.metrics_textfile, self.status)
        self._service = BusService(self, firewalld)

    async def run(self) -> int:
        """Run until a signal, or without `retry` until the engine is lost; return the exit code."""
        loop = asyncio.get_running_loop()
        gc.disable()  # until READY=1
        # Before READY=1, because SIGTERM or SIGHUP may follow directly.
        for name in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(name, self._stop.set)
        loop.add_signal_handler(signal.SIGHUP, self._request_reload)
        # Before READY=1: the engine waits for it, and switches forwarding on when it starts.
        await in_thread(self._host.forwarding.keep_ra_routes)
        await self._reconciler.open_firewall()
        self._reconciler.trigger()
        code = await self._until_stopped()
        await self._shut_down()
        return code

    def _port_removed(self, bridge: str | None) -> None:
        self._reconciler.departures.note(bridge)
        self._ports.changed()

    async def _notify_watchdog(self) -> None:
        """Notify systemd while this loop runs and no pass hangs. Runs until it is cancelled."""
        while interval := watchdog_interval():
            if not self._reconciler.hangs:
                self._notifier.watchdog()
            await asyncio.sleep(interval)

    def _reread_routes(self) -> None:
        self._host.routes_changed()
        self._reconciler.trigger()

    def _recheck_host(self) -> None:
        self._reconciler.verify()
        self._reconciler.monitor.request()

    async def _until_stopped(self) -> int:
        code = STOPPED
        try:
            async with asyncio.TaskGroup() as tasks:
                parts = (
                    watch_addresses(
                        self._reconciler.addresses_changed,
                        self._reread_routes,
                        self._port_removed,
                        lambda bridge: self._watch.port_added(bridge),
                    ),
                    self._reconciler.run(),
                    self._reconciler.departures.confirm(),
                    serve(self._service),
                    self._reconciler.watch_firewall(),
                    self._notify_watchdog(),
                    self._ports.run(),
                    self._reconciler.monitor.run(),
                    self._reload_on_request(tasks),
                    self._textfile.run(),
                    self._ready(),
                )
                running = [tasks.create_task(part) for part in parts]
                self._watch_task = tasks.create_task(self._watch.run(retry=self._settings.retry))
                await self._stop.wait()
                self._notifier.stopping()
                for task in (*running, self._watch_task):
                    task.cancel()
        except* EngineUnavailable as group:
            log.error("the Docker engine is unreachable and retry is off: %s", group.exceptions[0])
            code = FAILED
        return code

    async def _ready(self) -> None:
        with contextlib.suppress(TimeoutError):
            # An engine that does not respond must not delay the start of other units.
            async with asyncio.timeout(READY_TIMEOUT):
                await self._reconciler.publisher.first_pass.wait()
        self._notifier.ready(one_line(self._reconciler.status))
        gc.freeze()
        gc.enable()

    async def _shut_down(self) -> None:
        self._notifier.stopping()
        self._textfile.write_stopped()
        if self._reconciler.status.state is State.STOPPED:
            log.info("stopped; all rules were removed before")
            return
        if not self._settings.cleanup:
            self._ports.save()
            mappings = counted(len(self._reconciler.status.mappings), "mapping")
            verb = "stays" if mappings.startswith("1 ") else "stay"
            extra = log_fields(MessageId.STOPPED)
            log.info(
                "stopped; %s %s open; `ipv6natd -flush` closes them", mappings, verb, extra=extra
            )
            return
        try:
            await self._reconciler.remove()
            log.info("stopped; all rules are removed")
        except FirewallError as error:
            log.error("stopped, but the rules could not be removed: %s", error)

    def _new_watch(self) -> EngineWatcher:
        settings = self._settings
        address = EngineAddress(
            endpoint=settings.endpoint, cert_path=settings.cert_path, tls_verify=settings.tls_verify
        )
        return EngineWatcher(
            address, lambda: self._reconciler.trigger(), resync_interval=settings.resync_interval
        )

    def _request_reload(self) -> asyncio.Future[BusError | None]:
        done: asyncio.Future[BusError | None] = asyncio.get_running_loop().create_future()
        self._reloads.put_nowait(done)
        return done

    async def _reload_on_request(self, tasks: asyncio.TaskGroup) -> None:
        while True:
            waiting = [await self._reloads.get()]
            while not self._reloads.empty():
                waiting.append(self._reloads.get_nowait())
            self._notifier.reloading()
            refused = self._read_settings(tasks)
            try:
                await self._reconciler.refresh()
            except (EngineUnavailable, FirewallError) as error:
                log.warning("the settings take effect later: %s", error)
            self._notifier.ready(one_line(self._reconciler.status))
            settle(waiting, refused)

    def _read_settings(self, tasks: asyncio.TaskGroup) -> BusError | None:
        """Read the settings again; the error if they are refused."""
        try:
            settings = self._load()
        except ConfigError as error:
            # The old settings stay in force, and StateReason says why.
            extra = log_fields(MessageId.RELOAD_REFUSED, reason=str(error))
            log.error("%s; the old settings stay in force", error, extra=extra)
            self._reconciler.publisher.config_error = str(error)
            return BusError("org.ipv6natd1.Error.BadConfiguration", str(error))
        self._reconciler.publisher.config_error = ""
        self._apply_settings(settings, tasks)
        return None

    def _apply_settings(self, settings: Settings, tasks: asyncio.TaskGroup) -> None:
        old, self._settings = self._settings, settings
        logs.set_level("debug" if settings.debug else "info")
        self._reconciler.policy = settings.policy
        self._host.forwarding.wanted = settings.ip_forward
        self._textfile.path = settings.metrics_textfile
        self._textfile.changed()
        if old.backend != settings.backend:
            log.warning("backend = %s takes effect after a restart", settings.backend)
        watcher_keys = ("endpoint", "cert_path", "tls_verify", "retry", "resync_interval")
        if any(getattr(old, name) != getattr(settings, name) for name in watcher_keys):
            self._watch_task.cancel()
            self._watch = self._new_watch()
            self._reconciler.use_engine(self._watch)
            self._watch_task = tasks.create_task(self._watch.run(retry=settings.retry))
        log.info("settings reloaded")

    def changed(self, old: Status, new: Status, drift: tuple[str, ...]) -> None:
        """Show a new status on the bus, to systemd and in the metrics file."""
        self._service.publish(old, new, drift)
        if old.mappings is not new.mappings:
            self._ports.changed()
        self._textfile.changed()
        if one_line(old) != one_line(new):
            self._notifier.status(one_line(new))
        if new.docker_connected and not old.docker_connected and gc.isenabled():
            # Most of these objects live long. A search of all of them for cycles takes 0.2 s with
            # 10,000 containers, so it runs once for each connect and not in each collection.
            gc.unfreeze()
            gc.collect()
            gc.freeze()

    def status(self) -> Status:
        """The current status, for the bus."""
        return self._reconciler.status

    def ruleset_text(self) -> str:
        """The rules that were written last, for the bus."""
        return self._reconciler.applier.ruleset_text()

    async def trace(self, asked: str, source: str) -> list[TraceRow]:
        """What becomes of a packet to a host port, for the bus. Raises BusError."""
        try:
            port, protocol = parse_port(asked)
            return await self._queries.trace(port, protocol, parse_source(source))
        except ValueError as error:
            raise BusError("org.freedesktop.DBus.Error.InvalidArgs", str(error)) from None
        except FirewallError as error:
            raise BusError("org.ipv6natd1.Error.FirewallFailed", str(error)) from None

    def facts_text(self) -> str:
        """The facts of the last pass, for the bus."""
        return facts_text(*self._reconciler.applier.last_facts)

    async def resync(self) -> SyncResult:
        """Resync for the bus. Raises BusError."""
        try:
            return await self._reconciler.resync()
        except EngineUnavailable as error:
            text = f"the Docker engine is unreachable: {error}"
            raise BusError("org.ipv6natd1.Error.DockerUnavailable", text) from None
        except FirewallError as error:
            raise BusError("org.ipv6natd1.Error.FirewallFailed", str(error)) from None

    async def leftovers(self) -> tuple[Leftover, ...]:
        """Stale rules of an engine or docker-ipv6nat; () while one of them may still use them.

        Raises BusError.
        """
        engine_writes = self._reconciler.monitor.desired.engine_writes
        stop_command = await in_thread(docker_ipv6nat)
        return () if engine_writes or stop_command else await self._find_leftovers()

    async def remove_leftovers(self) -> tuple[Leftover, ...]:
        """Remove the stale rules and return them. Raises BusError."""
        if self._watch.state is not EngineState.CONNECTED:
            text = (
                "cannot tell stale Docker rules from live ones while the Docker engine is "
                "unreachable"
            )
            raise BusError("org.ipv6natd1.Error.DockerUnavailable", text)
        if self._reconciler.monitor.desired.engine_writes:
            text = (
                "the Docker engine writes IPv6 rules itself, so its rules are in use; to let "
                'ipv6natd write them: put "ip6tables": false into /etc/docker/daemon.json, then: '
                "systemctl restart docker"
            )
            raise BusError("org.ipv6natd1.Error.InUse", text)
        if stop_command := await in_thread(docker_ipv6nat):
            text = f"docker-ipv6nat runs and would write its rules again; stop it: {stop_command}"
            raise BusError("org.ipv6natd1.Error.InUse", text)
        found = await self._find_leftovers()
        try:
            await in_thread(partial(remove_leftovers, found))
        except FirewallError as error:
            raise BusError("org.ipv6natd1.Error.FirewallFailed", str(error)) from None
        finally:
            # They may have been before our jumps in FORWARD, and a finding of the host named them.
            self._recheck_host()
        return found

    async def _find_leftovers(self) -> tuple[Leftover, ...]:
        try:
            return await in_thread(partial(read_leftovers, tuple(self._watch.networks.values())))
        except FirewallError as error:
            raise BusError("org.ipv6natd1.Error.FirewallFailed", str(error)) from None

    async def findings(self) -> tuple[Finding, ...]:
        """The findings, for the bus, after a new check of the host."""
        await self._reconciler.monitor.check_on_request()
        return self._reconciler.publisher.newest_findings()

    async def connections(self) -> list[ConnectionsRow]:
        """The connections of the mappings, for the bus. Raises BusError."""
        try:
            return await self._queries.connections()
        except FirewallError as error:
            raise BusError("org.ipv6natd1.Error.FirewallFailed", str(error)) from None

    async def explain(self, query: str) -> list[Explanation]:
        """The explanations, for the bus."""
        return await self._queries.explain(query)

    async def reload(self) -> None:
        """Reload the settings, as SIGHUP does. Raises BusError if they are refused."""
        if refused := await self._request_reload():
            raise refused

    async def cleanup(self) -> None:
        """Remove all rules until a resync. Raises BusError."""
        try:
            await self._reconciler.cleanup()
        except FirewallError as error:
            raise BusError("org.ipv6natd1.Error.FirewallFailed", str(error)) from None
