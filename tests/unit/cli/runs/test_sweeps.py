"""`--sweep` and several models: which jobs they are, and what is refused."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import pytest

from train_classifier.cli import app
from train_classifier.cli.runs import sweeps
from train_classifier.core.errors import ExitCode
from train_classifier.core.job import JobSpec, Repository


@pytest.fixture
def repo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A repository of two models, which is the current folder."""
    for model in ("mnist", "yolo"):
        (tmp_path / model).mkdir()
        for file in ("__init__.py", "__main__.py"):
            (tmp_path / model / file).touch()
    monkeypatch.chdir(tmp_path)
    return tmp_path


def dry(capfd: pytest.CaptureFixture[str], *words: str) -> dict[str, Any]:
    capfd.readouterr()
    code = app.run(["train", "--dry-run", "--json", *words])
    out, err = capfd.readouterr()
    assert code == 0, err
    answer: dict[str, Any] = json.loads(out)
    return answer


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("lr=0.1,0.01", ["0.1", "0.01"]),
        ("lr=1", ["1"]),
        ('layers="64,32",128', ["64,32", "128"]),
        ('name="say ""hi""",x', ['say "hi"', "x"]),
        ("where=a b,$HOME,`id`,;rm -rf,'", ["a b", "$HOME", "`id`", ";rm -rf", "'"]),
        ("expression=a=b,c", ["a=b", "c"]),
        ("word=größe,\u202e", ["größe", "\u202e"]),
    ],
)
def test_values_of_a_sweep(text: str, values: list[str]) -> None:
    name = text.partition("=")[0]
    assert sweeps.parse(text) == tuple((name, value) for value in values)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("lr=", "empty value"),
        ("lr=0.1,,1", "empty value"),
        ("lr=,", "empty value"),
        ('lr=""', "empty value"),
        ("lr", "has no values"),
        ("", "not the name"),
        ("=1,2", "not the name"),
        ("0.1,0.2", "not the name"),
        ("a b=1", "not the name"),
        ("--lr=1,2", "begins with a dash"),
        ("seed=1,2,1", "'1' twice"),
        ("a,b,a", "'a' twice"),
        ("a,", "not the name"),
        ('x="a', "CSV"),
        ('x="a"b', "CSV"),
        ("x=a\nb", "line break"),
        ("x=" + "9" * 200_000, "CSV"),
        # As many as an argument may hold; compared each with each they took half a minute.
        ("x=" + ",".join(map(str, range(22_000))) + ",0", "'0' twice"),
    ],
)
def test_sweeps_that_are_refused(text: str, words: str) -> None:
    with pytest.raises(ValueError, match=words) as refused:
        sweeps.parse(text)
    assert len(str(refused.value)) < 400 and "\n" not in str(refused.value)


