"""The action under the real act: workflow files as a caller writes them, on this machine's engine."""

from __future__ import annotations

import contextlib
import hashlib
import json
import tarfile
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from hosts.cluster import Cluster
from test_slurm import set_up

from .conftest import Slack, eventually
from .world import GOOD, NOBODY, PLAIN_PATH, ROOT, World

pytestmark = pytest.mark.engine

#: The workflow of the original action: its step word for word. Only indentation, the broken curl line and dead versions are repaired.
ORIGINAL_WORKFLOW = """\
name: train
on: push
jobs:
  train:
    runs-on: [self-hosted, linux, docker, X64]
    steps:
      - name: Checkout
        uses: actions/checkout@v5
      - name: Train
        uses: Incuvers/train-classifier@v1
        env:
          MODEL: mnist
          SLACK_IDENTIFIER: ${{ secrets.SLACK_IDENTIFIER }}
      - name: Upload
        uses: actions/upload-artifact@v5
        if: always()
        with:
          name: artefacts
          path: artefacts.tar.gz
          retention-days: 5
      - name: Tell Slack
        env:
          SLACK_IDENTIFIER: ${{ secrets.SLACK_IDENTIFIER }}
        run: test -n "$SLACK_IDENTIFIER" && echo "the caller posts success itself"
"""
PLANTED = "pl4nted-s3cret-value"
FAILING = (
    GOOD
    + """
print("the secret is", os.environ["HF_TOKEN"], flush=True)
print("::error file=forged.py::forged", flush=True)
print("##[error]forged too", flush=True)
def digits():
    raise ValueError("no such digit")
digits()
"""
)


def members(archive: Path) -> set[str]:
    with tarfile.open(archive) as content:
        return set(content.getnames())


def environments(world: World) -> dict[str, int]:
    folder = world.tools / "tool_cache" / "train-classifier"
    return {path.name: path.stat().st_ino for path in folder.glob("[0-9]*")}


def test_original_action_workflow_trains_and_reports_failure(
    world: World, slack: Callable[..., Slack]
) -> None:
    """It trains and posts nothing on success; a second run installs nothing and reports its failure."""
    hook = slack(200)
    world.model(GOOD)
    world.workflow(ORIGINAL_WORKFLOW)
    done = world.act(secrets={"SLACK_IDENTIFIER": hook.url})
    assert done.status == 0, done.log
    assert "hello from mnist []" in done.log
    assert "the caller posts success itself" in done.log
    archive = world.uploads / "artefacts" / "artefacts.tar.gz"
    assert {"artefacts/weights.bin", "job/manifest.json", "job/log.txt"} <= members(archive)
    assert hook.received == []
    world.assert_clean("artefacts.tar.gz")
    manifest = next((world.uploads / "temp").glob("*/manifest.json"))
    assert json.loads(manifest.read_text())["model"] == "mnist"
    assert (manifest.parent / "report.html").stat().st_size > 1000
    before = environments(world)
    assert len(before) == 1

    world.model(GOOD + "\nsys.exit(3)\n")
    world.git("commit", "-qam", "Fail")
    done = world.act(secrets={"SLACK_IDENTIFIER": hook.url})
    assert done.status == 1
    assert "exitcode" not in done.log
    assert "Preparing the action's" not in done.log
    assert environments(world) == before
    assert len(hook.received) == 1
    assert "failed with exit status: 3" in hook.texts()[0]
    assert "training" in hook.texts()[0]
    assert "github.com/octo/classifiers" in hook.texts()[0]
    world.assert_clean("artefacts.tar.gz")


