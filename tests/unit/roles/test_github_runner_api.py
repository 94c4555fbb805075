"""The runner role's API client against the stand-in that remembers: paging, retries, refusals, GitHub App."""

import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import github_runner_api as api
import pytest
from github_api.standin import StandIn

REPO = "repos/acme/widgets"


@pytest.fixture
def standin() -> Iterator[StandIn]:
    with StandIn("127.0.0.1") as server:
        yield server


def scope_of(server: StandIn, repository: str = "acme/widgets", organization: str = "", enterprise: str = ""):
    return api.Scope.of(f"http://127.0.0.1:{server.port}", repository, organization, enterprise)


def client(server: StandIn, pat: str = "pat-good", **scope: str):
    slept: list[float] = []
    github = api.GitHub(scope_of(server, **scope), pat=pat, sleep=slept.append, timeout_s=5)
    github.slept = slept
    return github


@pytest.mark.parametrize(
    ("url", "root"),
    [
        ("https://github.com", "https://api.github.com"),
        ("https://github.com/", "https://api.github.com"),
        ("https://acme.ghe.com", "https://api.acme.ghe.com"),
        ("https://git.example.org", "https://git.example.org/api/v3"),
    ],
)
def test_api_url_follows_from_the_kind_of_github(url: str, root: str) -> None:
    assert api.Scope.of(url, "a/b", "", "").api_url == root


@pytest.mark.parametrize(("kinds"), [("a/b", "", ""), ("", "acme", ""), ("", "", "big")])
def test_scope_is_parsed_from_runner_url(kinds: tuple[str, str, str]) -> None:
    scope = api.Scope.of("https://github.com", *kinds)
    assert api.Scope.parse(scope.runner_url) == scope


@pytest.mark.parametrize("kinds", [("", "", ""), ("a/b", "c", ""), ("no-slash", "", "")])
def test_scope_needs_exactly_one_name(kinds: tuple[str, str, str]) -> None:
    with pytest.raises(api.ApiError, match="github_runner_repository"):
        api.Scope.of("https://github.com", *kinds)


def test_every_page_is_read(standin: StandIn) -> None:
    for number in range(250):
        standin.state.add_runner(REPO, f"r{number}", ["self-hosted"])
    github = client(standin)
    assert len(github.runners()) == 250
    assert github.find("R249")["name"] == "r249"
    assert len([line for line in standin.state.log if line.endswith("/actions/runners")]) == 6


def test_server_errors_are_retried_and_bounded(standin: StandIn) -> None:
    standin.state.fail("registration-token", 503, times=2)
    github = client(standin)
    assert github.registration_token().startswith("registration-secret")
    assert github.slept == [1, 2]
    standin.state.fail("registration-token", 500, times=50)
    with pytest.raises(api.ApiError, match=r"GitHub answered 500 .*4 times.*githubstatus"):
        github.registration_token()


def test_unreachable_api_is_reported() -> None:
    github = api.GitHub(
        api.Scope.of("http://127.0.0.1:9", "a/b", "", ""), pat="x", sleep=lambda _: None, timeout_s=2
    )
    with pytest.raises(api.ApiError, match="cannot be reached"):
        github.runners()


def test_short_rate_limit_is_awaited_and_long_one_reported(standin: StandIn) -> None:
    standin.state.fail("remove-token", 429, headers={"Retry-After": "7"})
    github = client(standin)
    github.remove_token()
    assert github.slept == [7]
    reset = str(int(time.time()) + 1800)
    standin.state.fail(
        "remove-token", 403, headers={"X-RateLimit-Remaining": "0", "X-RateLimit-Reset": reset}
    )
    with pytest.raises(api.ApiError, match=r"rate limit is used up .* opens again at \d\d:\d\d"):
        github.remove_token()


@pytest.mark.parametrize(
    ("pat", "status", "says"),
    [
        ("pat-expired", 404, "says so too when the token has expired"),
        ("pat-weak", 403, "The token has the scopes: read:org. It needs a classic token with scope repo"),
        ("pat-wrong", 401, "mistyped, expired or revoked"),
    ],
)
def test_refusal_names_remedy_and_no_secret(standin: StandIn, pat: str, status: int, says: str) -> None:
    with pytest.raises(api.ApiError) as refused:
        client(standin, pat).registration_token()
    assert refused.value.status == status
    assert says in str(refused.value)
    assert pat not in str(refused.value)


