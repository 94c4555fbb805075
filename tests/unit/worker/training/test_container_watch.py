"""How a container ended."""

import pytest

from train_classifier.worker.training.container_watch import signal_of


@pytest.mark.parametrize(
    ("status", "name"), [(137, "SIGKILL"), (139, "SIGSEGV"), (1, None), (255, None), (128, None)]
)
def test_signal_of_exit_status(status: int, name: str | None) -> None:
    assert signal_of(status) == name
