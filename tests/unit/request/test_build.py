"""A request becomes a plan, or every problem at once: precedence, and faults 1 to 11, 13 and 15."""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from ordinary_user import as_ordinary_user

from train_classifier.core.errors import BadInput, ExitCode
from train_classifier.core.job import JobSpec, Repository
from train_classifier.request import build as request
from train_classifier.request.build import Plan, TrainRequest

ROOT = Path(__file__).parents[3]
REPOSITORY = Repository("digits", "0" * 16)


@pytest.fixture
def repo(tmp_path: Path) -> Path:
    """A repository with one model."""
    folder = tmp_path / "repo"
    (folder / "mnist").mkdir(parents=True)
    (folder / "mnist" / "__init__.py").touch()
    (folder / "mnist" / "__main__.py").write_text("print()\n")
    return folder


def build(repo: Path, environ: dict[str, str] | None = None, /, **values: object) -> Plan:
    """Build a request for the model mnist from the repository's own folder."""
    train_request = TrainRequest(**{"model": "mnist", "cwd": repo, **values})  # type: ignore[arg-type]
    return request.build(train_request, environ or {})


def refused(repo: Path, environ: dict[str, str] | None = None, /, **values: object) -> list[str]:
    """Return the problems of a request, each one line."""
    with pytest.raises(BadInput) as caught:
        build(repo, environ, **values)
    assert caught.value.code == ExitCode.BAD_INPUT
    assert all("\n" not in problem for problem in caught.value.problems)
    return caught.value.problems


def test_the_least_request(repo: Path) -> None:
    plan = build(repo)
    assert plan.spec.problems() == []
    assert plan.spec.model == "mnist"
    assert plan.spec.gpus == 1
    assert plan.spec.timeout_s is None
    assert plan.spec.source_files == 2
    assert plan.output == repo / "artefacts.tar.gz"
    assert plan.target is not None
    assert plan.target.local
    assert plan.warnings == []
    order = plan.order()
    assert order.tree == str(repo)
    assert type(order).from_json(order.to_json()) == order


def test_a_name_that_is_no_option_is_a_bug() -> None:
    with pytest.raises(TypeError, match="shoe_size"):
        TrainRequest(model="mnist", shoe_size=43)


def test_flag_then_variable_then_file_then_default(repo: Path) -> None:
    (repo / "train-classifier.toml").write_text(
        "[defaults]\ngpus = 0\ntimeout = '1h'\nwait = '1h'\nmemory = '1GiB'\n"
        "environment = { A = 'file', B = 'file', C = 'file', D = 'file' }\nshm_size = '1GiB'\n"
        "data = ['/d:z']\n[models.mnist]\ntimeout = '2h'\nwait = '2h'\nshm_size = '2GiB'\n"
    )
    own = repo.parent / "config.toml"
    own.write_text(
        "[defaults]\nshm_size = '3GiB'\nwait = '5h'\nsecrets = ['FIRST']\nenvironment = { D = 'own', A = 'own' }\n"
    )
    (repo / "vars.env").write_text("B=env-file\nC=env-file\n")
    environ = {
        "TRAIN_CLASSIFIER_TIMEOUT": "3h", "TRAIN_CLASSIFIER_ENV": "C=variable\nD='vari\nable'\n", "TRAIN_CLASSIFIER_PIDS": "",
        "TRAIN_CLASSIFIER_WAIT": "3h", "TRAIN_CLASSIFIER_SECRETS": "SECOND, THIRD", "TRAIN_CLASSIFIER_DATA": "/a:x,/b:y",
        "FIRST": "value one", "SECOND": "value two", "THIRD": "value three", "FOURTH": "value four",
    }  # fmt: skip
    train_request = TrainRequest(
        model="mnist", cwd=repo, wait="none", memory="2GiB", env_file=["vars.env"], environment=["A=flag"],
        secrets=["FOURTH"], data=["/c:y"],
    )  # fmt: skip
    plan = request.build(train_request, environ, own_settings=own)
    spec = plan.spec
    assert spec.shm_bytes == 3 << 30
    assert spec.gpus == 0
    assert spec.timeout_s == 3 * 3600
    assert spec.wait_s is None
    assert spec.memory_bytes == 2 << 30
    assert spec.pids == 8192
    assert spec.environment == {"A": "flag", "B": "env-file", "C": "env-file", "D": "vari\nable"}
    assert spec.secrets == ("FIRST", "SECOND", "THIRD", "FOURTH")
    assert plan.secrets["THIRD"] == "value three"
    assert [(folder.path, folder.name, folder.from_checkout) for folder in spec.data] == [
        ("/d", "z", True), ("/a", "x", False), ("/c", "y", False),
    ]  # fmt: skip


