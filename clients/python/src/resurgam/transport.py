"""HTTP over connections that are kept open, by the standard library alone."""

from __future__ import annotations

import http.client
import json
import random
import socket
import ssl
import threading
import time
from dataclasses import dataclass
from typing import Dict, List, Mapping, Optional, Tuple
from urllib.parse import quote, urlencode, urlsplit

from .errors import Problem, ResurgamError, TransportError
from .types import Json

#: Connections that are kept open while nobody uses them.
_KEPT = 16
#: The largest answer that is read.
_MAX_ANSWER = 256 * 1024 * 1024


@dataclass(frozen=True)
class Patience:
    """How long a request is repeated while there is no answer, or a transient one.

    The waits are chosen at random between nothing and a bound that doubles from ``first`` to
    ``longest`` ("full jitter"), so that many clients do not come back all at once when a server
    does.
    """

    #: Give up after so many seconds; ``None`` for never.
    total: Optional[float] = 60.0
    #: Bound of the first wait in seconds.
    first: float = 0.05
    #: Bound of the longest wait in seconds.
    longest: float = 1.0

    def start(self) -> Backoff:
        """Begins to wait."""
        return Backoff(self)


class Backoff:
    """The waits of one caller."""

    def __init__(self, patience: Patience) -> None:
        self._bound = min(patience.first, patience.longest)
        self._longest = patience.longest
        total = patience.total
        self._until = None if total is None else time.monotonic() + total

    def next(self) -> Optional[float]:
        """Seconds to wait now; ``None`` when patience is at its end."""
        delay = random.uniform(0, self._bound)
        self._bound = min(self._bound * 2, self._longest)
        if self._until is None:
            return delay
        left = self._until - time.monotonic()
        return None if left <= 0 else min(delay, left)


