"""What refusals of the engine mean."""

import pytest

from train_classifier.core.errors import NoGpu, NotReady
from train_classifier.worker.containers.engine import UnseenPath
from train_classifier.worker.training import container


class Refusal:
    """What the SDK raises, as far as `explain` looks."""

    def __init__(self, explanation: str) -> None:
        self.explanation = explanation


@pytest.mark.parametrize(
    ("explanation", "kind"),
    [
        (
            'invalid mount config for type "bind": bind source path does not exist: /srv/nvidia-faces',
            UnseenPath,
        ),
        ("Conflict: accidental", NotReady),
        ('could not select device driver "" with capabilities: [[gpu]]', NoGpu),
        ("nvidia-container-cli: initialization error: nvml error: driver not loaded", NoGpu),
        ("CDI device injection failed: unresolvable CDI devices nvidia.com/gpu=7", NoGpu),
    ],
)
def test_refusal_becomes_error_of_its_kind(explanation: str, kind: type[Exception]) -> None:
    assert type(container.explain(Refusal(explanation))) is kind
