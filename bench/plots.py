"""Plots of the measurements against the number of mappings, with logarithmic axes."""

from __future__ import annotations

from collections.abc import Mapping as Map
from pathlib import Path

import matplotlib as mpl

mpl.use("svg")
# The same figures give the same file.
mpl.rcParams |= {"svg.hashsalt": "ipv6natd", "svg.fonttype": "none", "font.size": 9}

from matplotlib import pyplot  # noqa: E402  # after the choice of the backend
from matplotlib.ticker import LogLocator  # noqa: E402

Curve = Map[int, float]


def draw(path: Path, title: str, unit: str, curves: Map[str, Curve], *, flat: bool = False) -> None:
    """Draw one plot. With `flat` the value axis is linear and begins with zero."""
    figure, axes = pyplot.subplots(figsize=(5.2, 3.2))
    for (label, curve), mark in zip(curves.items(), "osv^Dx", strict=False):
        axes.plot(list(curve), list(curve.values()), marker=mark, markersize=4, label=label)
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter("{x:,.0f}")
    values = [value for curve in curves.values() for value in curve.values()]
    if flat:
        axes.set_ylim(0, 1.5 * max(values))
    else:
        axes.set_yscale("log")
        axes.set_ylim(min(values) / 2, max(values) * 2)
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_major_formatter("{x:g}")
        axes.yaxis.set_minor_formatter("")
    axes.set_xlabel("mappings")
    axes.set_ylabel(unit)
    axes.set_title(title)
    axes.grid(visible=True, which="major", alpha=0.3)
    axes.legend(frameon=False)
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None})
    pyplot.close(figure)
