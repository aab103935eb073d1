"""`metrics`: counts and times, as text for Prometheus."""

from __future__ import annotations

from typing import Any

from ipv6natd.ctl.client import Answer, Daemon, How, explained, not_running
from ipv6natd.dbus.connection import BusError
from ipv6natd.report import metrics as words
from ipv6natd.report.metrics import Sample


async def metrics(daemon: Daemon, _how: How) -> Answer:
    """The metrics; of a daemon that does not run, that it does not."""
    code, note = 0, ""
    try:
        properties = await daemon.properties()
        rows = [await daemon.call(each) for each in ("ListMappings", "ListNetworks")]
        found = words.samples(properties, *rows)
    except BusError as error:
        if not not_running(error):
            raise
        code, note = explained(error, "ipv6natctl metrics")
        found = [Sample(words.UP, (), 0)]
    return Answer(
        value=[_value(each) for each in found], text=words.text(found), code=code, note=note
    )


def _value(sample: Sample) -> dict[str, Any]:
    return {
        "Name": sample.metric.name,
        "Labels": dict(sample.labels),
        "Value": sample.value,
    }
