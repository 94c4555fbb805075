"""GitHub's REST API for self-hosted runners: credentials, paging, retries, and a sentence for each refusal.

Standard library only, Python 3.9: the modules of this role import it, `prepare` on the host carries a copy.
Secrets travel in headers, bodies and pipes; never in an argument list, never in a message.
"""

from __future__ import annotations

import base64
import http.client
import json
import os
import subprocess
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from email.message import Message
from typing import Any

TRIES = 4
PAGE = 100
#: After longer waits than this the error names the time instead.
LONGEST_WAIT_S = 60

RIGHTS = {
    "repository": "a classic token with scope repo, or a fine-grained token or GitHub App with "
    "Administration: write",
    "organization": "a classic token with scope admin:org, or a fine-grained token or GitHub App with "
    "Self-hosted runners: write on the organisation",
    "enterprise": "a classic token with scope manage_runners:enterprise (a GitHub App cannot do this)",
}


class ApiError(Exception):
    """GitHub refused or could not be reached. The message says what happened, where, and what to do next."""

    def __init__(self, message: str, status: int = 0) -> None:
        super().__init__(message)
        self.status = status


@dataclass(frozen=True)
class Scope:
    """Where runners are registered: one repository, organisation or enterprise on one GitHub."""

    url: str
    kind: str
    name: str
    api_override: str = ""

    @classmethod
    def of(cls, url: str, repository: str, organization: str, enterprise: str, api_url: str = "") -> Scope:
        """Return the one scope that is set. Raises ApiError when none or several are."""
        scopes = [
            (kind, name)
            for kind, name in (
                ("repository", repository),
                ("organization", organization),
                ("enterprise", enterprise),
            )
            if name
        ]
        if len(scopes) != 1:
            raise ApiError(
                "Set exactly one of github_runner_repository, github_runner_organization and "
                f"github_runner_enterprise; {len(scopes)} are set."
            )
        kind, name = scopes[0]
        if kind == "repository" and name.count("/") != 1:
            raise ApiError(f"github_runner_repository must be OWNER/NAME, not {name!r}.")
        return cls(url.rstrip("/"), kind, name, api_url.rstrip("/"))

    @classmethod
    def parse(cls, runner_url: str, api_url: str = "") -> Scope:
        """The scope that a configured runner's own URL names. Raises ApiError when it names none."""
        parts = urllib.parse.urlsplit(runner_url)
        base = f"{parts.scheme}://{parts.netloc}"
        names = [part for part in parts.path.split("/") if part]
        if len(names) == 2 and names[0] == "enterprises":
            return cls(base, "enterprise", names[1], api_url)
        if len(names) == 2:
            return cls(base, "repository", "/".join(names), api_url)
        if len(names) == 1:
            return cls(base, "organization", names[0], api_url)
        raise ApiError(f"{runner_url!r} names no repository, organisation or enterprise.")

    def is_at(self, url: str) -> bool:
        """Is this scope on the GitHub with this URL? Credentials are sent nowhere else."""
        own, parts = urllib.parse.urlsplit(self.url), urllib.parse.urlsplit(url)
        return (own.scheme, own.netloc.lower()) == (parts.scheme, parts.netloc.lower())

    @property
    def api_url(self) -> str:
        """The API's root: api.github.com, api.NAME.ghe.com, or /api/v3 on a GitHub Enterprise Server."""
        if self.api_override:
            return self.api_override
        parts = urllib.parse.urlsplit(self.url)
        if parts.netloc == "github.com" or parts.netloc.endswith(".ghe.com"):
            return f"{parts.scheme}://api.{parts.netloc}"
        return f"{self.url}/api/v3"

    @property
    def runner_url(self) -> str:
        """What config.sh takes as --url."""
        return f"{self.url}/{'enterprises/' if self.kind == 'enterprise' else ''}{self.name}"

    @property
    def path(self) -> str:
        """The scope's own path below the API's root."""
        quoted = urllib.parse.quote(self.name)
        return {"repository": "/repos/", "organization": "/orgs/", "enterprise": "/enterprises/"}[
            self.kind
        ] + quoted


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """Follows no redirect, which would send the credentials to another address."""

    def redirect_request(self, *_: Any) -> None:
        return None


