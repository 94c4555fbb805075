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
