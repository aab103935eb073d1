"""`metrics`: counts and times in the text format of Prometheus."""

from __future__ import annotations

from ipv6natd.ctl.client import DaemonClient, Options, Result, explain_error, is_not_running
from ipv6natd.dbus.connection import BusError
from ipv6natd.report import metrics as prometheus


async def metrics(daemon: DaemonClient, _options: Options) -> Result:
    """The metrics; if the daemon does not run, only `ipv6natd_up 0`, and exit code 3."""
    code, note = 0, ""
    try:
        members = ("ListMappings", "ListNetworks", "ListFindings")
        rows = [await daemon.call(member) for member in members]
        properties = await daemon.properties()
        samples = prometheus.samples(properties, *rows)
    except BusError as error:
        if not is_not_running(error):
            raise
        code, note = explain_error(error, "ipv6natctl metrics")
        samples = prometheus.STOPPED
    return Result(
        value=[
            {"Name": sample.name, "Labels": sample.labels, "Value": sample.value}
            for sample in samples
        ],
        text=prometheus.text(samples),
        code=code,
        note=note,
    )
