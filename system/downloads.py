"""Downloads: how long a host may take to answer, and what goes wrong."""

import contextlib
import http.client
import socket
from collections.abc import Iterator

# What a server or a proxy that answers nonsense causes; a URLError is an OSError.
NETWORK_ERRORS = (OSError, http.client.HTTPException, ValueError, EOFError)
TIMEOUT = 20  # seconds that a host may take to answer


@contextlib.contextmanager
def network_timeout() -> Iterator[None]:
    """Limit the time that a host may take to answer to TIMEOUT."""
    previous = socket.getdefaulttimeout()
    socket.setdefaulttimeout(TIMEOUT)
    try:
        yield
    finally:
        socket.setdefaulttimeout(previous)