def test_a_parser_of_a_model_reads_what_it_gets() -> None:
    """Negative numbers, values like flags, and flags without a value."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--lr", type=float)
    parser.add_argument("--mode")
    parser.add_argument("-1", dest="one", action="store_true")
    parser.add_argument("--augment", action=argparse.BooleanOptionalAction)
    choices, problems = sweeps.combinations(["lr=-0.1,1e-3", "mode=--fast,a b", "augment,no-augment"])
    assert problems == [] and len(choices) == 8
    read = [parser.parse_args(sweeps.arguments(choice)) for choice in choices]
    assert {(each.lr, each.mode, each.augment) for each in read} == {
        (lr, mode, augment) for lr in (-0.1, 1e-3) for mode in ("--fast", "a b") for augment in (True, False)
    }


def test_every_combination_is_a_job_of_one_group(repo: Path, capfd: pytest.CaptureFixture[str]) -> None:
    answer = dry(capfd, "mnist", "--sweep", "lr=0.1,0.01", "--sweep", "seed=1,2,3", "--", "--epochs", "3")
    assert [job["spec"]["arguments"] for job in answer["jobs"]] == [
        ["--epochs", "3", "--lr", lr, "--seed", seed] for lr in ("0.1", "0.01") for seed in "123"
    ]
    assert answer["jobs"][1]["spec"]["sweep"] == {"lr": "0.1", "seed": "2"}
    assert len({job["output"] for job in answer["jobs"]}) == 6
    models = dry(capfd, "mnist", "yolo/", "--sweep", "seed=1,2", "--max-parallel", "3")["jobs"]
    assert [(job["model"], job["spec"]["sweep"]["seed"], job["spec"]["max_parallel"]) for job in models] == [
        ("mnist", "1", 3), ("mnist", "2", 3), ("yolo", "1", 3), ("yolo", "2", 3),
    ]  # fmt: skip


def test_one_combination_is_one_job(repo: Path, capfd: pytest.CaptureFixture[str]) -> None:
    answer = dry(capfd, "mnist", "--sweep", "lr=0.1")
    assert (answer["spec"]["arguments"], answer["spec"]["group"]) == (["--lr", "0.1"], None)
    assert answer["output"] == str(repo / "artefacts.tar.gz")


def test_argument_that_is_given_twice_is_named(repo: Path, capfd: pytest.CaptureFixture[str]) -> None:
    words = ["train", "mnist", "--dry-run", "--sweep", "lr=1,2", "--sweep", "seed=1,2", "--"]
    assert app.run([*words, "--lr", "3", "--seed=4"]) == 0
    err = capfd.readouterr().err
    assert err.count("gets --lr twice") == err.count("gets --seed twice") == 1
    assert app.run([*words, "--lr-decay", "3"]) == 0
    assert "twice" not in capfd.readouterr().err


def test_all_problems_at_once(repo: Path, capfd: pytest.CaptureFixture[str]) -> None:
    words = ["--sweep", "a=1,2", "--sweep", "a=3", "--sweep", "b=", "--max-parallel", "0", "--gpus", "x"]
    assert app.run(["train", "mnist", "mnist", "none", "--dry-run", *words]) == ExitCode.BAD_INPUT
    err = capfd.readouterr().err
    for sentence in (
        "'a' is swept twice", "empty value", "'mnist' is named twice", "'none'", "--max-parallel", "--gpus",
    ):  # fmt: skip
        assert sentence in err, sentence


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--sweep", "n=" + ",".join(map(str, range(100)))], "100 jobs are more than the 99"),
        (
            ["yolo", *(f"--sweep={name}=1,2,3,4,5,6,7,8,9,10" for name in "abcdefgh")],
            "200000000 jobs are more",
        ),
        (["--max-parallel", "2"], "there is one job"),
        (["--sweep", "a=1,2", "--max-parallel", "2", "--dependency", "afterok:1?afterok:2"], "exclude"),
    ],
)
def test_limits(repo: Path, capfd: pytest.CaptureFixture[str], words: list[str], sentence: str) -> None:
    assert app.run(["train", "mnist", "--dry-run", *words]) == ExitCode.BAD_INPUT
    assert sentence in capfd.readouterr().err


@pytest.mark.parametrize(
    "changes",
    [
        {"group": "20260101-000000-000000"}, {"id": "20260101-000000-01234500"}, {"max_parallel": 0}, {"max_parallel": True},
        {"sweep": []}, {"sweep": {"a b": "1"}}, {"sweep": {"a": 1}}, {"group": ["20260101-000000-012345"]},
    ],
)  # fmt: skip
def test_a_host_refuses_what_is_no_group(changes: dict[str, Any]) -> None:
    job, group = "20260101-000000-01234501", "20260101-000000-012345"
    good = JobSpec(
        job, "m", Repository("r", "0" * 16), group=group, sweep={"a": ""}, max_parallel=99
    ).to_dict()
    assert JobSpec.from_dict(good).problems() == []
    with pytest.raises(ValueError):
        JobSpec.from_dict({**good, **changes})
