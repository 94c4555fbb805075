"""Row 7: a build gets the logins of the indexes that the host configures, and no other line of the netrc."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path

import docker
import pytest
from index_server import Index, sdist, serve, wheel
from worker_site import Site, site, tmp_path, uv

from train_classifier.core.errors import NoEnvironment
from train_classifier.worker.environments import index_credentials

__all__ = ["site", "tmp_path", "uv"]

#: The image lacks distutils, which setuptools would bring from an index.
NO_SETUPTOOLS = "setuptools ; python_version < '3'"
READS_NETRC = """
import os
try:
    SEEN = open(os.environ["NETRC"]).read()
except (KeyError, OSError) as error:
    SEEN = repr(error)
"""


@pytest.fixture
def index(site: Site, engine: docker.DockerClient) -> Iterator[Index]:
    with serve(engine) as new_index:
        new_index.add(wheel("private", "1.0"), sdist("spy", "1.0", READS_NETRC))
        yield new_index


@pytest.fixture
def netrc(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "netrc"
    monkeypatch.setenv("NETRC", str(path))
    return path


@pytest.mark.engine
def test_07_build_code_sees_only_the_login_of_its_index(site: Site, index: Index, netrc: Path) -> None:
    netrc.write_text(
        "machine git.example login me password precious-git\n"
        f"machine {index.host} login ml password of-the-index\n"
        "default login me password precious-default\n"
    )
    index.login = "ml:of-the-index"
    settings = {"UV_DEFAULT_INDEX": index.url, "no_proxy": index.host}
    site.host = dataclasses.replace(site.host, environment=settings)
    environment = site.prepare(f"spy\nprivate\n{NO_SETUPTOOLS}")
    report = site.run(site.find(), environment, "import spy; print(spy.seen)")
    assert "of-the-index" in report and "precious" not in report
    for path in site.store.root.rglob("*"):
        assert not path.is_file() or b"precious" not in path.read_bytes(), path


@pytest.mark.engine
def test_07_checkout_gets_no_login_for_hosts_that_it_names(site: Site, index: Index, netrc: Path) -> None:
    netrc.write_text(f"machine {index.host} login me password precious\ndefault login me password precious\n")
    index.login = "me:precious"
    # A login that the host gives to its index `corp`, of which the checkout uses the name.
    login = {"UV_INDEX_CORP_USERNAME": "me", "UV_INDEX_CORP_PASSWORD": "precious"}
    settings = {"no_proxy": index.host, "UV_HTTP_RETRIES": "0", **login}
    site.host = dataclasses.replace(site.host, environment=settings)
    (site.workspace / "a.py").touch()
    (site.workspace / "lib").mkdir()
    project = (
        "[project]\nname = 'a'\nversion = '1'\ndependencies = ['private']\n[tool.uv.sources]\nprivate = { index = 'corp' }\n"
        f"[[tool.uv.index]]\nname = 'corp'\nurl = '{index.url}'\nexplicit = true\nauthenticate = 'always'\n"
    )
    (site.workspace / "pyproject.toml").write_text(project)
    (site.workspace / "lib" / "pyproject.toml").write_text(project)
    for text in (
        f"--index-url {index.url}\nprivate",
        "-e .",
        "-e lib",
        f"private @ http://{index.address}/files/private-1.0.whl",
    ):
        with pytest.raises(NoEnvironment):
            site.prepare(f"{text}\n{NO_SETUPTOOLS}")
    assert index.requests and index.logins() == set()


@pytest.mark.engine
def test_07_unreadable_netrc_is_reported(site: Site, index: Index, netrc: Path) -> None:
    netrc.write_text("machine x login y password z\nnonsense\n")
    index.login = "me:precious"
    settings = {"UV_DEFAULT_INDEX": index.url, "no_proxy": index.host, "UV_HTTP_RETRIES": "0"}
    site.host = dataclasses.replace(site.host, environment=settings)
    with pytest.raises(NoEnvironment, match="requires a login, or rejected this one") as raised:
        site.prepare(f"private\n{NO_SETUPTOOLS}")
    assert "netrc cannot be read" in (raised.value.hint or "")


@pytest.mark.parametrize(
    ("settings", "hosts"),
    [
        ({}, set()),
        (
            {"UV_INDEX": "corp=https://u:p@A.example:8443/simple http://b.example/x"},
            {"a.example", "b.example"},
        ),
        (
            {"UV_FIND_LINKS": "/wheels,https://c.example/flat", "HTTP_PROXY": "http://proxy.example"},
            {"c.example"},
        ),
        ({"UV_DEFAULT_INDEX": "https://[2001:db8::1]:80/simple"}, {"[2001:db8::1]"}),
        (
            {"UV_INDEX": "https://evil.example/@a.example https://e.example?@a.example/"},
            {"evil.example", "e.example"},
        ),
    ],
)
def test_07_hosts_are_read_from_index_settings(settings: dict[str, str], hosts: set[str]) -> None:
    assert index_credentials.hosts_of(settings) == hosts


def test_07_login_of_an_index_by_name_is_in_its_address_alone() -> None:
    variables = {
        "UV_INDEX": "my-corp=https://a.example/simple b=https://u@b.example/ https://c.example",
        "UV_DEFAULT_INDEX": "pypi=https://d.example/simple",
        **{f"UV_INDEX_{name}_USERNAME": "me" for name in ("MY_CORP", "B", "OTHER")},
        **{f"UV_INDEX_{name}_PASSWORD": "a:/b@" for name in ("MY_CORP", "B", "OTHER")},
    }
    assert index_credentials.put_logins(variables) == {
        "UV_INDEX": "my-corp=https://me:a%3A%2Fb%40@a.example/simple b=https://u@b.example/ https://c.example",
        "UV_DEFAULT_INDEX": "pypi=https://d.example/simple",
    }


@pytest.mark.parametrize("password", ["plain", "#hash", "with space", 'quo"te', "back\\slash", "ünïcode"])
def test_07_special_characters_in_passwords_are_kept(netrc: Path, password: str) -> None:
    netrc.write_text(
        f"machine a.example login me password {index_credentials._quoted(password)}\n", encoding="utf-8"
    )
    text, problem = index_credentials.entries_for({"UV_INDEX": "https://a.example/simple"})
    assert (text, problem) == (netrc.read_text(encoding="utf-8"), "")


@pytest.mark.parametrize("content", [b"\xff\xfe\x00", b"machine", b"macdef x\n", b"machine " * 1000, b"\0"])
def test_07_invalid_netrc_files_give_no_login(netrc: Path, content: bytes) -> None:
    netrc.write_bytes(content)
    text, _ = index_credentials.entries_for({"UV_INDEX": "https://a.example/simple"})
    assert text == ""


def test_07_message_about_a_netrc_quotes_no_password(netrc: Path) -> None:
    netrc.write_text("machine a.example login me password two words\n")
    text, problem = index_credentials.entries_for({"UV_INDEX": "https://a.example/simple"})
    assert text == "" and "near line" in problem and "words" not in problem
