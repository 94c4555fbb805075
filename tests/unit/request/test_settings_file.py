"""train-classifier.toml: precedence of its tables, its faults (row 5), its published schema."""

import json
import os
import tomllib
from pathlib import Path

import jsonschema
import pytest

from train_classifier.core.errors import BadInput
from train_classifier.request import settings_file

ROOT = Path(__file__).parents[3]


def problems(text: str | bytes) -> list[str]:
    """Return what is wrong with a settings file."""
    with pytest.raises(BadInput) as caught:
        settings_file.parse(text if isinstance(text, bytes) else text.encode())
    assert all("\n" not in problem for problem in caught.value.problems)
    return caught.value.problems


def test_a_model_wins_over_the_defaults_and_tables_add_up() -> None:
    settings = settings_file.parse(
        b"""
        [defaults]
        gpus = 1
        timeout = "6h"
        secrets = ["HF_TOKEN"]
        data = { digits = "/mnt/digits", more = "/mnt/more" }
        environment = { EPOCHS = "3", SEED = "1" }
        [models.mnist]
        gpus = "auto"
        timeout = "none"
        min_vram = 6000
        secrets = ["WANDB_API_KEY", "HF_TOKEN"]
        data = ["/mnt/other:digits"]
        environment = { EPOCHS = "5" }
        """
    )
    mnist = settings.of("mnist")
    assert mnist["gpus"] == "auto"
    assert mnist["timeout"] is None
    assert mnist["min_vram"] == 6000
    assert mnist["secrets"] == ("HF_TOKEN", "WANDB_API_KEY")
    assert {folder.name: folder.path for folder in mnist["data"]} == {
        "digits": "/mnt/other",
        "more": "/mnt/more",
    }
    assert mnist["environment"] == {"EPOCHS": "5", "SEED": "1"}
    assert settings.of("yolo")["timeout"] == 21600
    assert "image" not in settings.of("yolo")


@pytest.mark.parametrize(
    ("text", "place"),
    [
        (b"a = ", "line 1, column 5"),
        (b"[defaults]\ngpus = = 1\n", "line 2, column 8"),
        (b"[defaults\n", "line 1, column 10"),
        (b"[defaults]\ngpus = 1\ngpus = 2\n", "line 3, column"),
        (b"[defaults]\nimage = 'x\n", "line 3, column 1"),
        (b"[defaults]\n# gr\xfcn\n", "line 2, column 5"),
        (b"x = '''", "line 1, column"),
    ],
)
def test_syntax_errors_name_line_and_column(text: bytes, place: str) -> None:
    (problem,) = problems(text)
    assert problem.startswith(f"train-classifier.toml: {place}")


def test_a_byte_order_mark_and_windows_lines_are_fine() -> None:
    assert settings_file.parse(b"\xef\xbb\xbf[defaults]\r\ngpus = 0\r\n").of(None) == {"gpus": 0}


def test_unknown_keys_name_the_nearest() -> None:
    sentences = problems(
        "gpus = 1\n[default]\n[defaults]\ntimout = 3\nmin-vram = '8GiB'\n[models.mnist]\nenv = {}\nzzz = 1\n"
    )
    assert any("'gpus'; put it below [defaults] or [models.NAME]" in problem for problem in sentences)
    assert any("'default'; did you mean 'defaults'?" in problem for problem in sentences)
    assert any(
        "[defaults]: unknown key 'timout'; did you mean 'timeout'?" in problem for problem in sentences
    )
    assert any(
        "[defaults]: unknown key 'min-vram'; did you mean 'min_vram'?" in problem for problem in sentences
    )
    assert any(
        "[models.mnist]: unknown key 'env'; did you mean 'environment'?" in problem for problem in sentences
    )
    assert any(
        "[models.mnist]: unknown key 'zzz'; known are account, allow_empty" in problem
        for problem in sentences
    )
    assert len(sentences) == 6


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("gpus = -1", "gpus: -1 is not a number of GPUs"),
        ("gpus = '1'", "gpus: '1' is text; write gpus = 1"),
        ("gpus = 'q'", "gpus: 'q' is not a number of GPUs"),
        ("gpus = 1.5", "gpus: 1.5 is of the wrong type"),
        ("gpus = true", "gpus: True is not a number of GPUs"),
        ("pids = 3", "pids: 3 is not a whole number from 16"),
        ("cpus = nan", "cpus: nan is not a number"),
        ("cpus = 1e99", "cpus: 1e+99 is not a number"),
        ("allow_empty = 'yes'", "allow_empty: 'yes' is text"),
        ("allow_empty = 1", "allow_empty: 1 is of the wrong type"),
        ("timeout = -1", "timeout: -1 is negative"),
        ("timeout = 0", "timeout: 0 is not from 1"),
        ("timeout = 1e99", "timeout: 1e+99 is more than a year"),
        ("grace = '2h'", "grace: '2h' is not from 0 to 3600"),
        ("memory = '1KiB'", "memory: '1KiB' is 1.0 KiB, less than 6.0 MiB"),
        ("memory = 1979-05-27", "memory: 1979-05-27 is not a size"),
        ("image = 3", "image: 3 is not text"),
        ("image = 'Upper/case:1 x'", "image: 'Upper/case:1 x' is not an image reference"),
        ("network = 'host'", "network: 'host' is not one of full, none"),
        ("gpu_check = true", "gpu_check: True is not one of framework, device, off"),
        ("environment = 3", "environment: wanted a table"),
        ("environment = { A = 1 }", "environment: the value of A is not text"),
        ("environment = { 'A-B' = '1' }", "environment: 'A-B' is not the name"),
        ("secrets = 'A'", "secrets: wanted a list"),
        ("secrets = ['A=hunter2']", "secrets: secret 'A=…' carries a value"),
        ("data = ['digits']", "data: 'digits' is not HOST_DIR:NAME"),
        ("data = { digits = 'relative' }", "data: data folder 'relative' is not an absolute path"),
        (
            "data = { digits = '/srv/../x' }",
            "data: data folder '/srv/../x' holds '..': write the path without it",
        ),
        ("data = ['/a:x', '/b:x']", "data: data name 'x' is given twice"),
        ("output = ''", "output: the value is empty"),
    ],
)
def test_wrong_values(line: str, message: str) -> None:
    (problem,) = problems(f"[models.mnist]\n{line}\n")
    assert problem.startswith(f"train-classifier.toml: [models.mnist] {message}")
    assert "hunter2" not in problem


