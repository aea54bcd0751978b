"""HTTP range requests that survive dropped connections and servers in trouble."""

from __future__ import annotations

import http.client
import random
import re
import time
import urllib.error
import urllib.parse
import urllib.request

from ..exceptions import FileChangedError, RemoteError

_RETRIED_STATUS = {408, 425, 429, 500, 502, 503, 504}
_CHUNK = 256 * 1024
# A server without ranges sends the file from its start: read past this much of it,
# no more.
_MAX_SKIPPED = 16 * 2**20
_CONTENT_RANGE = re.compile(r"bytes (\d+)-(\d+)/(\d+)$")


class HttpClient:
    """Settings for requests; picklable, and connected to nothing.

    Parameters
    ----------
    timeout : float, default=30
        Seconds without an answer or a byte before a request counts as dropped.
    max_attempts : int, default=6
        Requests in a row that bring nothing, before giving up.
    backoff : float, default=0.5
        Seconds to wait after the first failure, doubled each time, at most 10.
    token : str, default=None
        Sent to the host of the URL, never to one that it redirects to.
    """

    def __init__(self, timeout=30.0, max_attempts=6, backoff=0.5, token=None):
        self.timeout = timeout
        self.max_attempts = max_attempts
        self.backoff = backoff
        self.token = token

    def first_bytes(self, url, n_bytes):
        """Return a file's first bytes, its size, and the tag of its content."""

        def receive(response):
            if response.status == 206:
                size = self._content_range(response, url, 0)
            else:
                length = response.headers.get("Content-Length", "")
                if not length.isdigit():
                    raise RemoteError(
                        f"{url} comes without a size and not in ranges: download the "
                        "file and open it from disk."
                    )
                size = int(length)
            wanted = min(n_bytes, size)
            data = response.read(wanted)
            if len(data) < wanted:
                raise http.client.IncompleteRead(data, wanted - len(data))
            return data, size, _tag(response)

        return self._attempts(url, f"bytes=0-{n_bytes - 1}", receive)

    def range(self, url, start, n_bytes, size, tag):
        """Return a byte range; what has arrived is kept when a connection drops.

        Raises
        ------
        FileChangedError
            If the server now holds another content than `size` and `tag` say.
        RemoteError
            If the server refuses, or gives nothing however often it is asked.
        """
        data = bytearray(n_bytes)
        view, done = memoryview(data), 0

        def receive(response):
            nonlocal done
            first = start + done
            if response.status == 206:
                total = self._content_range(response, url, first)
            else:
                total = int(response.headers.get("Content-Length") or size)
            if total != size or (tag and _tag(response) not in ("", tag)):
                raise FileChangedError(
                    f"{url} has changed since it was opened. Open the models again."
                )
            if response.status != 206:
                _skip(response, first, url)
            while done < n_bytes:
                count = response.readinto(view[done : done + _CHUNK])
                if not count:
                    raise http.client.IncompleteRead(b"", n_bytes - done)
                done += count

        # Only attempts that bring nothing at all count against the server.
        self._attempts(
            url,
            lambda: f"bytes={start + done}-{start + n_bytes - 1}",
            receive,
            progress=lambda: done,
        )
        return data

    def get(self, url, max_bytes=64 * 2**20):
        """Return a small text resource whole."""

        def receive(response):
            data = response.read(max_bytes + 1)
            if len(data) > max_bytes:
                raise RemoteError(f"{url} has more than {max_bytes} bytes.")
            length = response.headers.get("Content-Length", "")
            if length.isdigit() and len(data) < int(length):
                raise http.client.IncompleteRead(data)
            return data, response.headers

        return self._attempts(url, None, receive)

    def _content_range(self, response, url, first):
        match = _CONTENT_RANGE.match(response.headers.get("Content-Range", ""))
        if match is None or int(match[1]) != first:
            raise RemoteError(
                f"{url} answered a range request with another range: download the "
                "file and open it from disk."
            )
        return int(match[3])

    def _attempts(self, url, byte_range, receive, progress=lambda: 0):
        failures, had = 0, progress()
        while True:
            request = urllib.request.Request(url, headers={"User-Agent": "skprobex"})
            if byte_range is not None:
                text = byte_range() if callable(byte_range) else byte_range
                request.add_header("Range", text)
                # Ranges count bytes of the file, not of a compressed form of it.
                request.add_header("Accept-Encoding", "identity")
            if self.token:
                request.add_unredirected_header("Authorization", f"Bearer {self.token}")
            wait = 0.0
            try:
                with urllib.request.urlopen(request, timeout=self.timeout) as response:
                    return receive(response)
            except urllib.error.HTTPError as error:
                with error:
                    if error.code not in _RETRIED_STATUS:
                        raise _refused(url, error) from None
                    reason = f"HTTP {error.code} {error.reason}"
                    after = error.headers.get("Retry-After", "")
                    wait = float(after) if after.isdigit() else 0.0
            except (OSError, http.client.HTTPException) as error:
                reason = str(getattr(error, "reason", error)) or type(error).__name__
            if progress() > had:
                failures, had = 0, progress()
            failures += 1
            if failures >= self.max_attempts:
                raise RemoteError(
                    f"{url} could not be read in {failures} attempts (last: {reason}). "
                    "Check the address and the network and try again: what has "
                    "arrived is kept."
                ) from None
            # Spread out, lest all workers come back at once.
            wait = max(wait, self.backoff * 2 ** (failures - 1))
            time.sleep(min(wait, 10.0) * random.uniform(0.75, 1.0))


def _tag(response):
    # A weak tag ("W/...") promises no equality of bytes, but does tell versions apart.
    return response.headers.get("ETag") or response.headers.get("Last-Modified") or ""


def _skip(response, n_bytes, url):
    if n_bytes > _MAX_SKIPPED:
        raise RemoteError(
            f"{url} is on a server that does not answer range requests: download the "
            "file and open it from disk."
        )
    while n_bytes:
        count = len(response.read(min(n_bytes, _CHUNK)))
        if not count:
            raise http.client.IncompleteRead(b"", n_bytes)
        n_bytes -= count


def _refused(url, error):
    hint = {
        401: "The repository is private, gated, or does not exist: log in, or check "
        "its name.",
        403: "You may not read it: ask for access, or log in.",
        404: "There is no such file: check the address.",
        416: "The file is shorter than its header says: it is cut short.",
    }.get(error.code, "Check the address.")
    return RemoteError(f"{url}: HTTP {error.code} {error.reason}. {hint}")