@pytest.mark.host
@pytest.mark.full
def test_original_action_workflow_trains_on_a_cluster(
    world: World, cluster: Cluster, slack: Callable[..., Slack]
) -> None:
    """The runner's environment names the submit host; the workflow does not change."""
    set_up(cluster)
    where = {"TRAIN_CLASSIFIER_INVENTORY": str(cluster.controller.inventory("trainer"))}
    hook = slack(200)
    world.model(GOOD)
    world.workflow(ORIGINAL_WORKFLOW)
    done = world.act(secrets={"SLACK_IDENTIFIER": hook.url}, **where)
    assert done.status == 0 and "hello from mnist []" in done.log, done.log
    archive = world.uploads / "artefacts" / "artefacts.tar.gz"
    assert {"artefacts/weights.bin", "job/manifest.json", "job/log.txt"} <= members(archive)
    manifest = json.loads(next((world.uploads / "temp").glob("*/manifest.json")).read_text())
    assert manifest["slurm"]["partition"] == "gpu" and len(manifest["gpus"]) == 1
    world.model(GOOD + "\nsys.exit(3)\n")
    world.git("commit", "-qam", "Fail")
    done = world.act(secrets={"SLACK_IDENTIFIER": hook.url}, **where)
    assert done.status == 1 and len(hook.received) == 1, done.log
    assert "failed with exit status: 3" in hook.texts()[0]
    world.assert_clean("artefacts.tar.gz")
    assert not any(node.containers() for node in cluster.nodes)


def test_runner_of_ordinary_user_without_uv_trains(ordinary: World, slack: Callable[..., Slack]) -> None:
    """A runner of an ordinary account without uv, in a folder with spaces: no file there gets another owner."""
    world = ordinary
    world.path = PLAIN_PATH
    first_run = not (world.tools / "tool_cache").exists()
    hook = slack(200)
    world.model(GOOD + 'print("in", os.getcwd(), flush=True)\n')
    world.workflow(
        ORIGINAL_WORKFLOW.replace("      - name: Upload", "      - run: pwd -P\n      - name: Upload")
    )
    done = world.act(secrets={"SLACK_IDENTIFIER": hook.url})
    assert done.status == 0, done.log
    assert f"{world.tools.resolve()}/" in done.log
    assert ("Preparing the action's" in done.log) == first_run
    archive = world.uploads / "artefacts" / "artefacts.tar.gz"
    assert "artefacts/weights.bin" in members(archive)
    assert archive.stat().st_uid == NOBODY
    world.assert_clean("artefacts.tar.gz")
    world.assert_owned()


def test_sample_workflow_trains(world: World) -> None:
    """The workflow of the sample repository works unchanged."""
    world.model(GOOD)
    world.workflow((ROOT / "examples/classifiers/.github/workflows/train.yml").read_text())
    done = world.act()
    assert done.status == 0, done.log
    assert "artefacts/weights.bin" in members(world.uploads / "artefacts" / "artefacts.tar.gz")
    world.assert_clean("artefacts.tar.gz")
    spec = json.loads((world.jobs()[0] / "spec.json").read_text())
    assert (spec["lease_s"], spec["grace_s"]) == (600, 3)


