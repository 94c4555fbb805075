"""What a model writes outside artefacts/: what is named, what is packed, and other folders of results."""

import os
import tarfile
from pathlib import Path

import pytest
from test_archive import manifest, names, packed, record_initial_artefacts

from train_classifier.core.errors import NothingDelivered
from train_classifier.core.job import JobSpec, Repository
from train_classifier.worker.jobs import conclude
from train_classifier.worker.transfer import elsewhere

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")
SOURCES = ("m/__main__.py", "m/data.csv", "README.md", "outputs/old.txt")


@pytest.fixture
def job(tmp_path: Path) -> Path:
    for name in SOURCES:
        write(tmp_path, name)
    record_initial_artefacts(tmp_path, "outputs")
    return tmp_path


def write(job: Path, name: str, size: int = 1) -> None:
    path = job / "workspace" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(bytes(size))


def places(job: Path) -> dict[str, int]:
    summary = packed(job, elsewhere="list").get("elsewhere")
    return {place["path"]: place["files"] for place in summary["places"]} if summary else {}


def test_new_files_are_named_by_the_folder_that_holds_nothing_else(job: Path) -> None:
    write(job, "artefacts/weights")
    write(job, "lightning_logs/version_0/metrics.csv")
    write(job, "lightning_logs/version_0/checkpoints/last.ckpt", 5000)
    write(job, "m/runs/events")
    write(job, "model.pkl", 3000)
    answer = packed(job, elsewhere="list")
    assert places(job) == {"lightning_logs/": 2, "model.pkl": 1, "m/runs/": 1}
    assert (answer["new"], answer["files"], answer["elsewhere"]["files"]) == (1, 1, 4)
    expected = "lightning_logs/ (2 files, 4.9 KiB), model.pkl (2.9 KiB) and m/runs/ (1 byte)"
    assert elsewhere.describe(answer["elsewhere"]) == expected
    assert [name for name in names(job) if not name.startswith(("artefacts", "job/"))] == []


def test_changed_file_is_a_result_whatever_time_the_model_gives_it(job: Path) -> None:
    write(job, "m/data.csv", 2)
    os.utime(job / "workspace/m/data.csv", (0, 0))
    assert places(job) == {"m/data.csv": 1}


def test_caches_empty_files_and_links_are_no_results(job: Path) -> None:
    for name in (
        "m/__pycache__/__main__.cpython-311.pyc", ".cache/x", ".git/index", "venv/pyvenv.cfg", "venv/lib/x.py", "m.egg-info/PKG", "hub.lock",
    ):  # fmt: skip
        write(job, name)
    write(job, "empty", 0)
    (job / "workspace" / "passwd").symlink_to("/etc/passwd")
    (job / "workspace" / "etc").symlink_to("/etc")
    os.mkfifo(job / "workspace" / "pipe")
    answer = packed(job, elsewhere="list")
    assert answer["elsewhere"] is None


def test_link_in_the_place_of_artefacts_is_not_named_again(job: Path) -> None:
    write(job, "out/weights")
    (job / "workspace" / "artefacts").rmdir()
    (job / "workspace" / "artefacts").symlink_to("out")
    assert places(job) == {} and "artefacts/weights" in names(job)


def test_fetched_archive_has_them_below_a_folder_of_their_own(job: Path) -> None:
    write(job, "artefacts/weights")
    write(job, "job/manifest.json")
    write(job, "m/runs/events", 10)
    (job / "workspace/m/runs").chmod(0)
    answer = packed(job, elsewhere="pack")
    # They are no artefacts: the outcome stays what it was.
    assert answer["new"] == 1
    assert {"workspace/job/manifest.json", "workspace/m/runs/events", "artefacts/weights"} <= set(names(job))
    paths = [line["path"] for line in manifest(job)["artefacts"]]
    assert paths == ["artefacts/weights", "workspace/job/manifest.json", "workspace/m/runs/events"]
    with tarfile.open(job / "artefacts.tar.gz") as archive:
        assert archive.getmember("workspace/m/runs/events").size == 10


def test_limit_counts_files_elsewhere_only_when_they_are_packed(job: Path) -> None:
    write(job, "big", 1 << 20)
    assert "archive" in packed(job, elsewhere="list", most_bytes=1 << 19)
    with pytest.raises(conclude.TooLarge):
        packed(job, elsewhere="pack", most_bytes=1 << 19)


