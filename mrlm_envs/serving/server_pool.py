"""Which server a session goes to: the addresses behind a name, and the one with the fewest sessions."""

import asyncio
import random
import socket
import time
from collections.abc import Collection, Sequence

from mrlm_envs.serving.connection import Access, Connection, RemoteError

_RESOLVE = 30.0  # seconds between look-ups of a dns:/// address
_UNRESOLVED = 1.0  # the same, while no server can be reached
_POLL = 0.02  # seconds between looks for a server that has recovered

_lots = random.Random()  # of our own: the process's may be seeded, and is not ours to use


class NoServer(Exception):
    """No server could be reached in time."""


class ServerPool:
    """Equal servers.

    Args:
        addresses: `host:port`, or `dns:///name:port` for every address of that name.
        access: Token, certificates and deadlines.
    """

    def __init__(self, addresses: Sequence[str], access: Access) -> None:
        self.addresses, self._access = addresses, access
        self._by_address: dict[str, Connection] = {}
        self._connections: list[Connection] = []
        self._resolved: dict[str, dict[str, str]] = {}  # what each name's newest look-up found
        self._resolved_at = float("-inf")
        self._is_closed = False

    async def pick(self, current: Connection | None = None, tried: Collection[str] = ()) -> Connection:
        """The server with the fewest sessions of ours, among those that are not blocked; waits while all are.

        Args:
            current: Where the session is: it stays, unless that makes its server's sessions more even.
            tried: Addresses to avoid as long as there are others, like servers that are silent.

        Raises:
            NoServer: If no server has ever answered, and none does within `connect_timeout`.
            RemoteError: If the client is closed.
        """
        end = time.monotonic() + min(self._access.connect_timeout, self._access.step_timeout)
        while True:
            if self._is_closed:
                raise RemoteError("the client is closed")
            await self._resolve()
            free = [one for one in self._connections if not one.is_blocked]
            if free:
                free = [one for one in free if one.address not in tried and not one.is_silent] or free
                best = min(free, key=lambda one: (len(one.sessions), _lots.random()))
                is_fair = current is not None and len(current.sessions) <= len(best.sessions) + 1
                return current if current in free and is_fair else best
            was_reached = any(one.was_reached for one in self._by_address.values())
            if not was_reached and time.monotonic() > end:
                raise NoServer(self.trouble)
            await asyncio.sleep(_POLL)

    @property
    def trouble(self) -> str:
        """Why no server answers."""
        known = [one.trouble for one in self._connections if one.trouble]
        names = [address for address in self.addresses if address.startswith("dns:///")] if not known else []
        why = known or [f"{name}: the name has no address" for name in names] or ["all are busy"]
        return f"no server answers at {', '.join(self.addresses)}: {'; '.join(why)}"

    def close(self) -> None:
        """Close the channels for good."""
        self._is_closed = True
        for connection in self._by_address.values():
            connection.close_for_good()

    async def _resolve(self) -> None:
        """Bring the list of servers up to date."""
        is_lost = all(one.is_blocked for one in self._connections)
        if time.monotonic() < self._resolved_at + (_UNRESOLVED if is_lost else _RESOLVE):
            return
        self._resolved_at = time.monotonic()
        found: dict[str, str | None] = {}
        for address in self.addresses:
            if not address.startswith("dns:///"):
                found[address] = None
                continue
            host, _, port = address.removeprefix("dns:///").rpartition(":")
            try:
                entries = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
            except OSError:  # the name has no address right now: keep what we know, and ask again
                found |= self._resolved.get(address, {})
                continue
            ips = [(family, socket_address[0]) for family, *_, socket_address in entries]
            named = {f"[{ip}]:{port}" if family == socket.AF_INET6 else f"{ip}:{port}": host for family, ip in ips}
            self._resolved[address] = named
            found |= named
        for connection in [one for one in self._by_address.values() if found and one.address not in found]:
            if connection.is_blocked:  # a server that is gone for good
                connection.close_for_good()
                del self._by_address[connection.address]
        for address, host in found.items():
            if address not in self._by_address:
                self._by_address[address] = Connection(address, host, self._access)
        self._connections = [self._by_address[address] for address in found] or list(self._by_address.values())


def split_addresses(address: str | Sequence[str]) -> tuple[str, ...]:
    """Addresses from one, several in a list, or several with commas.

    Raises:
        ValueError: If there is none, or one has no port.
    """
    given = address.split(",") if isinstance(address, str) else list(address)
    addresses = tuple(dict.fromkeys(part.strip() for part in given if part.strip()))
    for part in addresses:
        if not part.rpartition(":")[2].isdigit():
            raise ValueError(f"address must be host:port or dns:///name:port, got {part!r}")
    if not addresses:
        raise ValueError("address is empty; name a server as host:port")
    return addresses