def test_the_model_from_the_environment(repo: Path) -> None:
    (repo / "yolo").mkdir()
    (repo / "yolo" / "__main__.py").touch()
    both = {"MODEL": "mnist", "TRAIN_CLASSIFIER_MODEL": "yolo"}
    assert build(repo, {"MODEL": "mnist"}, model=None).spec.model == "mnist"
    assert build(repo, both, model=None).spec.model == "yolo"
    assert build(repo, both, model="mnist/").spec.model == "mnist"
    assert "no model is named" in refused(repo, {}, model=None)[0]
    assert "no model is named" in refused(repo, both, model="")[0]


def test_all_problems_come_together(repo: Path) -> None:
    (repo / "train-classifier.toml").write_text("[defaults]\ntimout = 3\n[models.mnist]\npids = 1\n")
    (repo / "mnist" / "requirements.txt").write_text("numpy\n-r missing.txt\n-e ..\n")
    (repo / "mnist" / "apt-pkgs.txt").write_text("curl\n-oDir::Etc=/tmp\n")
    os.mkfifo(repo / "pipe")
    problems = refused(
        repo, {"TRAIN_CLASSIFIER_GPU_CHECK": "maybe", "SHORT": "abc", "EMPTY": ""},
        gpus="-1", min_vram="8", timeout="1e99", grace="nan", memory="-1", cpus="many", shm_size="x", pids="3",
        network="host", image="Not An Image", environment=["1A=2", "NOWHERE"], env_file=["nope.env"],
        secrets=["SHORT", "EMPTY", "MISSING", "A=B"], data=["/x"], resume="yesterday", output="pipe/a.tar.gz",
        inventory="nope.yml", arguments=["ok", "a\0b"], log_max="1", push_limit="-5", lease="1", detach="perhaps",
    )  # fmt: skip
    for sentence in (
        "[defaults]: unknown key 'timout'", "[models.mnist] pids: 1 is not", "requirements.txt:2", "requirements.txt:3",
        "apt-pkgs.txt:2", "TRAIN_CLASSIFIER_GPU_CHECK: 'maybe'", "--gpus: '-1'", "--min-vram: '8' is only 8 MiB",
        "--timeout: '1e99'", "--grace: 'nan'", "--memory: '-1' is negative", "--cpus: 'many'", "--shm-size: 'x'",
        "--pids: '3'", "--network: 'host'", "--image: 'Not An Image'", "--env: '1A'", "--env: NOWHERE has no value",
        "--env-file 'nope.env': No such file", "--secret: secret 'A=…' carries a value", "--data: '/x' is not HOST_DIR:NAME",
        "--resume: 'yesterday'", "output 'pipe/a.tar.gz': ", "inventory 'nope.yml' does not exist",
        "argument 2 of the model holds a NUL", "--log-max: '1'", "--push-limit: '-5' is negative", "--lease: '1'",
        "--detach: 'perhaps'", "secret SHORT is shorter", "secret EMPTY is empty", "secret MISSING is not set",
    ):  # fmt: skip
        assert sum(sentence in problem for problem in problems) == 1, (sentence, problems)
    assert len(problems) == 32


def test_secrets_that_cannot_be_kept(repo: Path) -> None:
    problems = refused(
        repo, {"SHORT": "a1c", "EMPTY": " ", "BOTH": "hunter2hunter2"},
        secrets=["SHORT", "EMPTY", "MISSING", "BOTH"], environment=["BOTH=1"],
    )  # fmt: skip
    assert problems == [
        "secret SHORT is shorter than 4 characters, too short to mask in a log",
        "secret EMPTY is empty: set it, or leave it out",
        "secret MISSING is not set in the environment: export it, or leave it out",
        "BOTH is given both as a secret and as an environment variable: drop one",
    ]


