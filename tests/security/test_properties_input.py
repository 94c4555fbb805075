"""Everything that a checkout or another user can write is read without a crash and in bounded time.

Every example is chosen by hypothesis from a fixed seed, so that two runs are the same. A parser may refuse its
input by the errors that it documents, and by no other.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hostile import DATA, FIXED, RESULT, TEXT, VALUES, WORDS, as_json, bounded, check_sentences, tables
from hypothesis import given, settings
from hypothesis import strategies as st

from train_classifier.ansible_bridge import inventory
from train_classifier.core import apt_file, requirements_file
from train_classifier.core.errors import BadInput, TrainClassifierError
from train_classifier.core.job import JobSpec
from train_classifier.core.project import git_version, own_package
from train_classifier.core.text import hide_logins
from train_classifier.github_action import slack_message
from train_classifier.reports import job_summary, tracebacks
from train_classifier.reports.report import Report
from train_classifier.request import env_file, flags, push_list, settings_file
from train_classifier.worker.gpus import tickets
from train_classifier.worker.jobs import query
from train_classifier.worker.state.store import Store
from train_classifier.worker.system.host import Host

# What a checkout holds.


@FIXED
@given(content=DATA)
def test_settings_file_of_any_content_is_parsed(content: bytes) -> None:
    with bounded():
        try:
            settings_file.parse(content).of("m")
        except BadInput as error:
            check_sentences(error.problems)


TOML_VALUES = st.one_of(
    st.sampled_from(
        [
            "9" * 5000, "-" + "9" * 5000, "0x" + "f" * 6000, "1e400", "nan", "inf", "-inf", "[" * 3000 + "]" * 3000,
            "{a=" * 500 + "1" + "}" * 500, '"\\uFFFF\\u0000"', '"\\uD800"', "1979-05-27", "[[1]]", "{}", "[]", '""',
            "true", "0", "-1", '"9999999999999999999h"', '"1' + "0" * 4000 + 'GiB"', "{ a = 1 }", "[1, \"a:b\"]",
            '["/:h"]', '"' + "1h" * 2000 + '"', '"' + "a/" * 300 + "!" + '"', '"' + "a-" * 300 + "!" + '"',
        ]
    ),
    TEXT.map(json.dumps),
)  # fmt: skip


@FIXED
@given(
    table=st.sampled_from(["defaults", "models.m", "models", "other"]),
    values=st.dictionaries(st.sampled_from([*settings_file.SETTINGS, "other"]), TOML_VALUES, max_size=5),
)
def test_settings_of_any_value_are_parsed(table: str, values: dict[str, str]) -> None:
    content = f"[{table}]\n" + "".join(f"{key} = {value}\n" for key, value in values.items())
    with bounded():
        try:
            settings_file.parse(content.encode("utf-8", "surrogatepass")).of("m")
        except BadInput as error:
            check_sentences(error.problems)


@FIXED
@given(key=st.sampled_from(flags.PARSED), value=VALUES)
def test_option_values_are_parsed(key: str, value: Any) -> None:
    with bounded():
        try:
            flags.parse(key, value)
        except ValueError as error:
            assert type(error) is ValueError
            check_sentences([str(error)])


@FIXED
@given(content=DATA, other=DATA)
def test_requirements_file_is_parsed(tmp_path: Path, content: bytes, other: bytes) -> None:
    folder = tmp_path / "m"
    folder.mkdir(exist_ok=True)
    (folder / "requirements.txt").write_bytes(content)
    (folder / "a").write_bytes(other)
    with bounded():
        requirements_file.parse(tmp_path, "m")


@FIXED
@given(content=DATA)
def test_project_file_is_parsed(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "m").mkdir(exist_ok=True)
    (tmp_path / "m" / "pyproject.toml").write_bytes(b"[project]\ndependencies = [" + content)
    with bounded():
        requirements_file.parse(tmp_path, "m")


NAMES = ", ".join(f"'p{number}'" for number in range(9000))


@pytest.mark.parametrize(
    "text",
    [
        f"[project]\ndependencies = [{NAMES}]\n[tool.uv.sources]\n"
        + "".join(f"p{number} = {{git = 'https://h'}}\n" for number in range(990)),
        f"[project]\ndependencies = [{NAMES}]\n"
        + "[[tool.pdm.source]]\nurl = 'https://h'\ninclude_packages = ['p*1*', 'p*2*']\n" * 1900,
    ],
    ids=("uv", "pdm"),
)  # fmt: skip
def test_many_sources_of_packages_end_soon(tmp_path: Path, text: str) -> None:
    (tmp_path / "pyproject.toml").write_text(text[: (1 << 18) - 1])
    with bounded():
        requirements_file.parse(tmp_path, "m")


PARTS = st.sampled_from(
    [
        "setup(", ")", "name='a'", "version=", "packages=find_packages(", "install_requires=", "[", "]", "{", "}", "'", ",", "\n", "    ",
        "[project]\n", "[metadata]\n", "[options]\n", "[options.entry_points]\n", "name", " = ", "'a'", "attr: a.b", "file: x", "dynamic",
        "['version']", "[tool.setuptools_scm]\n", "[versioneer]\n", "version_file", "[tool.setuptools.packages]\n", "find", "where", "..",
        "[tool.poetry]\n", "[tool.poetry.dependencies]\n", "[tool.poetry.extras]\n", "[[tool.poetry.source]]\n", "a = ", "'^1.2'",
        "{path = 'src'}", "{version = '1', python = '3.9 || 3.10'}", "{git = 'git@h:o/a', extras = [", "scripts = ", "packages = ",
        "[tool.uv.sources]\n", "[[tool.uv.index]]\n", "[[tool.pdm.source]]\n", "[[tool.rye.sources]]\n", "[tool.flit.metadata]\n", "index = ",
        "url = ", "'https://h'", "{index = 'a', marker = ", "include_packages = ", "explicit = true\n", "from setuptools import setup\n",
        "import *", "globals()", "exec(", "entry_points=", "{'console_scripts': ", "\0", "\ud800", "a" * 5000, " " * 5000, "(" * 500, "1" + "+1" * 2000,
    ]
)  # fmt: skip


@FIXED
@given(
    name=st.sampled_from(["setup.py", "setup.cfg", "pyproject.toml"]),
    content=st.lists(PARTS, max_size=30).map("".join),
)
def test_repository_as_a_package_is_read(
    tmp_path_factory: pytest.TempPathFactory, name: str, content: str
) -> None:
    top = tmp_path_factory.mktemp("repo")
    (top / "m").mkdir()
    (top / "src").mkdir()
    (top / "m" / "requirements.txt").write_text("-e .\n")
    (top / name).write_bytes(content.encode("utf-8", "surrogatepass"))
    with bounded():
        requirements = requirements_file.parse(top, "m")
        requirements_file.parse(top, "without_its_own_file")
        git_version.is_used(top)
    if requirements.package:
        assert re.fullmatch(r"[A-Za-z0-9._-]+", requirements.package.name)
        assert re.fullmatch(r"[a-z0-9.+]+", requirements.package.version)
        assert (top / requirements.package.folder).resolve().is_relative_to(top.resolve())


@pytest.mark.parametrize(
    ("name", "text"),
    [
        *(
            ("setup.cfg", f"[metadata]\nname = a\nversion = 1\nb{blank * 80_000}c\n")
            for blank in (" ", "\t", "\f", "\xa0", "\x1c", "\u2003")
        ),
        (
            "setup.cfg",
            "[DEFAULT]\n"
            + "".join(f"{n:x}=\n" for n in range(18_000))
            + "".join(f"[{n:x}]\n" for n in range(18_000)),
        ),
        *(
            ("pyproject.toml", f"[project]\nname = 'a'\nversion = '1'\n[project.scripts]\na = '{target}'\n")
            for target in (" " * 200_000 + "x y", "[" * 200_000, "a" + " " * 200_000 + "[", "a." * 100_000)
        ),
    ],
    ids=lambda text: repr(text[-12:]),
)
def test_repository_as_a_package_with_long_runs_is_read(tmp_path: Path, name: str, text: str) -> None:
    (tmp_path / name).write_text(text)
    with bounded():
        assert own_package.read(tmp_path) is None


@FIXED
@given(content=DATA)
def test_apt_file_is_parsed(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "m").mkdir(exist_ok=True)
    (tmp_path / "m" / "apt-pkgs.txt").write_bytes(content)
    with bounded():
        apt_file.parse(tmp_path, "m")


@FIXED
@given(
    name=st.sampled_from([".trainignore", ".gitmodules", ".gitattributes", "x.pem", ".env", "id_rsa", "x"]),
    content=DATA,
    file=DATA,
)
def test_checkout_files_are_read(
    tmp_path_factory: pytest.TempPathFactory, name: str, content: bytes, file: bytes
) -> None:
    top = tmp_path_factory.mktemp("repo")
    (top / "m").mkdir()
    (top / "m" / "__main__.py").touch()
    (top / name).write_bytes(content)
    other = re.sub(rb"[/\0]", b"", file)[:200]
    if other not in (b"", b".", b".."):
        with (top / os.fsdecode(other)).open("wb"):
            pass
    with bounded():
        result = push_list.collect(top, "m")
        check_sentences([*result.problems, *result.warnings])


@FIXED
@given(content=DATA)
def test_env_file_is_parsed(content: bytes) -> None:
    with bounded():
        values, problems = env_file.parse(content, "file", {"KEY": "x"})
    check_sentences(problems)
    assert all(isinstance(value, str) and "\0" not in value for value in values.values())


@pytest.mark.parametrize(
    "content",
    [
        b'all:\n  hosts:\n    "a\\e[31m\\u202e\\n::error::x": {ansible_connection: x}\n',
        b"all:\n  hosts: " + b"[" * 2000 + b"\n",
        b"\xff\xfe\0\x1b[2J",
    ],
    ids=["letters", "deep", "binary"],
)
def test_hostile_inventories_are_read(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "hosts.yml"
    path.write_bytes(content)
    try:
        result = inventory.hosts(str(path), None, os.environ, tmp_path)
    except TrainClassifierError as error:
        check_sentences(error.problems if isinstance(error, BadInput) else [error.reason])
    else:
        check_sentences([host.problem for host in result if host.problem])


# What another user of the host, or the host itself, can write.

TICKET = tables(
    "job",
    "model",
    "dir",
    "want",
    "min_vram_mib",
    "state",
    "gpus",
    "since",
    "since_boot",
    "boot",
    "uid",
    "user",
)


@FIXED
@given(
    content=st.one_of(
        DATA, TICKET.map(lambda table: as_json(table)), VALUES.map(lambda value: as_json(value))
    )
)
def test_tickets_are_read(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "000000000001-a.json"
    path.write_bytes(content)
    with bounded():
        descriptor = tickets.open_ticket(path)
        try:
            with contextlib.suppress(tickets.InvalidFile):
                tickets.read_ticket(path, descriptor)
        finally:
            os.close(descriptor)
        tickets.invalid_files(tmp_path)


@FIXED
@given(value=VALUES, changes=tables(*JobSpec.__dataclass_fields__))
def test_job_specifications_are_read(value: Any, changes: dict[str, Any]) -> None:
    good = {
        "id": "20260101-000000-00000000",
        "model": "m",
        "schema": 1,
        "repository": {"name": "r", "key": "0" * 16},
    }
    with bounded():
        for data in (value, {**good, **changes}):
            with contextlib.suppress(ValueError):
                JobSpec.from_dict(data)


STATE = tables(
    "schema", "id", "model", "version", "state", "phase", "message", "boot_id", "pid", "pid_start", "worker", "unit",
    "gpus", "times", "submitted", "started", "updated", "updated_uptime", "updated_boot", "launcher", "container",
    values=st.one_of(st.sampled_from([1, "finished", "running", "submitted", "pushed"]), VALUES),
)  # fmt: skip


@settings(FIXED, max_examples=40)
@given(
    status=st.one_of(STATE.map(as_json), DATA),
    result=st.one_of(RESULT.map(as_json), DATA),
    spec=st.one_of(VALUES.map(as_json), DATA),
)
def test_job_files_are_read(
    tmp_path_factory: pytest.TempPathFactory, status: bytes, result: bytes, spec: bytes
) -> None:
    top = tmp_path_factory.mktemp("state")
    store = Store(top)
    job = store.jobs / "20260101-000000-00000000"
    job.mkdir(parents=True)
    for name, content in (("status.json", status), ("result.json", result), ("spec.json", spec)):
        (job / name).write_bytes(content)
    host = Host(queue_dir=top / "queue")
    with bounded():
        for act in (query.list_jobs, query.status, query.read):
            with contextlib.suppress(TrainClassifierError):
                json.dumps(act({"id": job.name, "wait": 0}, host, store))


#: An expression that a stranger's text reaches, on what makes such expressions slow.
SLOW: dict[str, Callable[[str], Any]] = {
    "annotations": tracebacks.find,
    "image": lambda text: _refused(flags.image, text),
    "environment file": lambda text: env_file.parse(text.encode("utf-8", "surrogatepass"), "x", {}),
    "slack": lambda text: slack_message.last_lines(text, 3000),
    "log": lambda text: Report(result={}, log=text).tail(1 << 20),
    "markdown": lambda text: job_summary.plain_text(text) + job_summary.fenced(text),
    "package": lambda text: apt_file.PACKAGE.match(text),
    "logins": hide_logins,
    "requirement": lambda text: requirements_file.REQUIREMENT.match(text),
    "versions": lambda text: [
        requirements_file.REQUIREMENT.match(before + text)
        for before in ("a ", "a >=1,", "a[", "a >=1; ", "a (")
    ],
}


def _refused(parse: Callable[[str], Any], text: str) -> None:
    with contextlib.suppress(ValueError):
        parse(text)


@pytest.mark.parametrize("kind", SLOW)
def test_regular_expressions_are_fast(kind: str) -> None:
    """Each word, repeated: more than a few microseconds a letter is not linear."""
    for word in filter(None, WORDS):
        text = (word * (1 << 15))[: 1 << 15]
        with bounded():
            for end in ("!", "\n", "x:"):
                SLOW[kind](text + end)


@pytest.mark.parametrize("end", ["", "@", "/@"])
@pytest.mark.parametrize("part", [
    "(:", "://x:", "://", "@", "?a=", "/:@", "(a:b/@", "${a}:", "&a=$",
    "ghp_", "sk-", "eyJ", "%3A%2F%2F", "://%40", ";token", "&amp;", "://h/a1", "://h/" + "a1" * 9, "?a='", "://h/?",
])  # fmt: skip
def test_logins_of_a_long_text_are_hidden(part: str, end: str) -> None:
    with bounded():
        hide_logins(part * (1_000_000 // len(part)) + end)
