"""Tracebacks of real Python processes become annotations at the right line of the repository."""

import subprocess
import sys
from pathlib import Path

import pytest

from train_classifier.reports.tracebacks import Annotation, find


def traceback_of(tmp_path: Path, main: str, **others: str) -> str:
    """Run a model and return its output as it would stand in log.txt, where the repository is at /workspace."""
    (tmp_path / "mnist").mkdir()
    (tmp_path / "mnist" / "__main__.py").write_text(main)
    for name, text in others.items():
        (tmp_path / "mnist" / f"{name}.py").write_text(text)
    done = subprocess.run(
        [sys.executable, "-m", "mnist"],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        check=False,
        text=True,
    )
    return done.stdout.replace(str(tmp_path), "/workspace")


def test_innermost_frame_of_the_repository(tmp_path: Path) -> None:
    log = traceback_of(
        tmp_path,
        "print('epoch 1')\nfrom mnist import data\ndata.load()\n",
        data="import json\n\n\ndef load():\n    return json.loads('{')\n",
    )
    (annotation,) = find(log)
    assert (annotation.file, annotation.line) == ("mnist/data.py", 5)
    assert annotation.message.startswith("json.decoder.JSONDecodeError: Expecting property name")


def test_chained_exceptions(tmp_path: Path) -> None:
    log = traceback_of(
        tmp_path, "try:\n    {}['a']\nexcept KeyError as error:\n    raise ValueError('no a') from error\n"
    )
    assert find(log) == [
        Annotation("mnist/__main__.py", 2, "KeyError: 'a'"),
        Annotation("mnist/__main__.py", 4, "ValueError: no a"),
    ]


def test_syntax_error_of_an_import(tmp_path: Path) -> None:
    (annotation,) = find(traceback_of(tmp_path, "import mnist.data\n", data="x = 1\ny = (\n"))
    assert (annotation.file, annotation.line) == ("mnist/data.py", 2)
    assert annotation.message.startswith("SyntaxError: ")


def test_syntax_error_of_the_entry_point(tmp_path: Path) -> None:
    (annotation,) = find("epoch 1\n" + traceback_of(tmp_path, "x = 1\ndef f(:\n"))
    assert (annotation.file, annotation.line) == ("mnist/__main__.py", 2)
    assert annotation.message.startswith("SyntaxError: ")


def test_exception_group(tmp_path: Path) -> None:
    main = (
        "def fail(error):\n    try:\n        raise error\n    except Exception as caught:\n        return caught\n"
        "raise ExceptionGroup('two', [fail(ValueError('a')), fail(TypeError('b'))])\n"
    )
    assert find(traceback_of(tmp_path, main)) == [
        Annotation("mnist/__main__.py", 6, "ExceptionGroup: two (2 sub-exceptions)"),
        Annotation("mnist/__main__.py", 3, "ValueError: a"),
        Annotation("mnist/__main__.py", 3, "TypeError: b"),
    ]


def test_recursion(tmp_path: Path) -> None:
    (annotation,) = find(traceback_of(tmp_path, "def f():\n    f()\nf()\n"))
    assert (annotation.file, annotation.line) == ("mnist/__main__.py", 2)


def test_other_output_between_the_lines_and_a_progress_bar_before() -> None:
    log = (
        "50%\r100%\rTraceback (most recent call last):\n"
        '  File "/workspace/mnist/__main__.py", line 7, in <module>\n'
        "    \x1b[31mtrain()\x1b[0m\n"
        "I0000 00:00 some C++ library has its say\n"
        "\x1b[1;31mValueError\x1b[0m: bad: worse\n"
    )
    assert find(log) == [Annotation("mnist/__main__.py", 7, "ValueError: bad: worse")]


def test_frames_elsewhere_are_no_annotations() -> None:
    log = "".join(
        f'Traceback (most recent call last):\n  File "{file}", line 1, in f\nKeyError: 1\n'
        for file in (
            "/usr/lib/python3.11/json/decoder.py",
            "<string>",
            "/workspace/../etc/passwd",
            "/workspace/.venv/lib/python3.11/site-packages/x.py",
            "/workspaces/a.py",
        )
    )
    assert find(log) == []
    assert find("") == []
    assert find("Traceback (most recent call last):\n") == []


def test_equal_annotations_count_once_and_number_is_limited() -> None:
    """Ten errors of a step are shown, and one of them says how the job ended."""
    one = 'Traceback (most recent call last):\n  File "/workspace/a.py", line {}, in f\nKeyError: 1\n'
    assert len(find(one.format(1) * 3)) == 1
    assert [annotation.line for annotation in find("".join(one.format(n) for n in range(1, 31)))] == list(
        range(22, 31)
    )


def test_ranks_of_a_distributed_training() -> None:
    """PyTorch puts the rank in front of each line, and the processes write between each other's lines."""
    one = (
        "[rank{0}]: Traceback (most recent call last):\n"
        '[rank{0}]:   File "/workspace/mnist/__main__.py", line 4{0}, in <module>\n'
        "[rank{0}]:     train()\n"
        "[rank{0}]:     ~~~~~^^\n"
        "[rank{0}]: torch.distributed.DistBackendError: NCCL error of {0}\n"
    )
    mixed = [
        line for pair in zip(*(one.format(n).splitlines() for n in range(2)), strict=True) for line in pair
    ]
    for log in (one.format(0) + one.format(1), "\n".join(mixed), "\n".join(f"[default0]:{x}" for x in mixed)):
        assert find(log) == [
            Annotation("mnist/__main__.py", 40, "torch.distributed.DistBackendError: NCCL error of 0"),
            Annotation("mnist/__main__.py", 41, "torch.distributed.DistBackendError: NCCL error of 1"),
        ]


@pytest.mark.parametrize(
    "error", ["KeyboardInterrupt", "StopIteration", "mnist.data.LoadError", "AssertionError"]
)
def test_other_output_between_the_lines_is_no_error(error: str) -> None:
    """What another thread prints between frame and error is not taken for the error."""
    log = (
        "Traceback (most recent call last):\n"
        '  File "/workspace/mnist/__main__.py", line 7, in <module>\n'
        f"    train()\ndone\nsaved.checkpoint\n{error}\n"
    )
    assert find(log) == [Annotation("mnist/__main__.py", 7, error)]