class Connection:
    """One connection. Not to be used by two threads at once, except for :meth:`abort`."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport
        self._http: Optional[http.client.HTTPConnection] = None
        self._aborted = False

    @property
    def is_open(self) -> bool:
        """Whether it has been used and can be used again."""
        return self._http is not None

    def close(self) -> None:
        """Closes it; the next request opens it again."""
        if self._http is not None:
            self._http.close()
            self._http = None

    def abort(self) -> None:
        """Ends what another thread waits for on this connection, now and later."""
        self._aborted = True
        connection = self._http
        sock = getattr(connection, "sock", None)
        if sock is not None:
            try:
                sock.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass

    def request(
        self, method: str, path: str, body: Optional[bytes], timeout: float
    ) -> Tuple[int, Mapping[str, str], bytes]:
        """Sends a request and reads the answer: status, headers, body."""
        try:
            if self._http is None:
                self._http = self._transport.open(timeout)
            self._http.timeout = timeout
            if self._http.sock is None:
                self._http.connect()
            self._http.sock.settimeout(timeout)
            if self._aborted:
                raise ConnectionAbortedError("the client is being stopped")
            headers = self._transport.headers(body is not None)
            self._http.request(method, path, body=body, headers=headers)
            response = self._http.getresponse()
            content = response.read(_MAX_ANSWER)
            answer = {name.lower(): value for name, value in response.getheaders()}
            if response.will_close or not response.isclosed():
                self.close()
            return response.status, answer, content
        except (OSError, http.client.HTTPException) as error:
            self.close()
            reason = str(error) or type(error).__name__
            raise TransportError(
                f"no answer from {self._transport.base}: {reason}"
            ) from error


class Transport:
    """The way to one server."""

    def __init__(
        self,
        base: str,
        token: Optional[str] = None,
        context: Optional[ssl.SSLContext] = None,
        agent: str = "resurgam-client",
    ) -> None:
        parts = urlsplit(base)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError(f"{base!r} is not an address such as http://127.0.0.1:7070")
        if parts.username or parts.password or parts.query or parts.fragment:
            raise ValueError("the address must hold neither a password nor a query")
        if token is not None and not (token.isascii() and token.isprintable() and " " not in token):
            raise ValueError("the token has characters that a token cannot have")
        self.base = base.rstrip("/")
        self._host = parts.hostname
        self._port = parts.port
        self._prefix = parts.path.rstrip("/")
        self._token = token
        self._tls = parts.scheme == "https"
        self._context = context
        self._agent = agent
        self._idle: List[Connection] = []
        self._lock = threading.Lock()

    def at(self, base: str) -> Transport:
        """The way to another server of the same platform."""
        return Transport(base, self._token, self._context, self._agent)

    def open(self, timeout: float) -> http.client.HTTPConnection:
        """A new connection."""
        if self._tls:
            return http.client.HTTPSConnection(
                self._host, self._port, timeout=timeout, context=self._context
            )
        return http.client.HTTPConnection(self._host, self._port, timeout=timeout)

    def headers(self, has_body: bool) -> Dict[str, str]:
        """What goes with every request."""
        headers = {"Accept": "application/json", "User-Agent": self._agent}
        if has_body:
            headers["Content-Type"] = "application/json"
        if self._token is not None:
            headers["Authorization"] = f"Bearer {self._token}"
        return headers

    def connection(self) -> Connection:
        """A connection of one's own."""
        return Connection(self)

    def close(self) -> None:
        """Closes the connections that nobody uses."""
        with self._lock:
            idle, self._idle = self._idle, []
        for connection in idle:
            connection.close()

    def call(
        self,
        method: str,
        path: str,
        *,
        body: Json = None,
        query: Optional[Mapping[str, Json]] = None,
        timeout: float,
        connection: Optional[Connection] = None,
    ) -> Json:
        """One request, made once. An answer that is not a success is raised as a problem."""
        path = self._prefix + path
        given = {name: str(value) for name, value in (query or {}).items() if value is not None}
        if given:
            path += "?" + urlencode(given)
        data = None if body is None else encode(body)
        own = connection is not None
        if connection is None:
            with self._lock:
                connection = self._idle.pop() if self._idle else Connection(self)
        reused = connection.is_open
        try:
            answer = connection.request(method, path, data, timeout)
        except TransportError:
            # The server may close a connection that was idle just when it is used again.
            if own or not reused:
                raise
            answer = connection.request(method, path, data, timeout)
        if not own:
            with self._lock:
                if connection.is_open and len(self._idle) < _KEPT:
                    self._idle.append(connection)
                    connection = None
            if connection is not None:
                connection.close()
        return read(*answer)

    def persistently(
        self,
        method: str,
        path: str,
        *,
        body: Json = None,
        query: Optional[Mapping[str, Json]] = None,
        timeout: float,
        patience: Patience,
        stop: Optional[threading.Event] = None,
    ) -> Json:
        """One request, repeated while trying again can help."""
        backoff = patience.start()
        while True:
            try:
                return self.call(method, path, body=body, query=query, timeout=timeout)
            except ResurgamError as error:
                if not error.transient:
                    raise
                delay = backoff.next()
                if delay is None:
                    raise
            if stop is None:
                time.sleep(delay)
            elif stop.wait(delay):
                raise TransportError("gave up, because the client is being stopped")


def encode(value: Json) -> bytes:
    """JSON as it is sent."""
    try:
        text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
        return text.encode("utf-8")
    except (TypeError, ValueError, RecursionError) as error:
        raise ValueError(f"this is not JSON: {error}") from error


def read(status: int, headers: Mapping[str, str], content: bytes) -> Json:
    """The body of a success; everything else is raised."""
    value: Json = None
    if content:
        try:
            value = json.loads(content)
        except ValueError as error:
            if status < 300:
                raise TransportError(f"the answer is not JSON: {error}") from error
    if 200 <= status < 300:
        return value
    body = value if isinstance(value, dict) else {"title": "an answer that is no problem document"}
    raise Problem.from_answer(status, body, headers.get("x-request-id"))


def segment(text: str) -> str:
    """An id as a part of a path."""
    return quote(text, safe="")
