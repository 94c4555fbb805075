"""What a job does when the requirements need another Python."""

from types import SimpleNamespace
from typing import Any

import pytest

from train_classifier.core.job import JobSpec, Repository
from train_classifier.worker.environments.build_failures import PythonConflict
from train_classifier.worker.jobs import run


def test_hint_names_an_image_where_that_of_the_python_cannot_be_had(monkeypatch: pytest.MonkeyPatch) -> None:
    notes: list[str] = []
    job: Any = SimpleNamespace(
        spec=JobSpec("20260101-000000-00000000", "m", Repository("r", "0" * 16)),
        image=SimpleNamespace(plain=False, version=(3, 11)),
        context=SimpleNamespace(note=notes.append),
    )
    monkeypatch.setattr(run, "find_image", lambda job: None)
    error = PythonConflict("needs 3.8 to 3.9", "set python", "to build it here: wait", None, ["3.8", "3.9"])
    assert error.hint == "set python; to build it here: wait"
    with pytest.raises(PythonConflict) as raised:
        run.take_fitting_python(job, error)
    assert notes == ["needs 3.8 to 3.9 (to skip this search: set python)"]
    assert raised.value.hint == (
        "name an image with Python 3.9 by --image or in training_host_images (python3.9); to build it here: wait"
    )


@pytest.mark.parametrize(
    "settings",
    [
        {"python": "3.11"},
        {"image": "own"},
        {"environment_kind": "image"},
        {"environment_kind": "isolated"},
        {"required_pythons": ("3.10", "3.11")},
    ],
)
def test_no_other_python_is_taken_where_one_was_chosen_or_none_fits(settings: dict[str, Any]) -> None:
    job: Any = SimpleNamespace(
        spec=JobSpec("20260101-000000-00000000", "m", Repository("r", "0" * 16), **settings)
    )
    error = PythonConflict("needs 3.8 to 3.9", "set python", "to build it here: wait", None, ["3.8", "3.9"])
    with pytest.raises(PythonConflict) as raised:
        run.take_fitting_python(job, error)
    assert raised.value is error