def test_a_secret_is_nowhere_but_in_its_place(repo: Path) -> None:
    plan = build(repo, {"KEY_ONE": "hunter2hunter2"}, secrets=["KEY_ONE"])
    assert plan.secrets == {"KEY_ONE": "hunter2hunter2"}
    assert "hunter2" not in repr(plan)
    assert "hunter2" not in plan.order().to_json()
    plan = build(
        repo, {"KEY_ONE": "hunter2hunter2"}, secrets=["KEY_ONE"], arguments=["--k=hunter2hunter2"],
        environment=["HF_TOKEN=x"],
    )  # fmt: skip
    assert plan.warnings == [
        "HF_TOKEN is recorded with the job in clear; --secret HF_TOKEN would mask it",
        "the value of secret KEY_ONE also stands in clear in an argument or variable",
    ]
    assert not any("hunter2" in warning for warning in plan.warnings)


def test_environment_values(repo: Path) -> None:
    big = "x" * (131072 - len("BIG") - 2)
    plan = build(
        repo,
        {"MINE": "own"},
        environment=["LINES=a\nb=c", "EQ==", "NONE=", "MINE", f"BIG={big}", "BYTE=\udcff"],
    )
    assert plan.spec.environment == {
        "LINES": "a\nb=c", "EQ": "=", "NONE": "", "MINE": "own", "BIG": big, "BYTE": "\udcff",
    }  # fmt: skip
    (nul, long) = refused(repo, environment=["N=hunter2\0", f"BIG={big}x"])
    assert nul == "--env: the value of N holds a NUL, which no environment variable can"
    assert long == "--env: the value of BIG is over 128 KiB, the kernel's limit; put it into a file"


def test_env_files(repo: Path) -> None:
    (repo.parent / "good.env").write_bytes(
        b'\xef\xbb\xbf# comment\r\n\r\nA=1 # one\r\nexport B = two words \r\nC=\'li $teral\\n\'\r\nD="a\\nb\\"c" # x\r\n'
        b"E=\"two\nlines\"\nF=a#b\nG=\nMINE\nH='#'\nI={{ lookup('pipe', 'id') }}\nJ=\xff"
    )
    assert build(repo, {"MINE": "own"}, env_file=["../good.env"]).spec.environment == {
        "A": "1", "B": "two words", "C": "li $teral\\n", "D": 'a\nb"c', "E": "two\nlines", "F": "a#b", "G": "",
        "MINE": "own", "H": "#", "I": "{{ lookup('pipe', 'id') }}", "J": "\udcff",
    }  # fmt: skip
    (repo.parent / "bad.env").write_text(
        "A=1\n=x\nTWO WORDS=1\n1A=2\nNOWHERE\nB='hunter2' junk\nC=\"hunter2\nD=1\n"
    )
    problems = refused(repo, env_file=["../bad.env", "."])
    assert [problem.partition(": ")[2] for problem in problems] == [
        "line 2: wanted KEY=VALUE",
        "line 3: wanted TWO=VALUE",
        "line 4: '1A' is not the name of a variable: letters, digits and _, no digit first",
        "line 5: NOWHERE has no value, and none in the environment of the caller",
        "line 6: text follows the closing quote of B",
        "line 7: a '\"' is never closed",
        "is a folder",
    ]
    assert not any("hunter2" in problem for problem in problems)


@pytest.mark.parametrize(
    "reference",
    ["python", "python:3.11-slim", "tensorflow/tensorflow:2.17.0-gpu", "localhost:5000/a/b_c", f"a@sha256:{'0' * 64}",
     "registry.example.org/x/y:tag@sha256:" + "a" * 64, "[::1]:5000/a"],
)  # fmt: skip
def test_image_references(repo: Path, reference: str) -> None:
    assert build(repo, image=reference).spec.image == reference


