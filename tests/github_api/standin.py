"""A stand-in for GitHub's runner API that remembers: names, tokens with an age, pages, labels, refusals, 5xx.

It answers under / (as api.github.com does) and /api/v3 (as a GitHub Enterprise Server does). What a real
runner does with GitHub's pipeline service is stood in for by /_runner/*; the runner archive made by
`archive.py` speaks to that. Run `python -m github_api.standin PORT` in tests/`, or use `StandIn` in a test.
"""

import base64
import contextlib
import hashlib
import itertools
import json
import re
import subprocess
import sys
import threading
import time
import urllib.parse
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

SCOPE = r"(?P<scope>repos/[^/]+/[^/]+|orgs/[^/]+|enterprises/[^/]+)"


class Refused(Exception):
    """An answer that is not a success."""

    def __init__(self, status: int, message: str, headers: dict[str, str] | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.headers = headers or {}


class State:
    """What GitHub knows. Tests read and change it directly, under `lock` where that matters."""

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self.ids = itertools.count(1)
        self.runners: dict[str, dict[int, dict[str, Any]]] = {}
        self.tokens: dict[str, tuple[str, str, float]] = {}  # token -> (scope, kind, expiry)
        self.pats: dict[str, str] = {
            "pat-good": "repo, admin:org, manage_runners:enterprise",
            "pat-weak": "read:org",
        }
        self.installation_tokens: set[str] = set()
        self.app_public_key = ""
        self.app_id = "1234"
        self.public: set[str] = set()
        self.groups: list[dict[str, Any]] = [
            {"id": 1, "name": "Default", "default": True, "allows_public_repositories": False},
            {"id": 7, "name": "gpus", "default": False, "allows_public_repositories": False},
            {"id": 8, "name": "open", "default": False, "allows_public_repositories": True},
        ]
        self.jit: dict[str, tuple[str, int]] = {}
        self.archives: dict[str, bytes] = {}  # file name -> what is served
        self.downloads: list[dict[str, Any]] = []
        self.failures: list[tuple[str, int, int, dict[str, str]]] = []  # pattern, status, times left, headers
        self.log: list[str] = []
        self.ended_jobs: list[str] = []
        self.config_arguments: list[list[str]] = []
        self.requests: list[tuple[str, str]] = []  # "METHOD path", Authorization

    def fail(self, pattern: str, status: int, times: int = 1, headers: dict[str, str] | None = None) -> None:
        """Answer the next `times` requests whose "METHOD path" matches with `status`."""
        self.failures.append((pattern, status, times, headers or {}))

    def add_runner(
        self, scope: str, name: str, labels: list[str], status: str = "offline", **more: Any
    ) -> dict[str, Any]:
        with self.lock:
            runner = {
                "id": next(self.ids),
                "name": name,
                "os": "linux",
                "status": status,
                "busy": False,
                "labels": [
                    {
                        "id": 0,
                        "name": n,
                        "type": "read-only" if n in ("self-hosted", "Linux", "X64") else "custom",
                    }
                    for n in labels
                ],
                "ephemeral": False,
                **more,
            }
            self.runners.setdefault(scope, {})[runner["id"]] = runner
            return runner

    def named(self, scope: str, name: str) -> dict[str, Any] | None:
        return next(
            (r for r in self.runners.get(scope, {}).values() if r["name"].lower() == name.lower()), None
        )

    def mint(self, scope: str, kind: str, lasts_s: float = 3600) -> str:
        token = f"{kind}-secret-{next(self.ids)}"
        self.tokens[token] = (scope, kind, time.time() + lasts_s)
        return token

    def serve_archive(self, name: str, content: bytes) -> None:
        """Offer an archive, with its true checksum, as the current one."""
        self.archives[name] = content
        version = name.removesuffix(".tar.gz").rsplit("-", 1)[1]
        self.downloads = [
            {
                "os": "linux",
                "architecture": "x64",
                "filename": name,
                "version": version,
                "sha256_checksum": hashlib.sha256(content).hexdigest(),
            }
        ]


class StandIn:
    """The server and its state, for use as a context manager. `url` is as containers of this machine see it."""

    def __init__(self, address: str = "0.0.0.0", port: int = 0) -> None:
        self.state = State()
        state = self.state

        class Handler(_Handler):
            pass

        Handler.state = state
        self.server = ThreadingHTTPServer((address, port), Handler)
        self.port = self.server.server_address[1]

    def __enter__(self) -> "StandIn":
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.server.shutdown()
        self.server.server_close()


class _Handler(BaseHTTPRequestHandler):
    state: State
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        return

    def _answer(self) -> None:
        path, _, query = self.path.partition("?")
        path = path.removeprefix("/api/v3")
        self.query = dict(urllib.parse.parse_qsl(query))
        size = int(self.headers.get("Content-Length") or 0)
        raw = self.rfile.read(size)
        body = json.loads(raw) if raw else {}
        state = self.state
        try:
            with state.lock:
                state.log.append(f"{self.command} {path}")
                state.requests.append((f"{self.command} {path}", self.headers.get("Authorization") or ""))
                self._raise_failure(f"{self.command} {path}")
                for method, pattern, handle in ROUTES:
                    match = re.fullmatch(pattern, path)
                    if match and method == self.command:
                        status, content = handle(self, body, **match.groupdict())
                        break
                else:
                    raise Refused(404, "Not Found")
        except Refused as refusal:
            self._reply(refusal.status, {"message": str(refusal)}, refusal.headers)
        else:
            self._reply(status, content)

    do_GET = do_POST = do_PUT = do_DELETE = _answer

    def _raise_failure(self, request: str) -> None:
        for index, (pattern, status, times, headers) in enumerate(self.state.failures):
            if re.search(pattern, request):
                more = times - 1
                self.state.failures[index : index + 1] = [(pattern, status, more, headers)] if more else []
                raise Refused(status, "Server Error" if status >= 500 else "refused by the test", headers)

    def _reply(self, status: int, content: Any, headers: dict[str, str] | None = None) -> None:
        data = (
            content
            if isinstance(content, bytes)
            else b""
            if content is None
            else json.dumps(content).encode()
        )
        self.send_response(status)
        kind = "application/octet-stream" if isinstance(content, bytes) else "application/json; charset=utf-8"
        self.send_header("Content-Type", kind)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    # --- permissions -----------------------------------------------------------------------------------------

    def _bearer(self) -> str:
        return (self.headers.get("Authorization") or "").partition(" ")[2]

    def _admin(self, scope: str) -> None:
        """As GitHub does: an unknown token is 401, an expired one on a private thing 404, a weak one 403."""
        token = self._bearer()
        if token in self.state.installation_tokens:
            if scope.startswith("enterprises"):
                raise Refused(403, "Resource not accessible by integration")
            return
        if token == "pat-expired":
            raise Refused(404, "Not Found")
        if token not in self.state.pats:
            raise Refused(401, "Bad credentials")
        scopes = self.state.pats[token]
        required = {"repos": "repo", "orgs": "admin:org", "enterprises": "manage_runners:enterprise"}[
            scope.split("/")[0]
        ]
        if required not in scopes.split(", "):
            raise Refused(403, "Must have admin rights to Repository.", {"X-OAuth-Scopes": scopes})

    def _app(self) -> None:
        """A JWT signed by the App's key; the signature is checked for real, by openssl."""
        head, _, signature = self._bearer().rpartition(".")
        padded = signature + "=" * (-len(signature) % 4)
        claims = (
            json.loads(base64.urlsafe_b64decode(head.split(".")[1] + "==")) if head.count(".") == 1 else {}
        )
        key = Path(self.state.app_public_key)
        sig = key.with_suffix(f".{threading.get_ident()}.sig")
        sig.write_bytes(base64.urlsafe_b64decode(padded))
        good = subprocess.run(
            ["openssl", "dgst", "-sha256", "-verify", key, "-signature", sig],
            input=head.encode(),
            capture_output=True,
        )
        sig.unlink()
        now = time.time()
        if (
            good.returncode
            or claims.get("iss") != self.state.app_id
            or not claims["iat"] <= now < claims["exp"] <= now + 600
        ):
            raise Refused(401, "A JSON web token could not be decoded")

    def _redeem(self, body: dict[str, Any], kind: str) -> str:
        """A registration or remove token, as config.sh hands it in: expired ones are answered with 404."""
        token = (self.headers.get("Authorization") or "").removeprefix("RemoteAuth ")
        scope, its_kind, expiry = self.state.tokens.get(token, ("", "", 0.0))
        requested = urllib.parse.urlsplit(body["url"]).path.strip("/")
        plain = scope.partition("/")[2] if not scope.startswith("enterprises") else scope
        if its_kind != kind or expiry < time.time() or plain != requested:
            raise Refused(404, "Not Found")
        return scope

    # --- answers -----------------------------------------------------------------------------------------

    def repository(self, body: Any, scope: str) -> tuple[int, Any]:
        public = scope in self.state.public
        if self._bearer() or not public:
            if not self._bearer():
                raise Refused(404, "Not Found")
            self._admin(scope)
        return 200, {"full_name": scope[6:], "private": not public}

    def installation(self, body: Any, scope: str) -> tuple[int, Any]:
        self._app()
        return 200, {"id": 99}

    def access_token(self, body: Any, installation: str) -> tuple[int, Any]:
        self._app()
        if installation != "99":
            raise Refused(404, "Not Found")
        token = f"ghs-secret-{next(self.state.ids)}"
        self.state.installation_tokens.add(token)
        return 201, {"token": token, "expires_at": "2099-01-01T00:00:00Z"}

    def list_runners(self, body: Any, scope: str) -> tuple[int, Any]:
        self._admin(scope)
        runners = list(self.state.runners.get(scope, {}).values())
        size = min(100, int(self.query.get("per_page", "30")))
        start = (int(self.query.get("page", "1")) - 1) * size
        return 200, {"total_count": len(runners), "runners": runners[start : start + size]}

    def list_groups(self, body: Any, scope: str) -> tuple[int, Any]:
        self._admin(scope)
        return 200, {"total_count": len(self.state.groups), "runner_groups": self.state.groups}

    def token(self, body: Any, scope: str, kind: str) -> tuple[int, Any]:
        self._admin(scope)
        return 201, {"token": self.state.mint(scope, kind), "expires_at": "2099-01-01T00:00:00Z"}

    def delete_runner(self, body: Any, scope: str, runner: str) -> tuple[int, Any]:
        self._admin(scope)
        if int(runner) not in self.state.runners.get(scope, {}):
            raise Refused(404, "Not Found")
        del self.state.runners[scope][int(runner)]
        return 204, None

    def put_labels(self, body: Any, scope: str, runner: str) -> tuple[int, Any]:
        self._admin(scope)
        entry = self.state.runners.get(scope, {}).get(int(runner))
        if entry is None:
            raise Refused(404, "Not Found")
        fixed = [label for label in entry["labels"] if label["type"] == "read-only"]
        custom = [{"id": 0, "name": name, "type": "custom"} for name in body.get("labels", [])]
        entry["labels"] = fixed + custom
        return 200, {"total_count": len(entry["labels"]), "labels": entry["labels"]}

    def list_downloads(self, body: Any, scope: str) -> tuple[int, Any]:
        self._admin(scope)
        base = f"http://{self.headers['Host']}/_archive/"
        return 200, [{**d, "download_url": base + d["filename"]} for d in self.state.downloads]

    def jit_config(self, body: Any, scope: str) -> tuple[int, Any]:
        self._admin(scope)
        if self.state.named(scope, body["name"]):
            raise Refused(409, "Already exists - A runner with the name already exists.")
        if not 1 <= len(body["labels"]) <= 100 or not isinstance(body["runner_group_id"], int):
            raise Refused(422, "Validation Failed")
        runner = self.state.add_runner(scope, body["name"], body["labels"], ephemeral=True, jit=True)
        config = base64.b64encode(f"jit-secret-{next(self.state.ids)}".encode()).decode()
        self.state.jit[config] = (scope, runner["id"])
        return 201, {"runner": runner, "encoded_jit_config": config}

    def latest_release(self, body: Any, which: str) -> tuple[int, Any]:
        """The public releases of github.com/actions/runner: anybody may ask."""
        name, content = list(self.state.archives.items())[-1]
        version = name.removesuffix(".tar.gz").rsplit("-", 1)[1]
        if which not in ("latest", f"tags/v{version}"):
            raise Refused(404, "Not Found")
        asset = {
            "name": name,
            "browser_download_url": f"http://{self.headers['Host']}/_archive/{name}",
            "digest": f"sha256:{hashlib.sha256(content).hexdigest()}",
        }
        return 200, {"tag_name": f"v{version}", "assets": [asset]}

    def archive(self, body: Any, name: str) -> tuple[int, Any]:
        if name not in self.state.archives:
            raise Refused(404, "Not Found")
        return 200, self.state.archives[name]

    def redeem_registration(self, body: Any) -> tuple[int, Any]:
        """config.sh: exchange the token and add the runner (the real one does the second at another service)."""
        scope = self._redeem(body, "registration")
        self.state.config_arguments.append(body["arguments"])
        existing = self.state.named(scope, body["name"])
        if existing and not body["replace"]:
            raise Refused(409, f"A runner exists with the same name {body['name']}.")
        if existing:
            del self.state.runners[scope][existing["id"]]
        fixed = [] if body["no_default_labels"] else ["self-hosted", "Linux", "X64"]
        runner = self.state.add_runner(
            scope, body["name"], fixed + body["labels"], ephemeral=body["ephemeral"], group=body["group"]
        )
        return 200, {"id": runner["id"]}

    def redeem_removal(self, body: Any) -> tuple[int, Any]:
        scope = self._redeem(body, "remove")
        self.state.runners.get(scope, {}).pop(body["id"], None)
        return 200, {}

    def session(self, body: Any) -> tuple[int, Any]:
        """The listener comes online (`status`: online, offline or done, for one that takes a single job)."""
        if body.get("jit"):
            if body["jit"] not in self.state.jit:
                raise Refused(404, "Not Found")
            scope, runner_id = self.state.jit[body["jit"]]
        else:
            path = urllib.parse.urlsplit(body["url"]).path.strip("/")
            scope = next((s for s in self.state.runners if s in (f"repos/{path}", f"orgs/{path}", path)), "")
            runner_id = body["id"]
        runner = self.state.runners.get(scope, {}).get(runner_id)
        if runner is None:
            raise Refused(404, "The runner registration has been deleted from the server")
        if body["status"] == "done":
            del self.state.runners[scope][runner_id]
            self.state.ended_jobs.append(runner["name"])
        else:
            runner["status"] = body["status"]
        return 200, {"name": runner["name"]}


ROUTES = [
    ("GET", r"/repos/actions/runner/releases/(?P<which>.+)", _Handler.latest_release),
    ("GET", r"/(?P<scope>repos/[^/]+/[^/]+)", _Handler.repository),
    ("GET", rf"/{SCOPE}/installation", _Handler.installation),
    ("POST", r"/app/installations/(?P<installation>\d+)/access_tokens", _Handler.access_token),
    ("GET", rf"/{SCOPE}/actions/runners", _Handler.list_runners),
    ("GET", rf"/{SCOPE}/actions/runner-groups", _Handler.list_groups),
    ("POST", rf"/{SCOPE}/actions/runners/(?P<kind>registration|remove)-token", _Handler.token),
    ("DELETE", rf"/{SCOPE}/actions/runners/(?P<runner>\d+)", _Handler.delete_runner),
    ("PUT", rf"/{SCOPE}/actions/runners/(?P<runner>\d+)/labels", _Handler.put_labels),
    ("DELETE", rf"/{SCOPE}/actions/runners/(?P<runner>\d+)/labels", _Handler.put_labels),
    ("GET", rf"/{SCOPE}/actions/runners/downloads", _Handler.list_downloads),
    ("POST", rf"/{SCOPE}/actions/runners/generate-jitconfig", _Handler.jit_config),
    ("GET", r"/_archive/(?P<name>[^/]+)", _Handler.archive),
    ("POST", r"/actions/runner-registration", _Handler.redeem_registration),
    ("POST", r"/_runner/remove", _Handler.redeem_removal),
    ("POST", r"/_runner/session", _Handler.session),
]


@contextlib.contextmanager
def running(port: int = 0) -> Iterator[StandIn]:
    """A stand-in that listens on every address, so that containers reach it."""
    with StandIn(port=port) as standin:
        yield standin


if __name__ == "__main__":
    from github_api.archive import make_archive

    with running(int(sys.argv[1])) as server:
        server.state.serve_archive("actions-runner-linux-x64-2.336.0.tar.gz", make_archive("2.336.0"))
        print(f"http://0.0.0.0:{server.port}", flush=True)
        threading.Event().wait()
