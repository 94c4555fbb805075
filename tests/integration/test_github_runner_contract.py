"""Every request of the runner role's API client is one that GitHub's official description knows, and so is the stand-in's answer."""

import json
from collections.abc import Iterator
from typing import Any

import github_runner_api as api
import jsonschema
import pytest
from github_api.contract import Prism, Unavailable, install
from github_api.standin import StandIn

SCOPES = [("acme/widgets", "", ""), ("", "acme", ""), ("", "", "big")]


@pytest.fixture(scope="module")
def prism(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Prism]:
    try:
        server = Prism(install(), tmp_path_factory.mktemp("prism"))
    except Unavailable as reason:
        pytest.skip(f"the contract was not checked: {reason}")
    with server:
        yield server


def calls(github: Any) -> list[tuple[str, Any]]:
    """Everything the client asks for, with what it asks."""
    return [
        ("list", lambda: list(github._pages(f"{github.scope.path}/actions/runners", "runners"))),
        ("registration token", github.registration_token),
        ("remove token", github.remove_token),
        ("downloads", github.downloads),
        ("just in time", lambda: github.just_in_time("gpu-1", 1, ["self-hosted", "gpu"])),
        ("labels", lambda: github.set_labels(5, ["gpu", "lab"])),
        ("no labels", lambda: github.set_labels(5, [])),
        ("delete", lambda: github.delete(5)),
    ]


@pytest.mark.parametrize("scope", SCOPES, ids=["repository", "organisation", "enterprise"])
def test_every_request_matches_the_api_description(prism: Prism, scope: tuple[str, str, str]) -> None:
    github = api.GitHub(
        api.Scope.of("https://github.com", *scope, prism.url), pat="any", sleep=lambda _: None
    )
    for name, call in calls(github):
        try:
            call()
        except api.ApiError as error:
            pytest.fail(f"{name}: {error}")
    if scope[0]:
        assert github.public_reason("") != ""
    else:
        assert github.groups()


def test_app_requests_match_the_api_description(prism: Prism) -> None:
    for path in ("/repos/acme/widgets/installation", "/orgs/acme/installation"):
        assert prism.status("GET", path) == 200
    assert prism.status("POST", "/app/installations/99/access_tokens") == 201


def test_prism_refuses_wrong_requests(prism: Prism) -> None:
    """The check can fail: a wrong path, and bodies that break the description."""
    path = "/repos/acme/widgets/actions/runners/generate-jitconfig"
    assert prism.status("POST", "/repos/acme/widgets/actions/runners/registration_token") in (404, 405)
    assert prism.status("POST", path, {"name": "x", "labels": ["gpu"]}) == 422
    assert prism.status("POST", path, {"name": "x", "runner_group_id": 1, "labels": []}) == 422


def test_stand_in_answers_match_the_api_description(prism: Prism) -> None:
    """Each answer of the stand-in that the client reads fits the description's schema for it."""
    description = prism.description
    with StandIn("127.0.0.1") as standin:
        standin.state.serve_archive("actions-runner-linux-x64-2.336.0.tar.gz", b"x")
        runner = standin.state.add_runner("orgs/acme", "gpu-1", ["self-hosted", "gpu"])
        root = f"http://127.0.0.1:{standin.port}"
        github = api.GitHub(api.Scope.of(root, "", "acme", "", root), pat="pat-good")
        jit = {"name": "new", "runner_group_id": 1, "labels": ["gpu"], "work_folder": "_work"}
        for method, name, status, body in (
            ("get", "", "200", None),
            ("get", "/downloads", "200", None),
            ("post", "/registration-token", "201", None),
            ("post", "/remove-token", "201", None),
            ("post", "/generate-jitconfig", "201", jit),
            ("put", "/{runner_id}/labels", "200", {"labels": ["lab"]}),
        ):
            path = f"/orgs/{{org}}/actions/runners{name}"
            answer = github.call(method.upper(), path.format(org="acme", runner_id=runner["id"]), body)
            response = description["paths"][path][method]["responses"][status]
            if "$ref" in response:
                response = description["components"]["responses"][response["$ref"].rsplit("/", 1)[1]]
            schema = {
                **response["content"]["application/json"]["schema"],
                "components": description["components"],
            }
            jsonschema.Draft4Validator(schema).validate(json.loads(json.dumps(answer)))
