"""Building an environment in a container: what uv is told, what it may reach, and what its failures mean."""

import dataclasses
import json
import os
import re
from pathlib import Path
from typing import Any, Callable, NoReturn, Optional

from train_classifier.errors import NoEnvironment
from train_classifier.worker import engine, place, requirements
from train_classifier.worker import image as images
from train_classifier.worker.host import Account, Host
from train_classifier.worker.image import MARK, Image
from train_classifier.worker.store import Job, Store, read_json

BUILD_TIMEOUT_S = 3600.0
#: Where a build finds its folder beside uv's cache, uv, and the host's CA bundle.
BUILDS = "/train-classifier/build"
UV = "/train-classifier/uv"
CA = "/train-classifier/ca.pem"


@dataclasses.dataclass(frozen=True)
class Plan:
    """What an environment is to hold."""

    lines: tuple[str, ...]
    constraints: tuple[str, ...]
    #: The image's frameworks and NumPy: constraints that name the image's side of a conflict.
    frozen: tuple[str, ...]
    options: tuple[str, ...]
    #: Local packages, relative to the workspace.
    paths: tuple[str, ...]
    workspace: Path
    #: Environment of the build.
    variables: dict[str, str]
    #: The program that runs in the image.
    source: str

    def definition(self) -> dict[str, Any]:
        """Return the part of an environment's definition that the model's files make up."""
        return {
            "lines": sorted(self.lines),
            "constraints": sorted([*self.constraints, *self.frozen]),
            "options": list(self.options),
            "paths": requirements.digest_of_paths(self.workspace, self.paths) if self.paths else "",
        }


def find_nearest(store: Store, defined: dict[str, Any]) -> Optional[Path]:
    """Return the environment that has the most of what is wanted and nothing else.

    It may be cleaned before it is used: the build then starts from nothing.
    """
    best: Optional[Path] = None
    most = 0
    for path in store.envs.glob("[0-9a-f]*/environment.json"):
        record = read_json(path) or {}
        other = record.get("definition", {})
        same = all(other.get(key) == defined[key] for key in defined if key != "lines")
        lines = other.get("lines", [])
        if same and not defined["paths"] and set(lines) < set(defined["lines"]) and len(lines) > most:
            best, most = path.parent, len(lines)
    return best


def build(
    client: Any,
    host: Host,
    store: Store,
    image: Image,
    plan: Plan,
    folder: Path,
    nearest: Optional[Path],
    account: Account,
    job: Optional[Job],
    say: Callable[[str], None],
    check_cancel: Callable[[], None],
) -> dict[str, str]:
    """Make `folder`/site, and return the packages in it by name. Raises NoEnvironment in uv's own words."""
    inside = f"{BUILDS}/{folder.name}"
    ours = f"{inside}/{place.OURS}"
    orders = {
        "uv": UV,
        "site": f"{inside}/site",
        "requirements": f"{ours}/requirements.txt",
        "constraints": f"{ours}/constraints.txt",
        "repository": f"{inside}/{place.REPOSITORY}",
    }
    files = {
        "plan.json": json.dumps(orders),
        "requirements.txt": "\n".join([*plan.options, *plan.lines, ""]),
        "constraints.txt": "\n".join([*plan.constraints, *plan.frozen, ""]),
    }
    netrc = _netrc()
    if netrc.is_file():
        # A copy, since the account that builds cannot read the caller's own when that is root.
        files["netrc"] = netrc.read_text(encoding="utf-8", errors="surrogateescape")
    place.make(
        account,
        {
            "folder": str(folder),
            "nearest": f"{nearest}/site" if nearest else None,
            "files": files,
            "paths": list(plan.paths),
            "workspace": str(plan.workspace),
        },
    )
    count = len(plan.lines)
    say(
        f"installing {count} requirement{'s' if count != 1 else ''}"
        + (" over a similar environment" if nearest else "")
    )
    try:
        status, output = engine.run_helper(
            client,
            image.id,
            [],
            entrypoint=[image.python, "-c", plan.source, f"{ours}/plan.json"],
            user=account,
            mounts=_mounts(host, store),
            environment=_environment(host, plan, f"{ours}/netrc" if "netrc" in files else None),
            labels={**images.labels("build", job), images.PLACE: str(folder)},
            timeout=BUILD_TIMEOUT_S,
            say=say,
            check_cancel=check_cancel,
        )
    except TimeoutError as error:
        raise NoEnvironment(f"the requirements were not installed within {BUILD_TIMEOUT_S:.0f} s") from error
    if status == 0:
        for line in reversed(output.splitlines()):
            if line.startswith(MARK):
                packages: dict[str, str] = json.loads(line[len(MARK) :])
                return packages
    return explain(image, plan, status, output.decode("utf-8", "replace"))