def test_what_a_repository_may_not_set_is_reported_beside_other_problems() -> None:
    sentences = problems("[defaults]\ngpus = 'q'\nsecrets = ['TOKEN']\nlog_max = '9GiB'\n")
    assert len(sentences) == 3 and "secrets" in sentences[2] and "log_max" in sentences[1]


def test_refusals_count_towards_the_limit_of_problems() -> None:
    refused = "".join(f"[models.m{number}]\nsecrets = ['TOKEN']\n" for number in range(25))
    sentences = problems("[defaults]\ngpus = 'q'\n" + refused)
    assert len(sentences) == settings_file.MOST_PROBLEMS + 1
    assert "gpus" in sentences[0] and all("secrets" in problem for problem in sentences[1:-1])
    assert sentences[-1] == "train-classifier.toml: there are more problems; correct these first"


def test_refusal_names_the_real_path_of_the_own_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = settings_file.parse(b"[defaults]\nsecrets = ['TOKEN']\n")
    for folder, path in (("", "~/.config"), ("relative", "~/.config"), ("/home/u/xdg", "/home/u/xdg")):
        monkeypatch.setenv("XDG_CONFIG_HOME", folder)
        (problem,) = settings_file.refusals(settings)
        assert f"of your own settings, {path}/train-classifier/config.toml, or give --secret" in problem


def test_tables_of_the_wrong_shape() -> None:
    assert problems("models = 3") == ["train-classifier.toml: models is 3, wanted a table: write [models]"]
    assert problems("[models]\nmnist = 3") == [
        "train-classifier.toml: models.mnist is 3, wanted a table: write [models.mnist]"
    ]
    assert "not the name of a model" in problems("[models.'a/b']\n")[0]


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    assert settings_file.load(tmp_path).of("mnist") == {}
    path = tmp_path / settings_file.FILE
    path.symlink_to("nowhere")
    with pytest.raises(BadInput, match="cannot be read: No such file"):
        settings_file.load(tmp_path)
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(BadInput, match="not a regular file"):
        settings_file.load(tmp_path)
    path.unlink()
    path.write_bytes(b"#" * (settings_file.MOST_BYTES + 1))
    with pytest.raises(BadInput, match="over 1 MiB"):
        settings_file.load(tmp_path)


def test_models_that_do_not_exist_are_reported() -> None:
    settings = settings_file.parse(b"[models.mnits]\ngpus = 0\n[models.mnist]\n")
    assert settings_file.unknown_models(settings, ["mnist"]) == [
        "train-classifier.toml: [models.mnits] names no model of this repository; did you mean [models.mnist]?"
    ]


def test_the_schema_agrees_with_the_parser() -> None:
    schema = json.loads((ROOT / "docs" / "train-classifier.schema.json").read_text())
    jsonschema.Draft202012Validator.check_schema(schema)
    checker = jsonschema.Draft202012Validator(schema)
    good = '[defaults]\ngpus = "auto"\ncpus = 1.5\ntimeout = 90\ndata = { a = "/b" }\n[models.mnist]\ndata = ["/b:a"]\n'
    assert settings_file.parse(good.encode())
    checker.validate(tomllib.loads(good))
    for bad in ("gpus = 1", "[defaults]\ntimout = 1", "[defaults]\ngpus = -1", "[models.'a/b']\ngpus = 1"):
        assert problems(bad)
        assert not checker.is_valid(tomllib.loads(bad)), bad


def test_examples_in_the_manual_are_settings() -> None:
    text = (ROOT / "docs" / "settings.md").read_text()
    first, own, *more = (part.partition("```")[0] for part in text.split("```toml\n")[1:])
    for example in (first, *more):
        settings_file.parse(example.encode())
    assert settings_file.parse(own.encode(), "config.toml").hosts == ("gpu-1", "gpu-2")


def test_the_shortest_key_that_begins_alike_is_suggested() -> None:
    assert problems("[defaults]\ngpu = 1") == [
        "train-classifier.toml: [defaults]: unknown key 'gpu'; did you mean 'gpus'?"
    ]