def _base64url(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def sign_rs256(key_pem: str, message: bytes) -> bytes:
    """Sign with openssl; the key goes through a pipe, so it is in no argument list and on no disk."""
    read_end, write_end = os.pipe()
    try:
        os.write(write_end, key_pem.strip().encode() + b"\n")
        os.close(write_end)
        write_end = -1
        process = subprocess.run(
            ["openssl", "dgst", "-sha256", "-binary", "-sign", f"/dev/fd/{read_end}"],
            input=message,
            capture_output=True,
            pass_fds=[read_end],
            check=False,
        )
    except FileNotFoundError:
        raise ApiError(
            "openssl is missing; it signs the GitHub App's token. Install the package openssl."
        ) from None
    finally:
        os.close(read_end)
        if write_end >= 0:
            os.close(write_end)
    if process.returncode != 0:
        raise ApiError(
            "github_runner_app_key is not a private RSA key in PEM form without passphrase; "
            "generate one in the GitHub App's settings."
        )
    return process.stdout


def app_jwt(app_id: str, key_pem: str) -> str:
    """A token that speaks for the App for nine minutes (the limit is ten), back-dated for clock drift."""
    now = int(time.time())
    header = _base64url(json.dumps({"alg": "RS256", "typ": "JWT"}, separators=(",", ":")).encode())
    claims = {"iat": now - 60, "exp": now + 540, "iss": str(app_id)}
    signed = f"{header}.{_base64url(json.dumps(claims, separators=(',', ':')).encode())}"
    return f"{signed}.{_base64url(sign_rs256(key_pem, signed.encode()))}"


class GitHub:
    """The API of one scope with one credential: a PAT, or a GitHub App, or none (what anybody may ask)."""

    def __init__(
        self,
        scope: Scope,
        pat: str = "",
        app_id: str = "",
        app_installation_id: str = "",
        app_key: str = "",
        timeout_s: float = 30,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self.scope = scope
        self._pat = pat
        self._app_id = app_id
        self._installation = app_installation_id
        self._app_key = app_key
        self._installation_token = ""
        self._timeout_s = timeout_s
        self._sleep = sleep
        self._opener = urllib.request.build_opener(_NoRedirect)
        if self._app_id and scope.kind == "enterprise":
            raise ApiError(
                "A GitHub App cannot register runners of an enterprise. "
                "Use a classic PAT with scope manage_runners:enterprise in github_runner_pat."
            )

    @property
    def has_credentials(self) -> bool:
        """Whether requests carry a credential."""
        return bool(self._pat or self._app_id)

    # --- one request -------------------------------------------------------------------------------------

    def _authorization(self) -> str:
        if self._pat:
            return f"Bearer {self._pat}"
        if not self._app_id:
            return ""
        if not self._installation_token:
            jwt = f"Bearer {app_jwt(self._app_id, self._app_key)}"
            if not self._installation:
                installation = self._send("GET", f"{self.scope.path}/installation", authorization=jwt)
                self._installation = str(installation["id"])
            answer = self._send(
                "POST", f"/app/installations/{self._installation}/access_tokens", authorization=jwt
            )
            self._installation_token = answer["token"]
        return f"Bearer {self._installation_token}"

    def call(self, method: str, path: str, body: Mapping[str, Any] | None = None) -> Any:
        """One request with the scope's credential; the decoded answer, None when it has no body."""
        return self._send(method, path, body, self._authorization())

    def _send(
        self, method: str, path: str, body: Mapping[str, Any] | None = None, authorization: str = ""
    ) -> Any:
        headers = {
            "Accept": "application/vnd.github+json, application/json",
            "User-Agent": "train-classifier-github-runner",
            "X-GitHub-Api-Version": "2022-11-28",
        }
        if authorization:
            headers["Authorization"] = authorization
        data = None
        if body is not None:
            data = json.dumps(body).encode()
            headers["Content-Type"] = "application/json"
        url = self.scope.api_url + path
        problem = ""
        for attempt in range(1, TRIES + 1):
            request = urllib.request.Request(url, data=data, headers=headers, method=method)
            wait_s: float = 2 ** (attempt - 1)
            try:
                with self._opener.open(request, timeout=self._timeout_s) as response:
                    content = response.read()
                    return json.loads(content) if content else None
            except urllib.error.HTTPError as error:
                with error:
                    text = error.read(65536).decode(errors="replace")
                limited = error.code == 429 or (error.code == 403 and _is_rate_limit(error.headers, text))
                if limited:
                    wait_s = _rate_limit_wait_s(error.headers, wait_s)
                    if wait_s > LONGEST_WAIT_S:
                        until = time.strftime("%H:%M:%SZ", time.gmtime(time.time() + wait_s))
                        raise ApiError(
                            f"GitHub's rate limit is used up at {method} {url}; it opens again at {until}. "
                            "Run again then, or use a GitHub App (it has a limit of its own).",
                            error.code,
                        ) from None
                    problem = f"GitHub limits the rate of requests ({error.code})"
                elif error.code >= 500:
                    problem = f"GitHub answered {error.code}"
                else:
                    raise self._refusal(method, url, error.code, error.headers, text) from None
            except json.JSONDecodeError:
                problem = "the answer was not JSON (is github_runner_api_url an API, or a proxy's page?)"
            except (urllib.error.URLError, OSError, http.client.HTTPException) as error:
                problem = f"GitHub cannot be reached ({getattr(error, 'reason', error)})"
            if attempt < TRIES:
                self._sleep(wait_s)
        raise ApiError(
            f"{problem} at {method} {url}, {TRIES} times. See https://www.githubstatus.com, "
            "proxy and name service; then run again."
        )

    def _refusal(self, method: str, url: str, status: int, headers: Message, text: str) -> ApiError:
        at = f"at {method} {url}"
        needs = f"It needs {RIGHTS[self.scope.kind]}."
        message = _message(text)
        if status == 401:
            return ApiError(
                f"GitHub does not accept the credential (401 {message}) {at}: "
                f"it is mistyped, expired or revoked. Make a new one. {needs}",
                status,
            )
        if status == 403:
            scopes = headers.get("X-OAuth-Scopes")
            has = f" The token has the scopes: {scopes or 'none'}." if scopes is not None else ""
            return ApiError(f"The credential may not do this (403 {message}) {at}.{has} {needs}", status)
        if status == 404:
            return ApiError(
                f"GitHub says not found (404) {at}. It says so too when the token has expired or may not see "
                f"the {self.scope.kind} {self.scope.name!r}: check the name, then the token's expiry and "
                f"rights. {needs}",
                status,
            )
        if 300 <= status < 400:
            return ApiError(
                f"{self.scope.kind} {self.scope.name!r} has moved ({status}) {at}. Use its new name.", status
            )
        return ApiError(f"GitHub refused the request ({status} {message}) {at}.", status)

    def _pages(self, path: str, key: str) -> Iterator[dict[str, Any]]:
        page, count = 1, 0
        joint = "&" if "?" in path else "?"
        while True:
            answer = self.call("GET", f"{path}{joint}per_page={PAGE}&page={page}")
            entries = answer[key]
            yield from entries
            count += len(entries)
            if not entries or count >= answer["total_count"]:
                return
            page += 1

    # --- requests of the role ----------------------------------------------------------------------------

    def runners(self) -> list[dict[str, Any]]:
        """Every registered runner, all pages; each once, also when the list moves while it is read."""
        return list(
            {
                runner["id"]: runner
                for runner in self._pages(f"{self.scope.path}/actions/runners", "runners")
            }.values()
        )

    def find(self, name: str) -> dict[str, Any] | None:
        """The runner of this name (GitHub compares without regard to case), or None."""
        return next((r for r in self.runners() if r["name"].casefold() == name.casefold()), None)

    def registration_token(self) -> str:
        """Return a new token for config.sh, which lasts an hour. Raises ApiError."""
        return str(self.call("POST", f"{self.scope.path}/actions/runners/registration-token")["token"])

    def remove_token(self) -> str:
        """Return a new token for config.sh remove, which lasts an hour. Raises ApiError."""
        return str(self.call("POST", f"{self.scope.path}/actions/runners/remove-token")["token"])

    def delete(self, runner_id: int) -> bool:
        """Remove an entry; False when it was gone already."""
        try:
            self.call("DELETE", f"{self.scope.path}/actions/runners/{runner_id}")
        except ApiError as error:
            if error.status == 404:
                return False
            raise
        return True

    def set_labels(self, runner_id: int, labels: list[str]) -> None:
        """Make these the runner's custom labels; the read-only ones stay."""
        path = f"{self.scope.path}/actions/runners/{runner_id}/labels"
        if labels:
            self.call("PUT", path, {"labels": labels})
        else:
            self.call("DELETE", path)

    def downloads(self) -> list[dict[str, Any]]:
        """Return the archives of the runner that the scope may download. Raises ApiError."""
        answer: list[dict[str, Any]] = self.call("GET", f"{self.scope.path}/actions/runners/downloads")
        return answer

    def just_in_time(self, name: str, group_id: int, labels: list[str]) -> tuple[int, str]:
        """The id and configuration of a runner for one job. Raises ApiError, status 409 for a taken name."""
        answer = self.call(
            "POST",
            f"{self.scope.path}/actions/runners/generate-jitconfig",
            {"name": name, "runner_group_id": group_id, "labels": labels, "work_folder": "_work"},
        )
        return int(answer["runner"]["id"]), str(answer["encoded_jit_config"])

    def groups(self) -> list[dict[str, Any]]:
        """Runner groups of an organisation or enterprise; a repository has none."""
        if self.scope.kind == "repository":
            return []
        return list(self._pages(f"{self.scope.path}/actions/runner-groups", "runner_groups"))

    def group(self, name: str) -> dict[str, Any] | None:
        """The named group, or the default one for an empty name. Raises ApiError for an unknown name."""
        groups = self.groups()
        for group in groups:
            if group["name"] == name or (not name and group.get("default")):
                return group
        if name:
            names = ", ".join(sorted(g["name"] for g in groups)) or "none"
            raise ApiError(
                f"{self.scope.kind} {self.scope.name!r} has no runner group {name!r}; it has: {names}. "
                "Make the group or correct github_runner_group."
            )
        return None

    def public_reason(self, group_name: str) -> str:
        """Why strangers' code could reach a runner here, or an empty string.

        Without a credential a repository that anybody can read is public; an organisation is unknown.
        """
        if self.scope.kind == "repository":
            try:
                repository = self.call("GET", self.scope.path)
            except ApiError as error:
                if not self.has_credentials and error.status in (401, 403, 404):
                    return ""
                raise
            if repository["private"]:
                return ""
            return f"The repository {self.scope.name} is public"
        if not self.has_credentials:
            name = f"the runner group {group_name!r}" if group_name else "the default runner group"
            return (
                f"A registration token cannot tell whether {name} of {self.scope.name} is open to public "
                "repositories"
            )
        group = self.group(group_name)
        if group and group.get("allows_public_repositories"):
            return f"The runner group {group['name']!r} of {self.scope.name} is open to public repositories"
        return ""


def is_own(runner: Mapping[str, Any], runner_id: int, host_label: str) -> bool:
    """Is this entry, found by the name of root's record, the one that the record means?

    A record without an id (of an older release, or of a registration that was interrupted) means the entry of
    that name that carries this host's label.
    """
    if runner_id:
        return bool(runner["id"] == runner_id)
    return host_label in [label["name"] for label in runner["labels"]]


def _is_rate_limit(headers: Message, text: str) -> bool:
    return (
        headers.get("X-RateLimit-Remaining") == "0"
        or headers.get("Retry-After") is not None
        or "rate limit" in text.lower()
    )


def _rate_limit_wait_s(headers: Message, otherwise: float) -> float:
    after = headers.get("Retry-After", "")
    if after.isdigit():
        return float(after)
    reset = headers.get("X-RateLimit-Reset", "")
    if headers.get("X-RateLimit-Remaining") == "0" and reset.isdigit():
        return max(1.0, float(reset) - time.time())
    return otherwise


def archive_name(version: str, architecture: str) -> str:
    """Return the file name of a release of the runner."""
    return f"actions-runner-linux-{architecture}-{version}.tar.gz"


def release(releases_url: str, architecture: str, version: str = "") -> dict[str, str]:
    """Version, url, filename and SHA-256 of a release (the newest without a version). Needs no credential."""
    public = GitHub(Scope(releases_url, "repository", "actions/runner", releases_url.rstrip("/")))
    which = f"tags/v{version}" if version else "latest"
    answer = public.call("GET", f"/repos/actions/runner/releases/{which}")
    try:
        offered = str(answer["tag_name"]).removeprefix("v")
        name = archive_name(offered, architecture)
        for asset in answer["assets"]:
            if asset["name"] == name:
                digest = str(asset.get("digest") or "")
                return {
                    "version": offered,
                    "url": str(asset["browser_download_url"]),
                    "filename": name,
                    "sha256": digest.removeprefix("sha256:") if digest.startswith("sha256:") else "",
                }
    except (KeyError, TypeError, AttributeError):
        raise ApiError(
            f"{releases_url} does not answer as GitHub's API (github_runner_releases_url)."
        ) from None
    raise ApiError(f"The release {offered} of GitHub's runner has no {name} at {releases_url}.")


def _message(text: str) -> str:
    """Return GitHub's own message on one short line."""
    try:
        message = json.loads(text)["message"]
    except (ValueError, KeyError, TypeError):
        message = text
    return " ".join(str(message).split())[:200]