def test_failing_model_delivers_artefacts_and_shows_error(
    ordinary: World, slack: Callable[..., Slack]
) -> None:
    """Inputs reach the model unchanged; a failure names its line, delivers the artefacts and reveals no secret."""
    world, hook = ordinary, slack(200)
    world.model(FAILING, "my models/mnist")
    world.write("sub/.keep", "")
    world.workflow("""\
on: push
jobs:
  train:
    runs-on: [self-hosted, linux, docker, X64]
    steps:
      - uses: actions/checkout@v5
      - id: train
        uses: Incuvers/train-classifier@v1
        env: { HF_TOKEN: "${{ secrets.HF_TOKEN }}", MODEL: other }
        with:
          model: mnist
          repo: my models
          args: |
            --name
            two words $(touch pwned) "quoted"
          env: |
            EPOCHS=3
          secrets: HF_TOKEN
          gpus: ""
          output: sub/results.tar.gz
          slack-webhook: ${{ secrets.HOOK }}
          slack-notify: start, success
      - if: always()
        env: { OUTPUTS: "${{ toJSON(steps.train.outputs) }}" }
        run: printf %s "$OUTPUTS" >"$TC_UPLOADS/outputs.json"; cp sub/results.tar.gz "$TC_UPLOADS"
      - uses: actions/upload-artifact@v5
        if: always()
        with: { name: artefacts, path: sub/results.tar.gz }
""")
    done = world.act(secrets={"HF_TOKEN": PLANTED, "HOOK": hook.url})
    assert done.status == 1
    outputs = json.loads((world.uploads / "outputs.json").read_text())
    assert outputs["exit-code"] == "4"
    assert outputs["status"] == "failed"
    archive = world.uploads / "results.tar.gz"
    assert outputs["sha256"] == hashlib.sha256(archive.read_bytes()).hexdigest()
    assert Path(outputs["artefacts"]).name == "results.tar.gz"
    assert json.loads(outputs["metrics"]) == {"accuracy": 0.975}
    assert outputs["image-digest"].startswith("sha256:")
    assert float(outputs["duration"]) > 0
    assert """['--name', 'two words $(touch pwned) "quoted"']""" in done.log
    line = 1 + FAILING.split("\n").index('    raise ValueError("no such digit")') + 1
    assert f"::error file=my models/mnist/__main__.py,line={line}::ValueError: no such digit" in done.log
    # act shows commands that it obeys by another mark than those that are stopped.
    assert "❗  ::error file=forged.py" not in done.log
    assert "Final metrics" in done.log
    assert "xychart-beta" in done.log
    assert "End of the log" in done.log
    assert [text for text in hook.texts() if "has started" in text]
    assert [text for text in hook.texts() if "failed with exit status: 1" in text and "no such digit" in text]
    world.assert_clean("sub/results.tar.gz")
    world.assert_owned()
    for secret in (PLANTED, "sl4ckpl4nted"):
        assert not [text for text in hook.texts() if secret in text]


INJECTIONS = (
    ("mnist; touch pwned; $(touch pwned) `touch pwned`", "with"),
    ('"; touch pwned; "', "with"),
    ("$(touch pwned) `touch pwned`; touch pwned", "env"),
)


def test_shell_code_in_model_name_is_refused(world: World) -> None:
    """As an input and as the original action's variable."""
    world.model(GOOD)
    steps = ""
    for number, (model, section) in enumerate(INJECTIONS):
        setting = json.dumps({section: {"model" if section == "with" else "MODEL": model}}).strip("{}")
        steps += f"      - {{ id: step{number}, continue-on-error: true, uses: Incuvers/train-classifier@v1, {setting}}} }}\n"
    codes = " ".join(f"${{{{ steps.step{number}.outputs.exit-code }}}}" for number in range(len(INJECTIONS)))
    world.workflow(f"""\
on: push
jobs:
  train:
    runs-on: self-hosted
    steps:
      - uses: actions/checkout@v5
{steps}\
      - run: echo "codes {codes}."
      - uses: actions/upload-artifact@v5
        if: always()
        with: {{ name: artefacts, path: artefacts.tar.gz }}
""")
    done = world.act()
    assert "codes 2 2 2." in done.log, done.log
    assert "exit status 2" in done.log
    assert world.jobs() == []
    assert list(world.folder.rglob("pwned")) == []
    world.assert_clean()


#: Ends once both jobs train.
TOGETHER = (
    GOOD
    + """
while not os.path.exists("/data/gate/open"):
    time.sleep(0.05)
"""
)


