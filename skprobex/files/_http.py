"""HTTP range requests that survive dropped connections and servers in trouble."""

from __future__ import annotations

import http.client
import ipaddress
import random
import re
import socket
import time
import urllib.error
import urllib.parse
import urllib.request

from ..exceptions import FileChangedError, RemoteError, WeightFileError
from ._deadline import within

_RETRIED_STATUS = {408, 425, 429, 500, 502, 503, 504}
_CHUNK = 256 * 1024
# A server without ranges sends the file from its start: read past this much of it,
# no more.
_MAX_SKIPPED = 16 * 2**20
_CONTENT_RANGE = re.compile(r"bytes ([0-9]{1,15})-([0-9]{1,15})/([0-9]{1,15})")
# Bytes a second that a server must bring in the long run, and bytes that an attempt
# must bring not to count as one in vain.
_LEAST_RATE = 50_000
_LEAST_PROGRESS = 64 * 1024


class HttpClient:
    """Settings for requests; picklable, and connected to nothing.

    Parameters
    ----------
    timeout : float, default=30
        Seconds without an answer or a byte before a request counts as dropped.
    max_attempts : int, default=6
        Requests in a row that bring little or nothing, before giving up.
    backoff : float, default=0.5
        Seconds to wait after the first failure, doubled each time, at most 10.
    token : str, default=None
        Sent to the host of the URL, also where that redirects to itself, never to
        another.
    patience : float, default=60
        Seconds that a call may take, all attempts together, besides a second for each
        50 kB.
    """

    def __init__(
        self, timeout=30.0, max_attempts=6, backoff=0.5, token=None, patience=60.0
    ):
        self.timeout = timeout
        self.max_attempts = max_attempts
        self.backoff = backoff
        self.token = token
        self.patience = patience

    def first_bytes(self, url, n_bytes):
        """Return a file's first bytes, its size, and the tag of its content."""

        def receive(response):
            if response.status == 206:
                size = self._content_range(response, url, 0)
            else:
                size = as_size(response.headers.get("Content-Length"))
                if size is None:
                    raise RemoteError(
                        f"{url} comes without a size and not in ranges: download the "
                        "file and open it from disk."
                    )
            wanted = min(n_bytes, size)
            data = response.read(wanted)
            if len(data) < wanted:
                raise http.client.IncompleteRead(data, wanted - len(data))
            return data, size, _tag(response)

        return self._attempts(url, lambda: f"bytes=0-{n_bytes - 1}", receive, n_bytes)

    def range(self, url, start, n_bytes, size, tag):
        """Return a byte range, and whether each part of it came with the tag.

        What has arrived is kept when a connection drops.

        Raises
        ------
        FileChangedError
            If the server now holds another content than `size` and `tag` say.
        RemoteError
            If the server refuses, is too slow, or gives too little however often it is
            asked.
        """
        data = bytearray(n_bytes)
        view, done, is_tagged = memoryview(data), 0, True
        began = time.monotonic()

        def receive(response):
            nonlocal done, is_tagged
            first = start + done
            if response.status == 206:
                total = self._content_range(response, url, first)
            else:
                total = as_size(response.headers.get("Content-Length", str(size)))
            found = _tag(response)
            if total != size or (tag and found not in ("", tag)):
                raise FileChangedError(
                    f"{url} has changed since it was opened. Open the models again."
                )
            is_tagged = is_tagged and found == tag
            if response.status != 206:
                _skip(response, first, url)
            while done < n_bytes:
                part = response.read1(min(_CHUNK, n_bytes - done))
                if not part:
                    raise http.client.IncompleteRead(b"", n_bytes - done)
                view[done : done + len(part)] = part
                done += len(part)
                allowed = self.patience + done / _LEAST_RATE
                if time.monotonic() - began > allowed:
                    raise RemoteError(
                        f"{url} sent {done} of {n_bytes} bytes in {allowed:.0f} "
                        "seconds, which is too slow to be of use. Try again later, or "
                        "download the file."
                    )

        self._attempts(
            url,
            lambda: f"bytes={start + done}-{start + n_bytes - 1}",
            receive,
            n_bytes,
            progress=lambda: done,
        )
        return data, is_tagged

    def get(self, url, max_bytes=64 * 2**20):
        """Return a small text resource whole."""

        def receive(response):
            data = response.read(max_bytes + 1)
            if len(data) > max_bytes:
                raise RemoteError(f"{url} has more than {max_bytes} bytes.")
            length = as_size(response.headers.get("Content-Length"))
            if length is not None and len(data) < length:
                raise http.client.IncompleteRead(data)
            return data, response.headers

        return self._attempts(url, None, receive, min(max_bytes, 2**23))

    def _content_range(self, response, url, first):
        match = _CONTENT_RANGE.fullmatch(response.headers.get("Content-Range", ""))
        if match is None or int(match[1]) != first:
            raise RemoteError(
                f"{url} answered a range request with another range: download the "
                "file and open it from disk."
            )
        return int(match[3])

    def _attempts(self, url, byte_range, receive, n_bytes, progress=lambda: 0):
        seconds = self.patience + n_bytes / _LEAST_RATE
        host = urllib.parse.urlsplit(url).netloc.rpartition("@")[2]
        return within(
            seconds,
            f"{url} on {host}",
            lambda: self._until_received(url, byte_range, receive, progress, seconds),
        )

    def _until_received(self, url, byte_range, receive, progress, seconds):
        failures, had = 0, progress()
        give_up = time.monotonic() + seconds
        opener = urllib.request.build_opener(_Redirects)
        while True:
            wait = 0.0
            try:
                request = self._request(url, byte_range)
                with opener.open(request, timeout=self.timeout) as response:
                    return receive(response)
            except urllib.error.HTTPError as error:
                with error:
                    if error.code not in _RETRIED_STATUS:
                        raise _refused(url, error) from None
                    reason = f"HTTP {error.code} {str(error.reason)[:100]}"
                    wait = float(as_size(error.headers.get("Retry-After")) or 0)
            except (OSError, http.client.HTTPException) as error:
                reason = str(getattr(error, "reason", error)) or type(error).__name__
            except WeightFileError:
                raise
            except Exception as error:  # addresses and headers that are none
                raise RemoteError(
                    f"{url} answered with what cannot be used "
                    f"({type(error).__name__}: {str(error)[:200]}). Check the address."
                ) from None
            if progress() - had >= _LEAST_PROGRESS:
                failures, had = 0, progress()
            failures += 1
            if failures >= self.max_attempts or time.monotonic() > give_up:
                raise RemoteError(
                    f"{url} could not be read in {failures} attempts (last: "
                    f"{reason[:200]}). Check the address and the network and try again."
                ) from None
            # Spread out, lest all workers come back at once.
            wait = max(wait, self.backoff * 2 ** (failures - 1))
            time.sleep(min(wait, 10.0) * random.uniform(0.75, 1.0))

    def _request(self, url, byte_range):
        request = urllib.request.Request(url, headers={"User-Agent": "skprobex"})
        if byte_range is not None:
            request.add_header("Range", byte_range())
            # Ranges count bytes of the file, not of a compressed form of it.
            request.add_header("Accept-Encoding", "identity")
        if self.token:
            request.add_unredirected_header("Authorization", f"Bearer {self.token}")
        return request


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Follow redirects to the web only, and take the token no further than home."""

    max_redirections = 5

    def redirect_request(self, req, fp, code, msg, headers, newurl):
        check_redirect(req.full_url, newurl)
        kept = {k: v for k, v in req.headers.items() if k.lower() != "host"}
        request = urllib.request.Request(newurl, headers=kept, unverifiable=True)
        token = req.unredirected_hdrs.get("Authorization")
        if token and _origin(newurl) == _origin(req.full_url):
            request.add_unredirected_header("Authorization", token)
        return request

    def http_error_302(self, req, fp, code, msg, headers):
        try:
            return super().http_error_302(req, fp, code, msg, headers)
        except urllib.error.HTTPError:  # holds the connection itself
            raise
        except BaseException:
            fp.close()
            raise

    # Python 3.10 does not know the last.
    http_error_301 = http_error_303 = http_error_302
    http_error_307 = http_error_308 = http_error_302


def check_redirect(url, target):
    """Refuse a redirect out of the web, to a weaker scheme, or into a private network.

    A server on the internet has no business with what only this machine can reach.
    """
    old, new = urllib.parse.urlsplit(url), urllib.parse.urlsplit(target)
    if new.scheme not in ("http", "https") or (old.scheme, new.scheme) == (
        "https",
        "http",
    ):
        raise RemoteError(
            f"{url} redirects to {new.scheme[:20]}://, which is not followed: expected "
            f"an address of {old.scheme}://."
        )
    if _is_private(new.hostname) and not _is_private(old.hostname):
        raise RemoteError(
            f"{url} redirects to {new.netloc[:100]}, an address of a private network: "
            "that is not followed. Open that address itself if you trust it."
        )


def _origin(url):
    parts = urllib.parse.urlsplit(url)
    port = parts.port or {"http": 80, "https": 443}.get(parts.scheme)
    return parts.scheme, parts.hostname, port


def _is_private(host):
    """Whether a host has an address that is not of the internet."""
    try:
        found = {info[4][0] for info in socket.getaddrinfo(host, None)}
    except (OSError, UnicodeError):  # a proxy may know it
        return False
    addresses = [ipaddress.ip_address(text.partition("%")[0]) for text in found]
    return any(not address.is_global for address in addresses)


def as_size(text):
    """Parse a number of bytes or seconds that a server wrote; None if it is none."""
    text = (text or "").strip()
    is_number = text.isascii() and text.isdigit() and len(text) < 16
    return int(text) if is_number else None


def _tag(response):
    # A weak tag ("W/...") promises no equality of bytes, but does tell versions apart.
    return response.headers.get("ETag") or response.headers.get("Last-Modified") or ""


def is_strong(tag):
    """Whether equal tags promise equal bytes: no weak one, and no time of change."""
    return tag.startswith('"')


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
    return RemoteError(
        f"{url}: HTTP {error.code} {str(error.reason)[:100]}. {status_hint(error.code)}"
    )


def status_hint(code):
    """Say what to do about a status."""
    return {
        401: "The repository is private, gated, or does not exist: log in, or check "
        "its name.",
        403: "You may not read it: ask for access, or log in.",
        404: "There is no such file: check the address.",
        416: "The file is shorter than its header says: it is cut short.",
    }.get(code, "Check the address.")
