"""The filters of the role docker_engine. The merge of daemon.json: what people wrote there stays; what the role wrote and does not want any more goes."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest

PATH = Path(__file__).parents[3] / "plugins/filter/docker_engine.py"
SPEC = importlib.util.spec_from_file_location("docker_engine_filters", PATH)
assert SPEC and SPEC.loader
filters = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(filters)

Table = dict[str, Any]


@pytest.mark.parametrize(
    ("current", "settings", "written", "result", "edited"),
    [
        # A first run: what was there stays, also where the role wants something else.
        ({}, {"a": 1}, {}, {"a": 1}, []),
        ({"b": 2}, {"a": 1}, {}, {"a": 1, "b": 2}, []),
        ({"a": 2}, {"a": 1}, {}, {"a": 2}, ["a"]),
        ({"a": 1}, {"a": 1}, {}, {"a": 1}, []),
        # Later: what the role wrote follows the settings, unless somebody edited it.
        ({"a": 1}, {"a": 2}, {"a": 1}, {"a": 2}, []),
        ({"a": 3}, {"a": 2}, {"a": 1}, {"a": 3}, ["a"]),
        ({"a": 1}, {}, {"a": 1}, {}, []),
        ({"a": 3}, {}, {"a": 1}, {"a": 3}, []),
        ({}, {"a": 1}, {"a": 1}, {"a": 1}, []),
        ({}, {}, {"a": 1}, {}, []),
        # A value that is false is a value.
        ({"a": False}, {"a": True}, {"a": True}, {"a": False}, ["a"]),
        ({"a": True}, {"a": False}, {"a": True}, {"a": False}, []),
        # At every depth.
        ({"t": {"b": 2}}, {"t": {"a": 1}}, {}, {"t": {"a": 1, "b": 2}}, []),
        ({"t": {"a": 3}}, {"t": {"a": 2}}, {"t": {"a": 1}}, {"t": {"a": 3}}, ["t.a"]),
        ({"t": {"a": 1, "b": 2}}, {}, {"t": {"a": 1}}, {"t": {"b": 2}}, []),
        ({"t": {"a": 3}}, {}, {"t": {"a": 1, "b": 1}}, {"t": {"a": 3}}, []),
        ({"t": "edited"}, {"t": {"a": 1}}, {"t": {"a": 1}}, {"t": "edited"}, ["t"]),
        ({"t": {"a": 1}}, {"t": "flat"}, {"t": {"a": 1}}, {"t": "flat"}, []),
        # A list is one value.
        ({"l": [1]}, {"l": [1, 2]}, {"l": [1]}, {"l": [1, 2]}, []),
        ({"l": [9]}, {"l": [1, 2]}, {"l": [1]}, {"l": [9]}, ["l"]),
    ],
)
def test_merge_keeps_what_was_edited(
    current: Table, settings: Table, written: Table, result: Table, edited: list[str]
) -> None:
    assert filters.merge(current, settings, written) == {"result": result, "edited": edited}


def test_merge_changes_none_of_its_arguments() -> None:
    current, settings, written = {"t": {"a": 1}}, {"t": {"b": 2}}, {"t": {"a": 1}}
    filters.merge(current, settings, written)
    assert (current, settings, written) == ({"t": {"a": 1}}, {"t": {"b": 2}}, {"t": {"a": 1}})


@pytest.mark.parametrize("before", [{}, {"dns": ["192.0.2.53"]}, {"log-opts": {"tag": "x"}, "debug": True}])
def test_removal_restores_what_was_there(before: Table) -> None:
    settings = {"live-restore": True, "log-opts": {"max-size": "10m"}}
    merged = filters.merge(before, settings, {})["result"]
    assert filters.merge(merged, settings, settings)["result"] == merged
    # A table that the role made stays empty: the engine reads it as none.
    left = {key: value for key, value in filters.merge(merged, {}, settings)["result"].items() if value != {}}
    assert left == before


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", ""),
        ('{"live-restore": true}', ""),
        ("[]", "it holds no object"),
        ("null", "it holds no object"),
        ('{"live-restore": }', "Expecting value: line 1 column 18"),
        ('{"a": 1', "Expecting ',' delimiter"),
    ],
)
def test_problem_of_a_configuration(text: str, problem: str) -> None:
    sentence = filters.json_problem(text)
    assert problem in sentence and bool(problem) == bool(sentence)


FOREIGN: Table = {}
OF_THE_ROLE: Table = {"foreign": False, "settings": {}}


@pytest.mark.parametrize(
    ("host", "source", "record"),
    [
        # Nothing there, or what is asked for, whoever installed it.
        ({}, "distribution", {}),
        ({}, "docker", {}),
        ({"installed": "docker.io", "running": ""}, "distribution", OF_THE_ROLE),
        ({"installed": "docker-ce", "running": ""}, "docker", {**OF_THE_ROLE, "source": "docker"}),
        ({"installed": "docker-ce", "running": ""}, "docker", FOREIGN),
        ({"installed": "docker-ce"}, "docker", {**OF_THE_ROLE, "source": "docker"}),
        # An engine of somebody else that works, where none was asked for by name.
        ({"installed": "docker-ce", "running": ""}, "distribution", FOREIGN),
        ({"installed": "docker-ce", "running": ""}, "distribution", {"foreign": True}),
        ({"installed": "no package", "running": ""}, "distribution", FOREIGN),
        # Somebody replaced the role's own.
        ({"installed": "docker-ce", "running": ""}, "distribution", OF_THE_ROLE),
        ({"installed": "no package", "running": ""}, "distribution", {**OF_THE_ROLE, "source": "docker"}),
        ({"installed": "docker-ce", "running": ""}, "docker", OF_THE_ROLE),
    ],
)
def test_engine_of_the_wanted_source_can_be_had(host: dict[str, str], source: str, record: Table) -> None:
    assert filters.conflict(host, source, record, "gpu-1") == ""


@pytest.mark.parametrize(
    ("host", "source", "record", "sentence"),
    [
        ({"installed": "docker.io", "running": ""}, "docker", OF_THE_ROLE, "Set docker_engine_source: distribution, or change the engine: ansible-playbook playbooks/teardown.yml --limit gpu-1"),
        ({"installed": "docker-ce", "running": ""}, "distribution", {**OF_THE_ROLE, "source": "docker"}, "Set docker_engine_source: docker, or change"),
        ({"installed": "docker-ce"}, "distribution", {**OF_THE_ROLE, "source": "docker"}, "Set docker_engine_source: docker, or change"),
        ({"installed": "docker.io", "running": ""}, "docker", FOREIGN, "remove docker.io while no job runs"),
        ({"installed": "docker.io"}, "docker", FOREIGN, "remove docker.io while no job runs"),
        ({"installed": "no package", "running": ""}, "docker", FOREIGN, "which docker-ce would replace"),
        ({"installed": "docker-ce"}, "distribution", FOREIGN, "start it (systemctl start docker)"),
        # Somebody replaced the role's own.
        ({"installed": "docker-ce"}, "distribution", OF_THE_ROLE, "start it (systemctl start docker)"),
        ({"installed": "docker.io", "running": ""}, "docker", {**OF_THE_ROLE, "source": "docker"}, "remove docker.io while no job runs"),
    ],
)  # fmt: skip
def test_no_engine_replaces_another(host: dict[str, str], source: str, record: Table, sentence: str) -> None:
    text = filters.conflict(host, source, record, "gpu-1")
    assert sentence in text and text.endswith(".")


@pytest.mark.parametrize(
    ("host", "record", "foreign"),
    [
        ({}, {}, False),
        ({"installed": "docker.io"}, {}, False),
        ({"installed": "docker.io", "running": ""}, {}, True),
        ({"installed": "docker.io"}, {"foreign": True}, True),
        ({"installed": "docker.io", "running": ""}, OF_THE_ROLE, False),
        ({"installed": "docker-ce", "running": ""}, {**OF_THE_ROLE, "source": "docker"}, False),
        # It stopped: its package says whose it is. Or an administrator replaced it.
        ({"installed": "docker.io"}, OF_THE_ROLE, False),
        ({"installed": "docker-ce", "running": ""}, OF_THE_ROLE, True),
        ({"installed": "docker.io", "running": ""}, {**OF_THE_ROLE, "source": "docker"}, True),
        ({"running": ""}, OF_THE_ROLE, False),
    ],
)
def test_engine_of_somebody_else_is_recognised(host: dict[str, str], record: Table, foreign: bool) -> None:
    assert filters.foreign(host, record) == foreign