def test_a_redirect_is_not_followed_with_the_credential(standin: StandIn) -> None:
    standin.state.fail("actions/runners", 301, headers={"Location": "http://elsewhere.invalid/"})
    with pytest.raises(api.ApiError, match="has moved"):
        client(standin).runners()


@pytest.fixture(scope="module")
def app_key(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    folder = tmp_path_factory.mktemp("app")
    private, public = folder / "app.pem", folder / "public.pem"
    subprocess.run(["openssl", "genrsa", "-out", private, "2048"], check=True, capture_output=True)
    subprocess.run(
        ["openssl", "rsa", "-in", private, "-pubout", "-out", public], check=True, capture_output=True
    )
    return private.read_text(), public


def app(server: StandIn, key: str, **more: str):
    return api.GitHub(scope_of(server), app_id="1234", app_key=key, sleep=lambda _: None, **more)


def test_app_finds_its_installation_and_makes_one_token(standin: StandIn, app_key: tuple[str, Path]) -> None:
    standin.state.app_public_key = str(app_key[1])
    github = app(standin, app_key[0])
    github.registration_token()
    github.remove_token()
    assert [line.split("/")[-1] for line in standin.state.log] == [
        "installation",
        "access_tokens",
        "registration-token",
        "remove-token",
    ]


def test_configured_installation_is_not_looked_up(standin: StandIn, app_key: tuple[str, Path]) -> None:
    standin.state.app_public_key = str(app_key[1])
    app(standin, app_key[0], app_installation_id="99").runners()
    assert not any("/installation" in line and "/app/" not in line for line in standin.state.log)


def test_broken_app_key_is_reported_but_not_shown(standin: StandIn, app_key: tuple[str, Path]) -> None:
    broken = app_key[0].replace("M", "N")
    with pytest.raises(api.ApiError, match="not a private RSA key") as refused:
        app(standin, broken).runners()
    assert broken.splitlines()[1] not in str(refused.value)


def test_app_is_refused_for_enterprise(standin: StandIn, app_key: tuple[str, Path]) -> None:
    with pytest.raises(api.ApiError, match="GitHub App cannot register runners of an enterprise"):
        api.GitHub(scope_of(standin, repository="", enterprise="big"), app_id="1", app_key=app_key[0])


def test_public_repositories_are_recognised_with_and_without_credential(standin: StandIn) -> None:
    assert client(standin).public_reason("") == ""
    assert client(standin, pat="").public_reason("") == ""
    standin.state.public.add(REPO)
    assert "is public" in client(standin).public_reason("")
    assert "is public" in client(standin, pat="").public_reason("")


def test_a_group_open_to_public_repositories_counts_as_public(standin: StandIn) -> None:
    github = client(standin, repository="", organization="acme")
    assert github.public_reason("") == ""
    assert "'open'" in github.public_reason("open")
    with pytest.raises(api.ApiError, match="no runner group 'none'; it has: Default, gpus, open"):
        github.group("none")


def test_group_is_unknown_without_credential(standin: StandIn) -> None:
    github = client(standin, repository="", organization="acme", pat="")
    assert "cannot tell whether the default runner group of acme is open" in github.public_reason("")
    assert "the runner group 'gpus'" in github.public_reason("gpus")


def test_deleting_twice_is_no_error(standin: StandIn) -> None:
    runner = standin.state.add_runner(REPO, "one", [])
    assert client(standin).delete(runner["id"]) is True
    assert client(standin).delete(runner["id"]) is False


def test_labels_change_in_place_and_keep_the_read_only_ones(standin: StandIn) -> None:
    runner = standin.state.add_runner(REPO, "one", ["self-hosted", "old"])
    client(standin).set_labels(runner["id"], ["gpu", "mine"])
    assert [label["name"] for label in standin.state.runners[REPO][runner["id"]]["labels"]] == [
        "self-hosted",
        "gpu",
        "mine",
    ]
    client(standin).set_labels(runner["id"], [])
    assert [label["name"] for label in standin.state.runners[REPO][runner["id"]]["labels"]] == ["self-hosted"]


def test_a_taken_name_is_a_409_for_just_in_time(standin: StandIn) -> None:
    standin.state.add_runner(REPO, "one", [])
    with pytest.raises(api.ApiError) as refused:
        client(standin).just_in_time("one", 1, ["gpu"])
    assert refused.value.status == 409
