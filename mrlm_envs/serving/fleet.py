"""Which server a session goes to: the addresses behind a name, and each session's own order of them."""

import asyncio
import hashlib
import os
import socket
import time
from collections.abc import Sequence

from mrlm_envs.serving.lane import Access, Lane

_RESOLVE = 30.0  # seconds between look-ups of a dns:/// address
_DRAWS = 16  # servers up to which session ids are drawn so that sessions spread evenly


class NoServer(Exception):
    """No server could be reached in time."""


class Fleet:
    """Equal servers.

    Args:
        addresses: `host:port`, or `dns:///name:port` for every address of that name.
        access: Token and certificates.
        rpc_timeout: Seconds without an answer after which a server counts as lost.
    """

    def __init__(self, addresses: Sequence[str], access: Access, rpc_timeout: float) -> None:
        self.addresses = addresses
        self._access, self._rpc_timeout = access, rpc_timeout
        self._by_address: dict[str, Lane] = {}
        self._lanes: list[Lane] = []
        self._resolved_at = float("-inf")

    async def pick(self, key: bytes, deadline: float) -> Lane:
        """The first server in the key's own order that has not just been lost; waits while all have.

        Raises:
            NoServer: If that takes until after the deadline.
        """
        while True:
            await self._resolve()
            free = [lane for lane in self._lanes if not lane.is_blocked]
            if free:
                return _favourite(key, free)
            now = time.monotonic()
            wait = max(min((lane.blocked_until - now for lane in self._lanes), default=0.5), 0.0) + 0.01
            if now + wait > deadline:
                raise NoServer(f"no server answers at {', '.join(self.addresses)}")
            self._resolved_at = float("-inf")
            await asyncio.sleep(wait)

    async def draw(self) -> tuple[bytes, Lane | None]:
        """A new session id; on a small fleet one whose first choice has the fewest sessions, and that choice."""
        await self._resolve()
        key = os.urandom(16)
        if not self._lanes or len(self._lanes) > _DRAWS:
            return key, None
        target = min(self._lanes, key=lambda lane: lane.load)
        for _ in range(8 * len(self._lanes)):
            if _favourite(key, self._lanes) is target:
                break
            key = os.urandom(16)
        home = _favourite(key, self._lanes)
        home.load += 1
        return key, home

    def close(self) -> None:
        """Close the channels for good."""
        for lane in self._by_address.values():
            lane.is_closed = True
            lane.close()

    async def _resolve(self) -> None:
        """Bring the list of servers up to date."""
        if time.monotonic() < self._resolved_at + _RESOLVE:
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
            except OSError:
                continue  # the name has no address right now: keep what we know, and ask again
            for family, *_, socket_address in entries:
                ip = socket_address[0]
                found[f"[{ip}]:{port}" if family == socket.AF_INET6 else f"{ip}:{port}"] = host
        for lane in [lane for address, lane in self._by_address.items() if found and address not in found]:
            if lane.is_blocked:  # a server that is gone for good
                lane.close()
                del self._by_address[lane.address]
        for address, host in found.items():
            if address not in self._by_address:
                self._by_address[address] = Lane(address, self._access, host, self._rpc_timeout)
        self._lanes = [self._by_address[address] for address in found] or list(self._by_address.values())


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


def _favourite(key: bytes, lanes: Sequence[Lane]) -> Lane:
    """Rendezvous hashing: every key has its own order of all addresses, which a lost address does not change."""
    if len(lanes) == 1:
        return lanes[0]
    return max(lanes, key=lambda lane: hashlib.blake2b(key + lane.address.encode(), digest_size=8).digest())
