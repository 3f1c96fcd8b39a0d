"""Reads a profile of TensorFlow's: which kernels take the time, and the gaps between them."""

from __future__ import annotations

import collections
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

_TOP = 15
_NANO, _PICO = 1e-9, 1e-12


class Ran(NamedTuple):
    """A kernel that ran; on a host, an operation.

    Attributes:
      name: of it.
      start: seconds.
      stop: seconds.
    """

    name: str
    start: float
    stop: float


def read_profile(directory: Path, steps: int) -> dict[str, Any]:
    """Sums up a profile.

    Args:
      directory: that was given to `tf.profiler.experimental.start`.
      steps: that were profiled.

    Returns:
      As `summary`, and "of": what it is the profile of.
    """
    from tensorflow.tsl.profiler.protobuf import xplane_pb2

    (path,) = directory.rglob("*.xplane.pb")
    space = xplane_pb2.XSpace()
    space.ParseFromString(path.read_bytes())
    gpus = [plane for plane in space.planes if plane.name.startswith("/device:GPU")]
    hosts = [plane for plane in space.planes if plane.name.startswith("/host:CPU")]
    ran = [event for plane in gpus or hosts for event in _events(plane, streams=bool(gpus))]
    return {"of": "GPU" if gpus else "host", **summary(ran, steps)}


def summary(ran: list[Ran], steps: int) -> dict[str, Any]:
    """How long the device was busy, its largest kernels, and the gaps between them.

    Args:
      ran: at least one.
      steps: in which they ran.

    Returns:
      Seconds and launches, of one step each; `busy_fraction` of the time from the first kernel to
      the last; `largest_gaps_seconds` of all steps.
    """
    by_name: collections.Counter[str] = collections.Counter()
    for event in ran:
        by_name[event.name] += event.stop - event.start
    ordered = sorted(ran, key=lambda event: event.start)
    busy, gaps, end = 0.0, [], ordered[0].start
    for event in ordered:
        if event.start > end:
            gaps.append(event.start - end)
        busy += max(0.0, event.stop - max(event.start, end))
        end = max(end, event.stop)
    whole = end - ordered[0].start
    return {
        "launches_per_step": len(ran) / steps,
        "seconds_per_step": whole / steps,
        "busy_seconds_per_step": busy / steps,
        "busy_fraction": busy / whole,
        "largest_gaps_seconds": sorted(gaps)[::-1][:_TOP],
        "top": {name: seconds / steps for name, seconds in by_name.most_common(_TOP)},
    }


def _events(plane: Any, *, streams: bool) -> Iterator[Ran]:
    """Of a GPU those of its streams, which other lines only repeat by operation and step."""
    for line in plane.lines:
        if streams and not line.name.startswith("Stream"):
            continue
        for event in line.events:
            start = _NANO * line.timestamp_ns + _PICO * event.offset_ps
            name = plane.event_metadata[event.metadata_id].name
            yield Ran(name, start, start + _PICO * event.duration_ps)