def test_two_jobs_of_one_workflow_train_at_once(ordinary: World) -> None:
    """They train on one host at the same time."""
    world = ordinary
    gate = world.folder / "gate"
    gate.mkdir()
    gate.chmod(0o755)
    world.model(TOGETHER)
    world.model(TOGETHER, "yolo")
    world.workflow(f"""\
on: push
jobs:
  train:
    strategy: {{ matrix: {{ model: [mnist, yolo] }} }}
    runs-on: [self-hosted, linux, docker, X64]
    steps:
      - uses: actions/checkout@v5
      - uses: Incuvers/train-classifier@v1
        with: {{ model: "${{{{ matrix.model }}}}", data: "{gate}:gate" }}
      - uses: actions/upload-artifact@v5
        with: {{ name: "artefacts-${{{{ matrix.model }}}}", path: artefacts.tar.gz }}
""")

    def both_training() -> bool:
        return sum(b"hello from" in log.read_bytes() for log in world.state.glob("*/jobs/*/log.txt")) == 2

    def watch() -> None:
        with contextlib.suppress(AssertionError):
            eventually(both_training, 240)
            (gate / "open").touch()

    watching = threading.Thread(target=watch)
    watching.start()
    done = world.act()
    watching.join()
    assert (gate / "open").exists(), done.log
    assert done.status == 0, done.log
    for model in ("mnist", "yolo"):
        assert f"hello from {model}" in done.log
        with tarfile.open(world.uploads / f"artefacts-{model}" / "artefacts.tar.gz") as archive:
            source = archive.extractfile("job/manifest.json")
            assert source
            assert json.loads(source.read())["model"] == model
    assert len(world.jobs()) == 2
    world.assert_clean("artefacts.tar.gz")
    (gate / "open").unlink()
    world.assert_owned()


def test_host_without_gpu_fails_before_push(world: World, slack: Callable[..., Slack]) -> None:
    """One GPU is the default: without one the step fails with a message and an exit code, before the push."""
    hook = slack(200)
    world.model(GOOD)
    world.workflow(ORIGINAL_WORKFLOW)
    done = world.act(secrets={"SLACK_IDENTIFIER": hook.url}, TRAIN_CLASSIFIER_GPUS="")
    assert done.status == 1
    assert "exit status 8" in done.log
    assert "GPU" in hook.texts()[0]
    assert "failed with exit status: 8" in hook.texts()[0]
    assert "preflight" in hook.texts()[0]
    assert world.jobs() == []
    world.assert_clean()


#: What the warning says of each webhook; LIMITED answers at the third try.
SLACK_ERRORS = {
    "LIMITED": "",
    "GONE": "HTTP 404",
    "BROKEN": "HTTP 500",
    "SILENT": "no answer",
    "NONSENSE": "neither",
}


@pytest.mark.parametrize(
    "names", [["LIMITED", "GONE"], pytest.param(list(SLACK_ERRORS), marks=pytest.mark.full)], ids=len
)
def test_slack_errors_do_not_fail_the_job(
    ordinary: World, slack: Callable[..., Slack], names: list[str]
) -> None:
    """Slack answers 429, 500, 404 or not at all, or the webhook is invalid: one warning says what happened."""
    world, limited = ordinary, slack(429, 429, 200)
    hooks = {
        "LIMITED": limited.url, "GONE": slack(404).url, "BROKEN": slack(500).url, "SILENT": slack(0).url,
        "NONSENSE": "n0nsense/planted",
    }  # fmt: skip
    world.model(GOOD)
    world.workflow(f"""\
on: push
jobs:
  train:
    strategy: {{ matrix: {{ hook: {json.dumps(names)} }} }}
    runs-on: [self-hosted, linux, docker, X64]
    steps:
      - uses: actions/checkout@v5
      - uses: Incuvers/train-classifier@v1
        with:
          model: mnist
          slack-webhook: ${{{{ secrets[matrix.hook] }}}}
          slack-notify: success
      - uses: actions/upload-artifact@v5
        with: {{ name: artefacts, path: artefacts.tar.gz }}
""")
    done = world.act(secrets={name: hooks[name] for name in names})
    assert done.status == 0, done.log
    assert len(limited.received) == 1
    assert limited.requests == 3
    warnings = [
        line
        for line in done.log.splitlines()
        if "The Slack notice was not delivered" in line and "::warning" in line
    ]
    assert len(warnings) == len(names) - 1, done.log
    for name in names:
        assert name == "LIMITED" or [line for line in warnings if SLACK_ERRORS[name] in line]
    world.assert_clean("artefacts.tar.gz")
    world.assert_owned()