@pytest.mark.parametrize(
    ("reference", "why"),
    [
        ("", "the value is empty"),
        ("a b", "white space"),
        ("Python:3", "lower case"),
        ("https://registry/a", "it is a URL"),
        ("a@sha256:123", "not sha256: and 64"),
        ("a:", "grammar"),
        (":tag", "grammar"),
        ("-v", "grammar"),
        ("a//b", "grammar"),
        ("a:tag:tag", "grammar"),
        ("--privileged", "grammar"),
        ("a\0", "NUL"),
        ("$(id)", "grammar"),
    ],
)
def test_image_references_that_are_malformed(repo: Path, reference: str, why: str) -> None:
    (problem,) = refused(repo, image=reference)
    assert problem.startswith("--image: ")
    assert why in problem


def test_where_the_archive_goes(repo: Path, tmp_path: Path) -> None:
    caller = tmp_path / "the caller's folder"
    (caller / "sub").mkdir(parents=True)
    assert build(repo, cwd=caller, repo="../repo").output == caller / "artefacts.tar.gz"
    assert build(repo, cwd=caller, repo="../repo", output="sub/a b.tgz").output == caller / "sub" / "a b.tgz"
    (repo / "train-classifier.toml").write_text("[defaults]\noutput = 'out.tgz'\n")
    plan = build(repo, cwd=caller, repo="../repo")
    assert plan.output == repo / "out.tgz"
    # A missing folder is made when the archive arrives.
    assert build(repo, cwd=caller, repo="../repo", output="a/b/c.tgz").output == caller / "a" / "b" / "c.tgz"
    assert not (caller / "a").exists()
    (caller / "old.tgz").write_text("old")
    (caller / "link.tgz").symlink_to("old.tgz")
    assert build(repo, cwd=caller, repo="../repo", output="link.tgz").output == caller / "link.tgz"
    os.mkfifo(caller / "pipe")
    for output, message in (
        ("sub", "is a folder; name a file in it, such as 'sub/artefacts.tar.gz'"),
        ("new/", "is a folder"),
        ("old.tgz/a.tgz", "is not a folder"),
        ("pipe", "no regular file"),
        ("a" * 300, "too long"),
        ("x" * 180, "longer than 170 bytes"),
        ("a\0b", "holds a NUL"),
        ("", "is empty"),
    ):
        (problem,) = refused(repo, cwd=caller, repo="../repo", output=output)
        assert message in problem.lower() or message in problem, (output, problem)


def test_folders_of_results(repo: Path) -> None:
    (repo / "train-classifier.toml").write_text('[defaults]\nartefacts = ["./outputs/", "lightning logs"]\n')
    plan = build(repo, {"TRAIN_CLASSIFIER_ARTEFACTS": "runs/a,outputs"}, artefacts=["x-/y"])
    assert plan.spec.artefacts == ("outputs", "lightning logs", "runs/a", "x-/y")
    assert plan.spec.problems() == []
    assert type(plan.spec).from_dict(plan.spec.to_dict()) == plan.spec
    (repo / "outputs").symlink_to("/etc")
    (repo / "runs").write_text("")
    assert sorted(refused(repo, artefacts=["outputs/deep", "runs/a", "runs"])) == [
        "--artefacts 'outputs': outputs is a link; name a folder",
        "--artefacts 'outputs/deep': outputs is a link; name a folder",
        "--artefacts 'runs/a': runs is no folder; name a folder",
    ]


@pytest.mark.parametrize(
    ("folder", "why"),
    [
        ("/tmp/x", "is not the path of a folder in the repository"),
        ("//x", "is not the path of a folder in the repository"),
        ("../x", "is not the path of a folder in the repository"),
        ("a/../../x", "is not the path of a folder in the repository"),
        ("a/..", "is not the path of a folder in the repository"),
        ("~/x", "is not the path of a folder in the repository"),
        ("--delete", "is not the path of a folder in the repository"),
        (".", "is the whole repository"),
        ("", "is the whole repository"),
        ("./job/x", "has the name of a folder that the archive has already"),
        ("workspace", "has the name of a folder that the archive has already"),
        ("a/.git/x", "is git's"),
        ("a\x1b[31m", "is not the name of a folder"),
        ("x" * 1001, "is not the name of a folder"),
        (3, "is not the name of a folder"),
    ],
)
def test_folders_that_hold_no_results(repo: Path, folder: object, why: str) -> None:
    (problem,) = refused(repo, artefacts=[folder])
    assert problem.startswith("--artefacts: folder of results ") and why in problem and problem.isprintable()
    text = f"[defaults]\nartefacts = {json.dumps([folder])}\n"
    (repo / "train-classifier.toml").write_text(text)
    (problem,) = refused(repo)
    assert (
        problem.startswith("train-classifier.toml: [defaults] artefacts: folder of results ")
        and why in problem
    )
    with pytest.raises(ValueError, match=why if folder not in ("", "./job/x") else "folder of results"):
        JobSpec.from_dict(
            {**JobSpec("20260101-000000-00000000", "m", REPOSITORY).to_dict(), "artefacts": [folder]}
        )


