"""The programs that make an environment inside an image: which packages are built again, and what people see."""

from __future__ import annotations

import base64
import os
import subprocess
import sys
import types
from pathlib import Path
from typing import Any

import pytest

from train_classifier.core.errors import NoEnvironment
from train_classifier.worker.environments import build_failures, environment_build, environment_plan

INSIDE = Path(environment_build.__file__).parent / "inside"
#: uv 0.13, for a package whose setup.py imports torch.
NOT_BUILT = """\
error: Failed to build `Flash_Attn==2.5.0`
  cause: The build backend returned an error
  cause: Call to `setuptools.build_meta:__legacy__.get_requires_for_build_wheel` failed (exit status: 1)

         [stderr]
         Traceback (most recent call last):
           File "<string>", line 14, in <module>
         ModuleNotFoundError: No module named 'torch.utils'

hint: This error likely indicates that `flash-attn@2.5.0` depends on `torch`, but doesn't declare it as a build dependency.
"""


@pytest.fixture
def program() -> Any:
    """The program as a module, without its start."""
    module = types.ModuleType("install_requirements")
    text = (INSIDE / "install_requirements.py").read_text()
    exec(text.rpartition("main()")[0], module.__dict__)
    return module


@pytest.mark.parametrize(
    ("unisolated", "first"),
    [
        ({"flash-attn": "torch"}, ["torch==2.5", "six", "./lib", "git+https://h/detectron2@abc"]),
        # Not by name in the file: one of the lines without a name may be meant.
        ({"detectron2": "torch"}, ["torch==2.5", "six", "flash_attn[x] @ https://h/f.whl ; python_version>'3'"]),
        ({"": "torch", "flash-attn": "torch"}, ["torch==2.5", "six"]),
    ],
)  # fmt: skip
def test_other_lines_are_installed_first(program: Any, unisolated: dict[str, str], first: list[str]) -> None:
    lines = [
        "--extra-index-url https://h", "torch==2.5", "six", "./lib", "git+https://h/detectron2@abc",
        "flash_attn[x] @ https://h/f.whl ; python_version>'3'",
    ]  # fmt: skip
    assert program.first_lines(lines, unisolated) == ["--extra-index-url https://h", *first]


def test_only_the_imported_package_is_first_when_another_requires_the_failed_one(program: Any) -> None:
    assert program.first_lines(["torch", "six", "trainer"], {"flash-attn": "torch"}) == ["torch"]


def run(
    program: Any, monkeypatch: pytest.MonkeyPatch, *errors: str, plan: dict[str, Any] | None = None
) -> tuple[int, list[str], list[tuple[list[str], list[str]]]]:
    """Build with an uv that fails with each error in turn, then succeeds; returns what it was asked for too."""
    pending, steps = list(errors), []

    def install(
        _plan: object, _target: object, _site: str, unisolated: dict[str, str], tools: set[str]
    ) -> tuple[int, str]:
        steps.append((sorted(unisolated), sorted(tools)))
        return (1, pending.pop(0)) if pending else (0, "")

    monkeypatch.setattr(program, "install_in_steps", install)
    status, unisolated = program.build_and_install(plan or {"build_constraints": []}, [], "/nonexistent")
    return status, unisolated, steps


