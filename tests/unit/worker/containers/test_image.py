"""The answer of a probe of an image."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import docker
import pytest

from train_classifier.core.errors import NoEnvironment
from train_classifier.worker.containers import image

SOUND = {
    "python": "/usr/bin/python3", "version": "3.11.2", "site": ["/usr/lib/python3/dist-packages"],
    "search_path": "/usr/bin", "packages": {"six": "1.16.0"}, "frameworks": {}, "distutils": True,
}  # fmt: skip


def test_valid_answer_of_probe_is_accepted() -> None:
    assert image._validated(SOUND, "i") == SOUND


@pytest.mark.parametrize(
    "change",
    [
        {"python": "python3"}, {"python": None}, {"version": "3"}, {"version": "3.11.2\n"}, {"site": []}, {"site": "/x"},
        {"site": ["relative"]}, {"site": [1]}, {"packages": None}, {"frameworks": {"numpy": 1}}, {"search_path": 1},
    ],
)  # fmt: skip
def test_invalid_answer_of_probe_is_refused(change: dict[str, Any]) -> None:
    with pytest.raises(NoEnvironment, match="returned invalid data"):
        image._validated({**SOUND, **change}, "i")
    for answer in (None, 5, [], "x", {}):
        with pytest.raises(NoEnvironment, match="returned invalid data"):
            image._validated(answer, "i")


@pytest.mark.parametrize(
    ("path", "is_refused"),
    [
        ("/workspace/a/b", True), ("cache/../cache//x", True), ("/home/worker/x", True), ("/train-classifier/x", True),
        ("/workspace", False), ("/data", False), ("/home/jovyan/work", False), ("/var/lib/x", False),
    ],
)  # fmt: skip
def test_volume_of_an_image_in_a_folder_of_the_job_is_refused(path: str, is_refused: bool) -> None:
    """The engine would make root's folders there, which the account of the job cannot remove."""
    context: Any = SimpleNamespace(host=SimpleNamespace(job_user=lambda: SimpleNamespace(name="worker")))
    if is_refused:
        with pytest.raises(NoEnvironment, match="in a folder of the job"):
            image._require_outside_of_mounts(context, "i", [path])
    else:
        image._require_outside_of_mounts(context, "i", [path])


@pytest.mark.parametrize("helper", ["missing", "failing"])
def test_a_helper_for_logins_that_does_not_work_is_no_login(
    helper: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As the docker command does, the image is pulled without a login."""
    if helper == "failing":
        program = tmp_path / "docker-credential-failing"
        program.write_text("#!/bin/sh\necho 'cannot open the key ring' >&2\nexit 1\n")
        program.chmod(0o755)
        monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    (tmp_path / "config.json").write_text(json.dumps({"credsStore": helper}))
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path))
    # No engine answers there: only the request matters.
    api = docker.APIClient(base_url="tcp://127.0.0.1:1", version="1.41")
    requests: list[dict[str, Any]] = []

    def post(url: str, **request: Any) -> Any:
        requests.append(request)
        return None

    monkeypatch.setattr(api, "_post", post)
    monkeypatch.setattr(api, "_raise_for_status", lambda response: None)
    monkeypatch.setattr(api, "_stream_helper", lambda response, decode: iter([{"status": "done"}]))
    messages: list[str] = []
    context = SimpleNamespace(
        client=SimpleNamespace(api=api), say=messages.append, note=messages.append, check_cancel=lambda: None
    )
    image._pull(context, "registry.example/name:tag")  # type: ignore[arg-type]
    (request,) = requests
    assert request["params"]["fromImage"] == "registry.example/name"
    assert request["headers"]["X-Registry-Auth"] in (b"e30=", b"e30")
    assert "no login is used" in messages[0]


def _pull(*messages: dict[str, Any]) -> list[str]:
    """Pull with an engine that sends these messages; return what the job's followers see."""
    shown: list[str] = []
    client = SimpleNamespace(api=SimpleNamespace(pull=lambda *_, **__: iter(messages)))
    context = SimpleNamespace(client=client, say=shown.append, note=shown.append, check_cancel=lambda: None)
    image._pull(context, "python:3.10-slim")  # type: ignore[arg-type]
    return shown


def test_progress_of_a_pull_counts_all_layers() -> None:
    messages = [
        {"status": "Downloading", "id": layer, "progressDetail": {"current": done << 20, "total": 200 << 20}}
        for layer, done in (("a", 60), ("b", 60), ("a", 90), ("b", 150))
    ]
    assert _pull({"status": "Pulling fs layer", "id": "a"}, *messages, {"status": "Pull complete"}) == [
        "pulling image python:3.10-slim: 120 of 400 MiB",
        "pulling image python:3.10-slim: 240 of 400 MiB",
    ]


# Docker 20.10 and 26.
@pytest.mark.parametrize(
    ("message", "hint"),
    [
        ("manifest for python:3.10-slim not found: manifest unknown: manifest unknown", "none of this name"),
        ("unauthorized: authentication required", "docker login"),
        ("pull access denied for python, repository does not exist or may require 'docker login'", "docker login"),
        ("Get \"https://registry-1.docker.io/v2/\": dial tcp: lookup registry-1.docker.io: no such host", "bootstrap"),
        ("Get \"http://127.0.0.1:5000/v2/\": dial tcp 127.0.0.1:5000: connect: connection refused", "bootstrap"),
    ],
)  # fmt: skip
def test_failed_pull_has_the_hint_that_fits(message: str, hint: str) -> None:
    with pytest.raises(NoEnvironment) as raised:
        _pull({"status": "Pulling"}, {"error": message})
    assert hint in str(raised.value.hint) and raised.value.detail == message