def test_file_in_place_of_another_folder_of_results_is_a_result(job: Path) -> None:
    write(job, "model.pt", 10)
    write(job, "runs/last", 5)
    answer = packed(job, elsewhere="list", results=("model.pt", "runs/last", "README.md/x"))
    assert answer["elsewhere"] is None and (answer["new"], answer["left_out"]) == (2, 0)
    assert [name for name in names(job) if not name.startswith("job/")] == [
        "artefacts", "model.pt", "runs/last",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("results", "expected"),
    [
        ((), "artefacts/"),
        (("outputs",), "artefacts/ or outputs"),
        (("a", "b", "c", "d"), "artefacts/, a, b or 2 more"),
    ],
)
def test_message_names_all_places_of_results(results: tuple[str, ...], expected: str) -> None:
    spec = JobSpec("20260101-000000-00000000", "m", Repository("r", "0" * 16), artefacts=results)
    answer = {"new": 0, "elsewhere": None}
    error = conclude._judge(spec, answer, None)[1]
    assert error is not None and error.reason.endswith(f"wrote nothing new into {expected}")


def test_other_folders_of_results_bring_new_files_alone(job: Path) -> None:
    write(job, "artefacts/weights")
    write(job, "outputs/run/model.h5")
    (job / "workspace/outputs/best").symlink_to("run/model.h5")
    (job / "workspace/outputs/out").symlink_to("../m")
    answer = packed(job, elsewhere="list", results=("outputs", "missing"))
    assert answer["elsewhere"] is None and answer["new"] == 3 and answer["left_out"] == 1
    assert [name for name in names(job) if name.startswith("outputs")] == [
        "outputs/best",
        "outputs/run/model.h5",
    ]
    without = packed(job)
    assert without["new"] == 1


def test_folder_of_results_behind_a_link_out_is_left_out(job: Path) -> None:
    (job / "workspace" / "runs").symlink_to("/etc")
    (job / "workspace" / "logs").symlink_to("outputs")
    write(job, "outputs/new")
    packed(job, results=("runs", "runs/ssl", "logs"))
    assert [name for name in names(job) if name.startswith(("runs", "logs"))] == ["logs/new", "logs/old.txt"]
    assert {line["path"] for line in manifest(job)["left_out"]} >= {"runs"}


def test_search_ends_at_its_bounds(job: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(30):
        write(job, f"many/{number}")
        write(job, f"m/{number}")
    monkeypatch.setattr(elsewhere, "MOST_GROUPS", 10)
    assert places(job) == {"many/": 30, "m/": 30}
    monkeypatch.setattr(elsewhere, "MOST_ENTRIES", 20)
    summary = packed(job, elsewhere="list")["elsewhere"]
    assert not summary["is_complete"] and elsewhere.describe(summary).endswith(" more")
    deep = job / "workspace" / "deep"
    deep.mkdir()
    for _ in range(elsewhere.MOST_DEPTH + 1):
        deep = deep / "d"
        deep.mkdir()
    (deep / "x").write_text("x")
    assert packed(job, elsewhere="pack")["left_out"] == 1


def test_names_are_safe_on_a_terminal(job: Path) -> None:
    bad = os.fsdecode(b"\xff\x1b[31m\nred") + "x" * 150
    write(job, bad)
    words = elsewhere.describe(packed(job, elsewhere="list")["elsewhere"])
    assert words.isprintable() and len(words) < 90


def test_long_paths_are_shortened_in_the_result(job: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # A folder that is not searched to its end is not named in place of its files.
    monkeypatch.setattr(elsewhere, "MOST_DEPTH", 9)
    folder = "/".join(["d" * 250] * 8)
    write(job, f"{folder}/x")
    (job / "workspace" / folder / "deeper").mkdir()
    (path,) = places(job)
    assert len(path) <= elsewhere.MOST_CHARACTERS and path.endswith("…")


@pytest.mark.parametrize(("allow_empty", "writes"), [(False, True), (False, False), (True, False)])
def test_reason_names_the_files_and_the_way_to_them(job: Path, allow_empty: bool, writes: bool) -> None:
    write(job, "outputs/model.h5", 2048)
    if writes:
        write(job, "artefacts/weights")
    answer = packed(job, elsewhere="list")
    repository = Repository("digits", "0" * 16)
    specification = JobSpec("20260101-000000-00000000", "m", repository, allow_empty=allow_empty)
    answer, error = conclude._judge(specification, answer, None)
    unpacked = answer["unpacked"]
    assert unpacked["why"] == "elsewhere" and "outputs/model.h5 (2.0 KiB)" in unpacked["reason"]
    assert (
        f"train-classifier fetch {specification.id} gets these files" in unpacked["hint"]
        and "--artefacts" in unpacked["hint"]
        and unpacked["hint"].endswith("(here outputs/model.h5)")
    )
    if writes or allow_empty:
        assert error is None
    else:
        assert isinstance(error, NothingDelivered) and error.reason == unpacked["reason"]
