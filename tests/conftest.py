"""What holds for every test: no network, no cache or setting of the person who runs it."""

from __future__ import annotations

import errno
import os
import socket
import tempfile
from collections.abc import Iterator
from typing import Any

import pytest

# Libraries read these when they are imported, so they are set before any test module is.
for _name in ("ZOO_RECIPES", "ZOO_WEIGHTS", "ZOO_TRACEBACK", "HF_HUB_CACHE", "HF_HUB_OFFLINE", "HF_TOKEN"):
    os.environ.pop(_name, None)
_home = tempfile.TemporaryDirectory(prefix="zoo-tests-")
os.environ |= {
    "ZOO_TRUST": "toy",  # tests make bundles of its classes
    "HF_HOME": f"{_home.name}/huggingface",
    "MPLBACKEND": "agg",
    "MPLCONFIGDIR": f"{_home.name}/matplotlib",
    "NO_COLOR": "1",
    "OMP_NUM_THREADS": "1",  # `make test` runs a worker per core
    "TOKENIZERS_PARALLELISM": "false",
}


@pytest.fixture(scope="session", autouse=True)
def no_network() -> Iterator[None]:
    """A connection to another machine fails at once, as on a machine without network."""
    connect, getaddrinfo = socket.socket.connect, socket.getaddrinfo

    def connect_here(self: socket.socket, address: Any) -> None:
        if self.family in (socket.AF_INET, socket.AF_INET6) and not _is_local(address[0]):
            raise OSError(errno.ENETUNREACH, f"tests have no network (connecting to {address[0]})")
        connect(self, address)

    def resolve_here(host: Any, *args: Any, **kwargs: Any) -> Any:
        if host and not _is_local(host):
            raise socket.gaierror(socket.EAI_AGAIN, f"tests have no network (looking up {host})")
        return getaddrinfo(host, *args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(socket.socket, "connect", connect_here)
        patch.setattr(socket, "getaddrinfo", resolve_here)
        yield


def _is_local(host: Any) -> bool:
    name = host.decode() if isinstance(host, bytes) else str(host)
    return name in ("localhost", "::1", "0.0.0.0", socket.gethostname()) or name.startswith("127.")
