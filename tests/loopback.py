"""A server on this machine, with ranges, a small hub, and faults on demand."""

import hashlib
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from time import sleep
from urllib.parse import parse_qs, unquote, urlsplit

COMMIT = "a" * 40


class Loopback:
    """Serves `files` by path, and counts what it sends.

    `faults` are met one per request of a file: an int is a status; ("drop", n)
    closes the connection after n bytes of the body; ("drip", s) sends a byte every s
    seconds. `headers` replace those of the answers (None leaves one out), `redirects`
    lead from paths elsewhere, `statuses` are those of paths, `delay` is how long each
    answer takes, and `cards` are what model cards of repositories say.
    """

    def __init__(self):
        self.files = {}
        self.repositories = {}
        self.answers = {}
        self.faults = []
        self.headers = {}
        self.redirects = {}
        self.cards = {}
        self.statuses = {}
        self.delay = 0.0
        self.ranges = True
        self.n_bytes = 0
        self.requests = []
        self.authorizations = []
        self.lock = threading.Lock()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,))
        self._thread.start()

    def close(self):
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def reset(self):
        self.n_bytes, self.requests = 0, []

    def add_repository(self, name, folder, kind="models", card=None):
        """Put a folder's files on the hub."""
        self.cards[name] = card or {}
        paths = sorted(path for path in folder.rglob("*") if path.is_file())
        names = [path.relative_to(folder).as_posix() for path in paths]
        self.repositories[f"/api/{kind}/{name}"] = names
        prefix = "" if kind == "models" else f"{kind}/"
        for file, path in zip(names, paths, strict=True):
            url = f"/{prefix}{name}/resolve/{COMMIT}/{file}"
            self.files[url] = path.read_bytes()

    def describe(self, path):
        """What the hub says of the repository at a path of its API."""
        name = path.removeprefix("/api/models/").removeprefix("/api/datasets/")
        card = self.cards.get(name, {})
        described = {"id": name, "sha": COMMIT, "cardData": card}
        described["tags"] = card.get("tags", [])
        siblings = [{"rfilename": file} for file in self.repositories[path]]
        return {**described, "siblings": siblings}

    def list_models(self, query):
        """What the hub says of the repositories that a query finds."""
        author, search = query.get("author", [""])[0], query.get("search", [""])[0]
        found = []
        for path in self.repositories:
            described = self.describe(path)
            tags = set(described["tags"])
            if (
                path.startswith("/api/models/")
                and described["id"].startswith(f"{author}/" if author else "")
                and search in described["id"]
                and set(query.get("filter", [])) <= tags
            ):
                found.append(described)
        return found[: int(query.get("limit", ["100"])[0])]

    def _handler(loopback):
        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *_):
                pass

            def do_GET(self):
                path = unquote(urlsplit(self.path).path)
                if path == "/api/agent-harnesses":  # the hub's client's own business
                    return self._send(404, b"", {})
                with loopback.lock:
                    loopback.requests.append((path, self.headers.get("Range")))
                    loopback.authorizations.append(self.headers.get("Authorization"))
                if path in loopback.answers:
                    return self._send(200, loopback.answers[path], {})
                if loopback.delay:
                    sleep(loopback.delay)
                if path in loopback.statuses:
                    return self._send(loopback.statuses[path], b"", {})
                if path in loopback.redirects:
                    target = loopback.redirects[path]
                    return self._send(307, b"", {"Location": target})
                name = path.split("/revision/")[0]
                if name in loopback.repositories:
                    body = json.dumps(loopback.describe(name))
                    return self._send(200, body.encode(), {})
                if path == "/api/models":
                    query = parse_qs(urlsplit(self.path).query)
                    body = json.dumps(loopback.list_models(query))
                    return self._send(200, body.encode(), {})
                if path not in loopback.files:
                    return self._send(404, b"", {})
                with loopback.lock:
                    fault = loopback.faults.pop(0) if loopback.faults else None
                if isinstance(fault, int):
                    return self._send(fault, b"no", {})
                self._file(loopback.files[path], fault)

            def _file(self, data, fault):
                headers = {"ETag": f'"{hashlib.md5(data).hexdigest()}"'}
                wanted, status = self.headers.get("Range"), 200
                body = data
                if wanted and loopback.ranges:
                    first, last = wanted.removeprefix("bytes=").split("-")
                    first, last = int(first), min(int(last), len(data) - 1)
                    if first >= len(data):
                        return self._send(416, b"", {})
                    body, status = data[first : last + 1], 206
                    headers["Content-Range"] = f"bytes {first}-{last}/{len(data)}"
                self._send(status, body, headers, fault)

            def _send(self, status, body, headers, fault=None):
                self.send_response(status)
                length = {"Content-Length": str(len(body))}
                for key, value in {**length, **headers, **loopback.headers}.items():
                    if value is not None:
                        self.send_header(key, value)
                self.end_headers()
                if fault is not None and fault[0] == "drip":
                    return self._drip(body, fault[1])
                if fault is not None:
                    body = body[: fault[1]]
                    self.close_connection = True
                # Counted first: the client goes on once it has them.
                with loopback.lock:
                    loopback.n_bytes += len(body)
                try:
                    self.wfile.write(body)
                except OSError:  # the client has had enough
                    self.close_connection = True

            def _drip(self, body, seconds):
                self.close_connection = True
                for i in range(len(body)):
                    try:
                        self.wfile.write(body[i : i + 1])
                    except OSError:
                        return
                    with loopback.lock:
                        loopback.n_bytes += 1
                    sleep(seconds)

        return Handler