def test_list_of_folders_of_results_is_bounded(repo: Path) -> None:
    (problem,) = refused(repo, artefacts=[f"x{number}" for number in range(21)])
    assert "21 folders of results, more than 20" in problem
    (repo / "train-classifier.toml").write_text('[defaults]\nartefacts = "outputs"\n')
    (problem,) = refused(repo)
    assert 'wanted a list of folders, for example artefacts = ["outputs"]' in problem


def test_a_folder_that_the_user_may_not_write_to(repo: Path) -> None:
    build(repo)  # imports what a request imports on its way
    # pytest's own folder is closed to others.
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "mnist").mkdir()
        (folder / "mnist" / "__main__.py").touch()
        folder.chmod(0o555)
        try:
            problems = as_ordinary_user(lambda: refused(folder))
        finally:
            folder.chmod(0o755)
    assert problems == [f"output 'artefacts.tar.gz': this user may not write to {folder}"]


def test_what_the_environment_needs_must_be_pushed(repo: Path) -> None:
    (repo / "mnist" / "requirements.txt").write_text("-r ../common.txt\n")
    (repo / "common.txt").write_text("numpy\n")
    build(repo)
    (repo / ".trainignore").write_text("common.txt\n")
    assert refused(repo) == ["common.txt is needed for the job's environment and is left out of the push"]


def test_files_that_stand_for_requirements(repo: Path) -> None:
    (repo / "environment.yml").write_text("dependencies: [numpy]\n")
    assert refused(repo) == [
        "environment.yml is not read; write the packages into mnist/requirements.txt (empty: those of the image)"
    ]
    (repo / "pyproject.toml").write_text('[project]\ndependencies = ["numpy"]\n')
    build(repo)
    (repo / ".trainignore").write_text("pyproject.toml\n")
    assert refused(repo) == ["pyproject.toml is needed for the job's environment and is left out of the push"]
    (repo / "mnist" / "requirements.txt").touch()
    build(repo)


def test_python_of_the_repository_counts_where_there_are_requirements(repo: Path) -> None:
    (repo / ".python-version").write_text("3.9.18\n")
    assert build(repo).spec.required_pythons == ()
    (repo / "mnist" / "requirements.txt").write_text("numpy\n")
    spec = build(repo).spec
    assert (spec.python, spec.required_pythons) == (None, ("3.9",))
    spec = build(repo, python="3.10").spec
    assert (spec.python, spec.problems()) == ("3.10", [])
    assert JobSpec.from_dict(json.loads(json.dumps(spec.to_dict()))) == spec
    (repo / "train-classifier.toml").write_text("[defaults]\npython = 3.10\n")
    assert 'write it in quotes, as "3.10"' in refused(repo)[0]


def test_requirements_that_are_merely_odd(repo: Path) -> None:
    (repo / "mnist" / "requirements.txt").write_bytes(
        b"\xef\xbb\xbf# comment\r\n--extra-index-url https://example.org/simple\r\nnumpy==1.26.4 "
        b"--hash=sha256:" + b"0" * 64 + b"\r\n"
    )
    (repo / "mnist" / "apt-pkgs.txt").write_bytes(b"# comment\r\ncurl=7.88.1-10  # pinned\r\n\r\n")
    assert build(repo).spec.source_files == 4


