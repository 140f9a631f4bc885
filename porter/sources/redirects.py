"""Where a server may send a request on to."""

from __future__ import annotations

import ipaddress
import socket
import urllib.request
from collections.abc import Callable
from typing import Any
from urllib.parse import urlsplit

from porter.errors import CheckpointError

SCHEMES = ("https", "http")
Resolve = Callable[[str], list[str]]


def addresses_of(host: str) -> list[str]:
    """The IP addresses of ``host``; none where it does not resolve, so that nothing can be sent there either."""
    try:
        return [str(found[4][0]) for found in socket.getaddrinfo(host, None)]
    except (OSError, UnicodeError):
        return []


def is_public(host: str, resolve: Resolve = addresses_of) -> bool:
    """Whether every address of ``host`` is one of the internet, and not of this machine or its network."""
    found = [ipaddress.ip_address(address.partition("%")[0]) for address in resolve(host)]
    plain = [getattr(address, "ipv4_mapped", None) or address for address in found]
    return all(address.is_global and not address.is_multicast for address in plain)


def check_redirect(source: str, target: str, resolve: Resolve = addresses_of) -> None:
    """Raise CheckpointError where ``source`` leads to ``target``, and may not.

    Only the web's addresses are followed; and from the internet none into a network that is not the internet, whose
    services trust this machine.
    """
    try:
        place, host = urlsplit(target), urlsplit(source).hostname or ""
        scheme, to = place.scheme.lower(), place.hostname or ""
    except ValueError:
        scheme, to, host = "", "", ""
    if scheme not in SCHEMES or not to:
        raise CheckpointError(f"{source}: leads to {target[:100]}, which is no {' or '.join(SCHEMES)} address")
    if is_public(host, resolve) and not is_public(to, resolve):
        raise CheckpointError(f"{source}: leads to {target[:100]}, in this machine or its network; not followed")


class Redirects(urllib.request.HTTPRedirectHandler):
    """Follows at most ten redirects (as urllib does), and only those that ``check_redirect`` allows."""

    def redirect_request(self, req: Any, fp: Any, code: int, msg: str, headers: Any, newurl: str) -> Any:
        """The next request. Raises CheckpointError."""
        check_redirect(req.full_url, newurl)
        return super().redirect_request(req, fp, code, msg, headers, newurl)
