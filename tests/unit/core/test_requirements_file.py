"""requirements.txt and apt-pkgs.txt: what is accepted, what is refused, and in which words."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from train_classifier.core import apt_file, image_reference, regular_file
from train_classifier.core.project.own_package import OwnPackage
from train_classifier.core.requirements_file import Requirements, parse


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    (tmp_path / "mnist").mkdir()
    (tmp_path / "lib" / "shapes").mkdir(parents=True)
    (tmp_path / "lib" / "shapes" / "pyproject.toml").write_text("[project]\nname='shapes'\nversion='1'\n")
    return tmp_path


def ask(repository: Path, text: str | bytes) -> Requirements:
    data = text if isinstance(text, bytes) else text.encode()
    (repository / "mnist" / "requirements.txt").write_bytes(data)
    return parse(repository, "mnist")


@pytest.mark.parametrize(
    ("text", "lines"),
    [
        (b"", ()),
        (b"# nothing\n\n   \n", ()),
        (b"\xef\xbb\xbfsix\r\nattrs>=1\r\n", ("six", "attrs>=1")),
        ("six\r\nidna\r\n".encode("utf-16"), ("six", "idna")),
        (b"six  # a comment", ("six",)),
        (
            b"six==1 \\\n --hash=sha256:aa \\\n --hash=sha256:bb",
            ("six==1  --hash=sha256:aa  --hash=sha256:bb",),
        ),
        (b"Foo_bar[a, b] >=1,<2 ; python_version < '4'", ("Foo_bar[a, b] >=1,<2 ; python_version < '4'",)),
        (b"foo (>=1.0)", ("foo (>=1.0)",)),
        (b"torch==2.6.0+cu124", ("torch==2.6.0+cu124",)),
        (b"foo @ https://example.org/foo.whl", ("foo @ https://example.org/foo.whl",)),
        (b"git+https://example.org/foo.git@v1#egg=foo", ("git+https://example.org/foo.git@v1#egg=foo",)),
        (b"./lib/shapes", ("./lib/shapes",)),
        (b"shapes @ ./lib/shapes", ("shapes @ ./lib/shapes",)),
        (b"six===1.16.0", ("six===1.16.0",)),
        (b"git+https://${TOKEN}@github.com/me/lib.git", ("git+https://${TOKEN}@github.com/me/lib.git",)),
    ],
)
def test_accepted(repository: Path, text: bytes, lines: tuple[str, ...]) -> None:
    requirements = ask(repository, text)
    assert requirements.problems == ()
    assert requirements.lines == lines


def test_missing_file_asks_for_nothing(repository: Path) -> None:
    assert parse(repository, "mnist") == Requirements()


def test_first_file_with_requirements_is_chosen(repository: Path) -> None:
    (repository / "environment.yaml").touch()
    assert parse(repository, "mnist").problems == (
        "environment.yaml is not read; write the packages into mnist/requirements.txt (empty: those of the image)",
    )
    (repository / "requirements.txt").write_text("from-top\n")
    # Without dependencies a project says nothing.
    for path in ("pyproject.toml", "mnist/pyproject.toml"):
        text = "[project]\nname = 'x'\ndynamic = ['dependencies']\n[tool.uv.sources]\n"
        (repository / path).write_text(text)
    chosen = parse(repository, "mnist")
    assert (chosen.files, chosen.name, chosen.lines) == (
        ("requirements.txt",), "requirements.txt", ("from-top",),
    )  # fmt: skip
    for path in ("pyproject.toml", "mnist/pyproject.toml"):
        name = path.partition("/")[0]
        (repository / path).write_text(f"project.dependencies = ['{name}']\n")
        chosen = parse(repository, "mnist")
        assert (chosen.files, chosen.name, chosen.lines) == ((path,), path, (name,))
    (repository / "mnist" / "requirements.txt").touch()
    chosen = parse(repository, "mnist")
    assert (chosen.files, chosen.name, chosen.lines) == (
        ("mnist/requirements.txt",), "requirements.txt", (),
    )  # fmt: skip


DYNAMIC = '[project]\ndynamic = ["dependencies"]\n[tool.setuptools.dynamic.dependencies]\nfile = "FILE"\n'


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("[project]\ndependencies = ['--index-url https://x']\n", "pyproject.toml: not a requirement"),
        ("[project]\ndependencies = ['./lib']\n", "pyproject.toml: not a requirement"),
        ('[project]\ndependencies = ["a ; x\\r-r b"]\n', "pyproject.toml: not a requirement"),
        ("[project]\ndependencies = ['a @ ../b']\n", "leads out of the repository"),
        (
            "[project]\ndependencies = ['a']\n[[tool.uv.index]]\n",
            "tool.uv.index '' has the address 'None', and only https://… without variables is followed; write",
        ),
        ("[project]\ndependencies = ['a'", "a bracket does not close; write the packages into"),
        ("[project]\ndependencies = 'a'", "is not a list"),
        (DYNAMIC.replace("FILE", "a\\u0000b"), "'a\\x00b' is no path"),
        (DYNAMIC.replace("FILE", "a\\ud800b"), "'a\\ud800b' is no path"),
        ("\n\nproject", "line 3 is not TOML"),
        ("x = '''\n", "a text in quotes does not end"),
        ("#" * (1 << 18) + "\n", "is over 256 KiB"),
    ],
)
def test_refused_projects(repository: Path, text: str, problem: str) -> None:
    (repository / "pyproject.toml").write_text(text)
    (sentence,) = parse(repository, "mnist").problems
    assert problem in sentence


@pytest.mark.parametrize(
    ("text", "note"),
    [
        (
            "[tool.poetry.dependencies]\na = '^1 || ^3'\n",
            "pyproject.toml: 'a' in tool.poetry.dependencies has the version '^1 || ^3', which is not read (one range, as in '>=1.2,<3')",
        ),
        (
            "[project]\ndependencies = ['a']\n[tool.uv.sources]\na = { workspace = true }\n",
            "pyproject.toml: tool.uv.sources.a cannot be followed without uv.lock",
        ),
        ("[project]\ndependencies = ['a', './b']\n", "pyproject.toml: not a requirement: './b'"),
        # What is no TOML is not passed over.
        ("[project]\ndependencies = ['a'\n", ""),
        ("#" * (1 << 18) + "\n", ""),
    ],
)  # fmt: skip
def test_project_that_is_not_followed_gives_way_to_the_requirements_beside_it(
    repository: Path, text: str, note: str
) -> None:
    (repository / "requirements.txt").write_text("six\n")
    (repository / "pyproject.toml").write_text(text)
    chosen = parse(repository, "mnist")
    if not note:
        assert len(chosen.problems) == 1 and chosen.lines == ()
        return
    assert (chosen.problems, chosen.files, chosen.lines) == ((), ("requirements.txt",), ("six",))
    assert chosen.notes == (f"requirements.txt is used instead of {note}",)
    # That of the model says what the model needs.
    (repository / "mnist" / "pyproject.toml").write_text(text)
    assert parse(repository, "mnist").problems[0].startswith("mnist/pyproject.toml: ")


def test_lock_beside_the_project_is_chosen(repository: Path) -> None:
    (repository / "pyproject.toml").write_text("[project]\ndependencies = ['a']\n[tool.uv.sources]\n")
    registry = 'source = {{ registry = "https://{}/simple" }}\n'
    lock = "".join(map(registry.format, ("b.example", "a.example", "a.example")))
    (repository / "uv.lock").write_text(lock + 'source = { virtual = "." }\nsource = { git = "https://c" }\n')
    chosen = parse(repository, "mnist")
    assert (chosen.problems, chosen.lines, chosen.lock, chosen.is_empty) == ((), (), "uv.lock", False)
    assert (chosen.files, chosen.paths) == (("uv.lock", "pyproject.toml"), ("pyproject.toml", "uv.lock"))
    assert chosen.options == ("--extra-index-url https://b.example/simple",)
    old = '[[package]]\nsource = { virtual = "." }\n[package.metadata]\nrequires-dist = [{ name = "b" }]\n'
    (repository / "uv.lock").write_text(f"version = 1\n\n{old}")
    assert parse(repository, "mnist").notes == (
        "uv.lock is installed as it is, and is older than pyproject.toml (a, b): run uv lock",
    )
    for source in ('editable = "lib"', 'registry = "wheels"', 'path = "a.whl"'):
        (repository / "uv.lock").write_text(f"source = {{ {source} }}\n")
        assert "cannot be installed from it; write" in parse(repository, "mnist").problems[0]
    (repository / "uv.lock").write_text('source = { registry = "https://a\r--index-url https://b" }\n')
    assert "control character" in parse(repository, "mnist").problems[0]
    (repository / "uv.lock").unlink()
    (repository / "uv.lock").symlink_to("/etc/passwd")
    assert "leads out of the repository" in parse(repository, "mnist").problems[0]


def test_project_out_of_the_repository(repository: Path) -> None:
    (repository / "pyproject.toml").symlink_to("/etc/passwd")
    assert "leads out of the repository" in parse(repository, "mnist").problems[0]


def test_options_and_included_files(repository: Path) -> None:
    (repository / "mnist" / "more.txt").write_text("-i https://index.example/simple\nidna\n")
    (repository / "limits.txt").write_text("idna<4\n")
    text = "-r more.txt\n--constraint=../limits.txt\n-fhttps://wheels.example\n--extra-index-url https://b.example\n--pre\n"
    requirements = ask(repository, text)
    assert requirements.problems == ()
    assert requirements.files == ("mnist/requirements.txt", "mnist/more.txt", "limits.txt")
    assert (requirements.lines, requirements.constraints) == (("idna",), ("idna<4",))
    assert requirements.options == (
        "--index-url https://index.example/simple",
        "--find-links https://wheels.example",
        "--extra-index-url https://b.example",
        "--pre",
    )


@pytest.mark.parametrize(
    ("line", "requirement"),
    [
        ("-e .", "."), ("--editable lib[extra]", "./lib[extra]"), ("-e ./lib", "./lib"),
        ("-e git+https://example.org/a/b.git#egg=b", "b @ git+https://example.org/a/b.git"),
        (
            "-e git+https://example.org/a/b.git@v1#egg=b[x]&subdirectory=python",
            "b[x] @ git+https://example.org/a/b.git@v1#subdirectory=python",
        ),
        ("-e git+ssh://git@example.org/a/b", "git+ssh://git@example.org/a/b"),
    ],
)  # fmt: skip
def test_editable_requirement_is_installed_as_it_is(repository: Path, line: str, requirement: str) -> None:
    (repository / "lib").mkdir(exist_ok=True)
    requirements = ask(repository, f"{line}\n")
    assert (requirements.problems, requirements.lines) == ((), (requirement,))


def test_options_on_one_line_and_a_marker_behind_an_index(repository: Path) -> None:
    text = (
        "--pre -i https://a.example/simple --trusted-host a.example\n"
        "--extra-index-url https://b.example/whl ; sys_platform == 'linux'\n"
    )
    requirements = ask(repository, text)
    assert requirements.problems == ()
    assert requirements.options == (
        "--pre",
        "--index-url https://a.example/simple",
        "--trusted-host a.example",
        "--extra-index-url https://b.example/whl",
    )


def test_folder_of_wheels_is_beside_the_file_first(repository: Path) -> None:
    (repository / "wheels").mkdir()
    assert ask(repository, "-f wheels\n").options == ("--find-links wheels",)
    (repository / "mnist" / "wheels").mkdir()
    assert ask(repository, "-f wheels\n").options == ("--find-links mnist/wheels",)


def test_files_that_include_each_other_end(repository: Path) -> None:
    (repository / "mnist" / "more.txt").write_text("-r requirements.txt\nsix\n")
    assert ask(repository, "-r more.txt\nidna\n").lines == ("six", "idna")


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("-r nope.txt", "does not exist in the repository"),
        ("-r ../../etc/passwd", "leads out of the repository"),
        ("-r /etc/passwd", "is an absolute path"),
        ("-r https://example.org/r.txt", "only files inside the repository can be included"),
        ("-r", "lacks its file"),
        ("-e", "lacks its value"),
        ("-e ../elsewhere", "leads out"),
        ("-e git+file:///x#egg=x", "path of one machine"),
        ("-c nope.txt", "does not exist in the repository"),
        ("../outside", "leads out of the repository"),
        ("/opt/wheels/foo.whl", "is an absolute path"),
        ("foo.whl", "does not exist in the repository"),
        ("foo @ file:///opt/foo.whl", "is a path of one machine"),
        ("--install-option=x", "unknown option"),
        ("-i", "lacks its value"),
        ("six 1.16", "not a requirement"),
        ("six=1.16", "not a requirement"),
        ("$(id)", "not a requirement"),
        (b"\xff\xfe\xff", "is not text in UTF-8: save it as UTF-8"),
        ("six # für".encode("latin-1"), "is not text in UTF-8: save it as UTF-8"),
        (
            "numpy @ file:///croot/numpy_and_numpy_base_1682/work",
            "prints it under conda: write numpy==VERSION",
        ),
        ("numpy=1.21.2=py39h20f2e39_0", "this is conda's list: write numpy==1.21.2"),
        ("numpy=1.21.2", "write numpy==1.21.2"),
        ("numpy      1.26.4", "write numpy==1.26.4"),
        ("Package    Version", "this is the table of pip list"),
        ("!pip install six", "write what follows pip install"),
        ("python>=3.8", 'write python = "3.N" into train-classifier.toml'),
        ("pkg-resources==0.0.0", "remove the line"),
        ("https://github.com/openai/CLIP.git", "write git+https://github.com/openai/CLIP.git"),
        ("-e git+git@github.com:me/lib.git#egg=lib", "write git+ssh://git@github.com/me/lib.git"),
        ("-e file:///home/me/lib", "is a path of one machine"),
        ("-e /home/me/lib", "is an absolute path"),
        ("C:\\Users\\me\\lib.whl", "is a path of one machine"),
        ("torch==1.9.0+cu111 -f https://h/torch_stable.html", "write it on a line of its own"),
        ("torch --index-url https://download.pytorch.org/whl/cpu", "write it on a line of its own"),
        ("flash-attn --no-build-isolation", "no requirements file can have this option: remove it"),
        ("--no-cache-dir", "no requirements file can have this option: remove it"),
        ("numpy scipy pandas", "write one requirement a line"),
        ("numpy, scipy", "write one requirement a line"),
        ("'six'", "without quotation marks"),
        ("- numpy", "without the dash"),
        ("numpy=>1.20", "write >= or <="),
    ],
)
def test_refused_with_file_and_line(repository: Path, text: str | bytes, problem: str) -> None:
    data = text if isinstance(text, bytes) else f"six\n{text}\n".encode()
    requirements = ask(repository, data)
    assert len(requirements.problems) == 1
    assert problem in requirements.problems[0]
    assert requirements.problems[0].startswith(
        "mnist/requirements.txt" + (":2: " if isinstance(text, str) else "")
    )


@pytest.mark.parametrize(
    ("line", "shown"),
    [
        ("https://me:word@h/lib.git", "https://***@h/lib.git"),
        ("six git+https://word@h/lib.git", "git+https://***@h/lib.git"),
        ("torch --index-url https://me:wo@rd@h/simple", "https://***@h/simple"),
        ("-r https://me:word@h/r.txt", "https://***@h/r.txt"),
        ("-e git+git@h:me/lib.git", "git+ssh://git@h/me/lib.git"),
        ("https://${USER}:${TOKEN}@h/lib.git", "https://${USER}:${TOKEN}@h/lib.git"),
    ],
)
def test_problem_hides_the_login_of_an_address(repository: Path, line: str, shown: str) -> None:
    [problem] = ask(repository, f"{line}\n").problems
    assert shown in problem
    assert "word" not in problem and "wo@rd" not in problem


def test_every_problem_is_reported(repository: Path) -> None:
    assert len(ask(repository, "-e ..\nsix 1\n-r nope.txt\n").problems) == 3


def test_a_link_out_of_the_repository_is_refused(repository: Path) -> None:
    (repository / "mnist" / "requirements.txt").symlink_to("/etc/hostname")
    (repository / "mnist" / "apt-pkgs.txt").symlink_to("/etc/hostname")
    assert "leads out of the repository" in parse(repository, "mnist").problems[0]
    assert "leads out of the repository" in apt_file.parse(repository, "mnist").problems[0]


def test_a_link_out_of_the_repository_that_appears_after_the_look_is_refused(
    repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = repository / "mnist" / "requirements.txt"
    file.write_text("six\n")
    read = regular_file.read

    def swap(*args: Any, **options: Any) -> bytes:
        file.unlink()
        file.symlink_to("/etc/hostname")
        return read(*args, **options)

    monkeypatch.setattr(regular_file, "read", swap)
    assert parse(repository, "mnist").problems == (
        "mnist/requirements.txt: mnist/requirements.txt cannot be read: leads out of the repository",
    )


def test_debian_packages(repository: Path) -> None:
    (repository / "mnist" / "apt-pkgs.txt").write_bytes(
        b"\xef\xbb\xbf# tools\r\ngit\r\nlibgl1=1:1.3~x+b1 # a version\r\n\r\ng++ curl\r\ngit\r\n"
    )
    assert apt_file.parse(repository, "mnist") == apt_file.Packages(
        ("curl", "g++", "git", "libgl1=1:1.3~x+b1")
    )


@pytest.mark.parametrize(
    "text",
    [
        "-o Debug::pkgProblemResolver=1",
        "--allow-unauthenticated",
        "vim-",
        "Git",
        "a;b",
        "$(id)",
        "../x.deb",
        "x",
    ],
)
def test_options_in_disguise_are_refused(repository: Path, text: str) -> None:
    (repository / "mnist" / "apt-pkgs.txt").write_text(f"git\n{text}\n")
    problems = apt_file.parse(repository, "mnist").problems
    assert problems
    assert all(problem.startswith("mnist/apt-pkgs.txt:2: ") for problem in problems)


@pytest.mark.parametrize(
    ("text", "good"),
    [
        ("debian", True),
        ("tensorflow/tensorflow:2.17.0-gpu", True),
        ("localhost:5000/a/b_c@sha256:" + "0" * 64, True),
        ("nvcr.io/nvidia/pytorch:24.01-py3", True),
        ("", False),
        ("-x", False),
        ("a b", False),
        ("Tensorflow/tensorflow:1", True),
        ("tensorflow/Tensorflow", False),
        ("a:", False),
        ("a@sha256:12", False),
        ("https://example.org/a", False),
        ("a\n", False),
    ],
)
def test_image_references(text: str, good: bool) -> None:
    assert (image_reference.problem(text) is None) is good


@pytest.mark.parametrize(
    ("line", "lines"),
    [("-e .", ("six", "idna")), (".", ("six", "idna")), ("-e .[plots]", ("six", "idna", "pillow"))],
)
def test_repository_that_is_a_package_gives_its_dependencies(
    repository: Path, line: str, lines: tuple[str, ...]
) -> None:
    (repository / "src").mkdir()
    (repository / "pyproject.toml").write_text(
        "[project]\nname = 'a'\nversion = '1'\ndependencies = ['six', 'idna']\n"
        "[project.optional-dependencies]\nplots = ['pillow']\nall = ['a[plots]']\n"
    )
    (repository / "mnist" / "requirements.txt").write_text(f"{line}\n")
    chosen = parse(repository, "mnist")
    assert (chosen.problems, chosen.lines, chosen.paths) == ((), lines, ())
    assert chosen.package == OwnPackage("a", "1", "src")
    assert chosen.files == ("mnist/requirements.txt", "pyproject.toml")
    (repository / "mnist" / "requirements.txt").unlink()
    assert parse(repository, "mnist").package == chosen.package


@pytest.mark.parametrize("line", [".[all]", ".[nothing]", "./src"])
def test_repository_that_has_to_be_built_is_a_local_package(repository: Path, line: str) -> None:
    (repository / "src").mkdir()
    (repository / "pyproject.toml").write_text(
        "[project]\nname = 'a'\nversion = '1'\n[project.optional-dependencies]\nall = ['a[plots]']\n"
    )
    (repository / "mnist" / "requirements.txt").write_text(f"{line}\n")
    chosen = parse(repository, "mnist")
    assert (chosen.package, chosen.lines) == (None, (line,))


def test_long_line_without_meaning_is_refused_at_once(repository: Path) -> None:
    for line in ("a " * 30000, "a" + " -" * 30000, "=" * 60000, "a" + " " * 60000 + "b", "'" * 60000):
        assert len(ask(repository, line).problems) >= 1


def test_dependencies_of_the_package_in_files(repository: Path) -> None:
    (repository / "src").mkdir()
    (repository / "pyproject.toml").write_text(
        "[project]\nname = 'a'\nversion = '1'\ndynamic = ['dependencies']\n"
        "[tool.setuptools.dynamic]\ndependencies = { file = ['requirements.txt', 'more.txt'] }\n"
    )
    (repository / "requirements.txt").write_text("# what it needs\nsix\n-r more.txt\n")
    (repository / "more.txt").write_text("idna\n")
    chosen = ask(repository, "-e .\n")
    assert (chosen.problems, chosen.lines, chosen.package) == (
        (),
        ("six", "idna"),
        OwnPackage("a", "1", "src"),
    )
    assert chosen.files == ("mnist/requirements.txt", "pyproject.toml", "requirements.txt", "more.txt")
    (repository / "mnist" / "requirements.txt").unlink()
    chosen = parse(repository, "mnist")
    assert (chosen.files[0], chosen.lines, chosen.package) == (
        "pyproject.toml", ("six", "idna"), OwnPackage("a", "1", "src"),
    )  # fmt: skip
    (repository / "more.txt").unlink()
    assert "more.txt" in ask(repository, "-e .\n").problems[0]
    (repository / "requirements.txt").unlink()
    (repository / "requirements.txt").symlink_to("/etc/passwd")
    assert "leads out of the repository" in ask(repository, "-e .\n").problems[0]


@pytest.mark.parametrize(
    ("files", "sentence"),
    [
        (
            {"Pipfile": "[packages]\n"},
            "Pipfile is not read; write the packages into mnist/requirements.txt (empty: those of the image), as "
            "pipenv requirements > mnist/requirements.txt does",
        ),
        ({"pixi.toml": ""}, "pixi.toml is not read; write the packages into mnist/requirements.txt"),
        (
            {"requirements-gpu.txt": "torch", "requirements/train.txt": "six", "requirements/README": ""},
            "no packages are installed: requirements-gpu.txt, requirements/train.txt not read; "
            "write the line -r ../requirements-gpu.txt into mnist/requirements.txt",
        ),
        (
            {"environment-gpu.yml": "name: x\ndependencies:\n  - python=3.10\n", "env.yaml": "port: 1\n"},
            "no packages are installed: environment-gpu.yml not read; write the packages into mnist/requirements.txt",
        ),
        (
            {"pyproject.toml": "[project]\nname = 'a'\n[project.optional-dependencies]\ncpu = ['torch']\n"},
            "no packages are installed: pyproject.toml has only optional dependencies (cpu); write the line -e .[cpu] into mnist/req",
        ),
        (
            {"pyproject.toml": "[tool.pixi.dependencies]\npytorch = '*'\n"},
            "no packages are installed: tool.pixi in pyproject.toml is not read; write the packages into",
        ),
        ({"req.md": "", "request.txt": "", "conda.yaml": "a: 1\n"}, ""),
    ],
)  # fmt: skip
def test_files_that_are_not_read_are_named(repository: Path, files: dict[str, str], sentence: str) -> None:
    for name, text in files.items():
        (repository / name).parent.mkdir(exist_ok=True)
        (repository / name).write_text(text)
    requirements = parse(repository, "mnist")
    assert "\n".join((*requirements.problems, *requirements.notes)).startswith(sentence)
    assert bool(sentence) == bool(requirements.problems or requirements.notes)
    (repository / "mnist" / "requirements.txt").touch()
    assert parse(repository, "mnist").notes == parse(repository, "mnist").problems == ()
    # What the sentence says works.
    if "requirements-gpu.txt" in files:
        (repository / "mnist" / "requirements.txt").write_text("-r ../requirements-gpu.txt\n")
        assert parse(repository, "mnist").lines == ("torch",)
