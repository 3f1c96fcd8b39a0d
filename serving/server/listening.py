"""Sockets that a server listens at."""

from __future__ import annotations

import ipaddress
import socket

from lookback.core.errors import UserError


def listen(host: str, port: int) -> list[socket.socket]:
    """Sockets that listen at an address.

    Raises:
      UserError: if nobody can.
    """
    from tornado.netutil import bind_sockets

    try:
        return bind_sockets(port, host)
    except OSError as error:  # gaierror is one
        raise UserError(
            f"--host {host}, port {port}: cannot listen there ({error.strerror or error}). Choose "
            "another port (0: any that is free), or end who uses it."
        ) from error


def is_local(found: socket.socket) -> bool:
    """Whether only this machine reaches it."""
    return ipaddress.ip_address(found.getsockname()[0]).is_loopback


def written(host: str) -> str:
    """A host as it stands in addresses with a port."""
    return f"[{host}]" if ":" in host else host


def free_port(host: str, port: int) -> int:
    """A port that nobody listens at: this one, or, of 0, any; errors as of `listen`."""
    sockets = listen(host, port)
    number: int = sockets[0].getsockname()[1]
    for found in sockets:
        found.close()
    return number