def test_package_that_imports_an_undeclared_one_is_built_again(
    program: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    tool = NOT_BUILT.replace("torch.utils", "ninja")
    assert run(program, monkeypatch, NOT_BUILT, tool) == (
        0, ["flash-attn"], [([], []), (["flash-attn"], []), (["flash-attn"], ["ninja"])],
    )  # fmt: skip
    # The error of a build that is tried again is not shown.
    shown = capsys.readouterr().err
    assert "flash-attn imports torch while it is built" in shown
    assert "error:" not in shown


def test_builds_are_tried_again_a_limited_number_of_times(
    program: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    status, _, steps = run(program, monkeypatch, NOT_BUILT, NOT_BUILT)
    assert (status, len(steps)) == (1, 2)
    assert capsys.readouterr().err.endswith(NOT_BUILT)
    errors = [NOT_BUILT.replace("Flash_Attn", f"package{number}") for number in range(9)]
    status, _, steps = run(program, monkeypatch, *errors)
    assert (status, len(steps)) == (1, 1 + program.MOST_UNISOLATED)
    assert run(program, monkeypatch, "error: Failed to build `x==1`\n")[2] == [([], [])]


def test_what_is_only_preferred_is_left_out_where_it_has_no_solution(
    program: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    preferred = tmp_path / "preferred.txt"
    program.PREFERRED = str(preferred)
    for error, is_left_out in (("error: No solution found when resolving", True), ("error: other", False)):
        preferred.write_text("setuptools<82\n")
        status, _, steps = run(program, monkeypatch, error)
        assert (status, len(steps), preferred.exists()) == (
            int(not is_left_out),
            1 + is_left_out,
            not is_left_out,
        )
    # Without it, it is the end.
    preferred.unlink()
    assert run(program, monkeypatch, "error: No solution found when resolving")[0] == 1


@pytest.mark.parametrize(
    ("address", "shown", "key", "login"),
    [
        ("git+https://me:a%2Fb@h/o/r.git@main#egg=x", "git+https://h/o/r.git@main#egg=x", "http.https://h/o/.extraHeader", "me:a/b"),
        ("git+https://me:a@h/o/r#subdirectory=a/b", "git+https://h/o/r#subdirectory=a/b", "http.https://h/o/.extraHeader", "me:a"),
        ("git+http://${TOKEN}@h:80/r", "git+http://h:80/r", "http.http://h:80/.extraHeader", "word:"),
        ("https://me:a@b@h/r@1", "https://h/r@1", "http.https://h/.extraHeader", "me:a@b"),
        ("git+https://h/o/r@me@v1", "git+https://h/o/r@me@v1", "", ""),
        ("git+ssh://git@h/o/r", "git+ssh://git@h/o/r", "", ""),
    ],
)  # fmt: skip
def test_git_gets_logins_by_its_environment(
    program: Any,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    address: str,
    shown: str,
    key: str,
    login: str,
) -> None:
    monkeypatch.setenv("TOKEN", "word")
    monkeypatch.setenv("GIT_CONFIG_COUNT", "0")
    program.WITHOUT_LOGINS = str(tmp_path / "changed")
    plan = {"requirements": str(tmp_path / "r"), "constraints": str(tmp_path / "c")}
    (tmp_path / "r").write_text(f"six\nx @ {address} ; python_version>'3'\n")
    (tmp_path / "c").touch()
    is_git = address.startswith("git+")
    if is_git:
        program.put_git_logins(plan)
        assert Path(plan["requirements"]).read_text() == f"six\nx @ {shown} ; python_version>'3'\n"
    else:
        assert program.put_git_login(address) == shown
    assert os.environ.get("GIT_CONFIG_KEY_1", "") == key
    header = f"Authorization: Basic {base64.b64encode(login.encode()).decode()}" if login else ""
    assert os.environ.get("GIT_CONFIG_VALUE_1", "") == header
    for name in [name for name in os.environ if name.startswith("GIT_CONFIG_")]:
        del os.environ[name]


#: uv 0.13, for packages that were written for older tools.
OLD = {
    "anyjson==0.3.3": ("error in anyjson setup command: use_2to3 is invalid.", "setuptools<58"),
    "gym==0.21.0": (
        "error in gym setup command: 'extras_require' must be a dictionary whose values are strings",
        "setuptools<66",
    ),
    "PyYAML==5.4.1": ("AttributeError: 'build_ext' object has no attribute 'cython_sources'", "cython<3"),
    "open_mmlab @ git+https://h/o@abc": (
        "ModuleNotFoundError: No module named 'pkg_resources'",
        "setuptools<82",
    ),
}


@pytest.mark.parametrize("failed", OLD)
def test_package_for_older_tools_is_built_with_them(
    failed: str, program: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    message, tool = OLD[failed]
    error = f"error: Failed to build `{failed}`\n  cause: no\n\n         {message}\n"
    monkeypatch.setattr(program, "BUILT_WITH", str(tmp_path / "built-with"))
    plan = {"build_constraints": ["torch==2.5"]}
    steps = run(program, monkeypatch, error, plan=plan)
    assert steps == (0, [], [([], []), ([], [])])
    assert (tmp_path / "built-with").read_text() == f"torch==2.5\n{tool}\n"
    # Each tool is tried once.
    assert program.older_tool(plan, error) == ""


def test_build_of_an_unknown_failure_names_the_package() -> None:
    plan = environment_plan.EnvironmentPlan(("lightfm",), (), (), (), Path("/none"), {}, "", "")
    image = types.SimpleNamespace(short_version="3.11", packages={})
    error = "error: Failed to build `lightfm==1.17`\n  AttributeError: 'dict' object has no attribute 'x'\n"
    with pytest.raises(NoEnvironment) as raised:
        build_failures.explain(image, plan, 1, error)  # type: ignore[arg-type]
    assert "a version of lightfm that has a wheel for Python 3.11 in requirements.txt" in str(
        raised.value.hint
    )


def test_failed_second_build_names_the_line_to_add() -> None:
    plan = environment_plan.EnvironmentPlan(("flash-attn",), (), (), (), Path("/none"), {}, "", "")
    with pytest.raises(NoEnvironment) as raised:
        build_failures.explain(None, plan, 1, NOT_BUILT, model="m")  # type: ignore[arg-type]
    assert raised.value.hint == "add the line torch to requirements.txt"


def test_downloads_and_builds_that_go_on_are_shown_with_sizes(
    program: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    uv = tmp_path / "uv"
    uv.write_text(
        "#!/bin/sh\ncat >&2 <<'END'\nUsing CPython 3.11.7 interpreter at: /usr/bin/python3\n"
        "Resolved 3 packages in 2ms\nDownloading torch (745.2MiB)\nDownloading six (1.1MiB)\n Downloaded six\n"
        "   Building x==1\n Downloaded torch\n      Built x==1\nBuilding a==1\nBuilding b==1\nBuilding c==1\nBuilding d==1\nPrepared 3 packages in 9s\nerror: no\n  cause: y\nEND\nexit 2\n"
    )
    uv.chmod(0o755)
    assert program.run_uv([str(uv)]) == (2, "error: no\n  cause: y\n")
    lines = capsys.readouterr().err.splitlines()
    assert "Using" not in lines[0]
    assert lines[lines.index(" Downloaded six") + 1] == "downloading torch (745.2MiB)"
    assert lines[lines.index(" Downloaded torch") + 1] == "building x==1"
    assert "building a==1, building b==1, building c==1 and 1 more" in lines
    assert lines[-1] == "writing the packages into the environment"


def test_modules_are_compiled_without_those_of_tests(tmp_path: Path) -> None:
    for name in ("a/one.py", "a/old.py", "a/tests/two.py"):
        (tmp_path / name).parent.mkdir(exist_ok=True, parents=True)
        (tmp_path / name).write_text("print 'no'\n" if "old" in name else "x = 1\n")
    os.mkfifo(tmp_path / "a" / "pipe.py")
    (tmp_path / "a" / "zero.py").symlink_to("/dev/zero")
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-c", (INSIDE / "compile_modules.py").read_text(), str(tmp_path), "2"],
        capture_output=True, text=True, check=True, timeout=300,
    )  # fmt: skip
    assert [path.name.partition(".")[0] for path in tmp_path.rglob("*.pyc")] == ["one"]
    assert done.stdout == "compiling 2 modules (0.0 MiB): 0 %\n"