def test_templates_stay_literal(repo: Path, tmp_path: Path) -> None:
    witness = tmp_path / "witness"
    template = f"{{{{ lookup('pipe', 'touch {witness}') }}}}"
    (repo / template.replace("/", "_")).touch()
    plan = build(
        repo, arguments=[template], environment=[f"T={template}"], output=template.replace("/", "_") + ".tgz"
    )
    assert plan.spec.arguments == (template,)
    assert plan.spec.environment == {"T": template}
    assert os.fsencode(template.replace("/", "_")) in plan.sources.paths
    assert template in refused(repo, model=template)[0]
    assert not witness.exists()


def test_arguments(repo: Path) -> None:
    environ = {"TRAIN_CLASSIFIER_ARGUMENTS": "--epochs 3 'two words' $HOME"}
    assert build(repo, environ).spec.arguments == ("--epochs", "3", "two words", "$HOME")
    assert build(repo, environ, arguments=[]).spec.arguments == ()
    assert build(repo, arguments=["", "a\nb", "\udcff"]).spec.arguments == ("", "a\nb", "\udcff")
    assert refused(repo, {"TRAIN_CLASSIFIER_ARGUMENTS": "'open"}) == [
        "TRAIN_CLASSIFIER_ARGUMENTS: no closing quotation"
    ]
    assert "over 128 KiB" in refused(repo, arguments=["x" * 131072])[0]


def test_misspelt_variable_is_reported_once(repo: Path) -> None:
    values = {"TIMOUT": "6h", "ZZ": "", "HOST_JSON": "/x", "JOB": "x", "PROBE": "x", "READER": ""}
    plan = build(repo, {f"TRAIN_CLASSIFIER_{name}": value for name, value in values.items()})
    assert plan.warnings == [
        "TRAIN_CLASSIFIER_TIMOUT is not read; did you mean TRAIN_CLASSIFIER_TIMEOUT?",
        "TRAIN_CLASSIFIER_ZZ is not read: no option has this name",
    ]


def test_the_host_is_found_in_the_inventory(repo: Path) -> None:
    (repo / "lab.yml").write_text("lab: {hosts: {gpu1: {ansible_host: 10.0.0.1}, gpu2: {}}}\n")
    (repo / "train-classifier.toml").write_text("[defaults]\nhost = 'gpu2'\n")
    plan = build(repo, inventory="lab.yml", host="gpu1")
    assert plan.inventory == str(repo / "lab.yml")
    assert plan.target is not None
    assert plan.target.ssh[-1] == "10.0.0.1"
    plan = build(repo, {"TRAIN_CLASSIFIER_INVENTORY": "lab.yml"})
    assert (plan.target.name if plan.target else None) == "gpu2"
    problems = refused(repo, inventory="lab.yml", host="gpu3", gpus="x")
    assert len(problems) == 2
    assert "did you mean 'gpu" in problems[1]


def test_inside_ansible_the_host_is_not_looked_up(repo: Path) -> None:
    train_request = TrainRequest(model="mnist", cwd=repo, inventory="nope.yml", host="nope")
    assert request.build(train_request, {}, resolve=False).target is None


def test_a_folder_without_any_model_is_not_walked(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    problems = refused(tmp_path)
    assert len(problems) == 1
    assert "holds no folder with a __main__.py" in problems[0]


def test_a_request_is_checked_without_ansible_in_the_process() -> None:
    script = "import sys, train_classifier.request.build, train_classifier.request.flags\nprint('ansible' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout == "False\n"


def test_a_checkout_names_no_host_that_ssh_knows(repo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its settings file chooses among the inventory's hosts only: the push and the secrets go nowhere else."""
    monkeypatch.setattr(
        "train_classifier.ansible_bridge.inventory.ssh_host_inventory", lambda name: f"{name},"
    )
    assert request.build(TrainRequest(cwd=repo, model="mnist", host="gpu-1"), {}).inventory == "gpu-1,"
    (repo / "train-classifier.toml").write_text('[defaults]\nhost = "gpu-1"\n')
    with pytest.raises(BadInput, match="'gpu-1' is unknown"):
        request.build(TrainRequest(cwd=repo, model="mnist"), {})


def test_name_of_a_folder_of_results_that_no_folder_can_have_is_refused(repo: Path) -> None:
    (problem,) = refused(repo, artefacts=["a" * 300])
    assert problem.endswith("aaa...: File name too long")