def _mounts(host: Host, store: Store) -> list[Any]:
    from docker.types import Mount

    mounts = [
        Mount(BUILDS, str(store.builds), type="bind"),
        Mount(UV, str(host.uv), type="bind", read_only=True),
    ]
    if host.ca_bundle is not None:
        mounts.append(Mount(CA, str(host.ca_bundle), type="bind", read_only=True))
    return mounts


def _netrc() -> Path:
    """Return the caller's netrc: passwords of private indexes."""
    return Path(os.environ.get("NETRC") or os.path.expanduser("~/.netrc"))


def _environment(host: Host, plan: Plan, netrc: Optional[str]) -> dict[str, str]:
    variables = {
        **plan.variables,
        "HOME": "/tmp",
        "UV_CACHE_DIR": f"{BUILDS}/uv-cache",
        "UV_NO_CONFIG": "1",
        "UV_PYTHON_DOWNLOADS": "never",
        "PYTHONDONTWRITEBYTECODE": "1",
        "NO_COLOR": "1",
    }
    if host.ca_bundle is not None:
        variables.update(SSL_CERT_FILE=CA)
    if netrc is not None:
        variables.update(NETRC=netrc)
    return variables


def explain(image: Image, plan: Plan, status: int, output: str) -> NoReturn:
    """Raise NoEnvironment: what uv said, and for a conflict which side is the image's."""
    lines = [line.rstrip() for line in output.splitlines()]
    start = next((number for number, line in enumerate(lines) if line.startswith("error:")), 0)
    detail = "\n".join(lines[start:][-40:]).strip()
    sentence = " ".join(part.strip() for part in lines[start:])
    if re.search(r"valid authentication credentials|401 Unauthorized|403 Forbidden", sentence):
        raise NoEnvironment(
            "the package index wants a login, or another one",
            "put it into ~/.netrc of your account on the host: machine NAME login NAME password WORD",
            detail,
        )
    unknown = re.findall(r"[Bb]ecause (\S+) was not found in the package registry", sentence)
    if unknown:
        raise NoEnvironment(
            f"requirement {', '.join(dict.fromkeys(unknown))} is not in the package index (requirements.txt)",
            "correct the name in requirements.txt",
            detail,
        )
    clashing = [
        pin
        for pin in plan.frozen
        if re.search(rf"(?<![\w.-]){re.escape(pin.partition('==')[0])}(?![\w-])", sentence)
    ]
    pins = ", ".join(clashing)
    if "No solution found" in sentence and clashing:
        raise NoEnvironment(
            f"requirements.txt and the image {image.reference} disagree: the image's own {pins} "
            "cannot be replaced",
            f"ask in requirements.txt for versions that work with {pins}, or choose another --image",
            detail,
        )
    if "No solution found" in sentence:
        raise NoEnvironment("requirements.txt has no solution", "see what uv says of it", detail)
    if re.search(
        r"Failed to fetch|error sending request|dns error|[Cc]onnection refused|timed out", sentence
    ):
        raise NoEnvironment(
            "the package index cannot be reached",
            "check the host's network, its proxies and CA bundle (environment, ca_bundle in host.json)",
            detail,
        )
    if re.search(r"network timeout|before message length|error decoding response body", sentence):
        raise NoEnvironment(
            "the package index broke off in the middle of a download",
            "submit it again; if it stays so, check the host's network and its proxies",
            detail,
        )
    first = lines[start] if lines else f"exit status {status}"
    raise NoEnvironment(f"requirements.txt cannot be installed: {first}", detail=detail)
