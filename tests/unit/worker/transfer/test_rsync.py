"""What the two rsync commands accept."""

import pytest

from train_classifier.core.errors import BadInput
from train_classifier.worker.transfer import rsync


@pytest.mark.parametrize(
    "option", ["--log-file=/x", "--files-from=/etc/x", "--link-dest=/etc", "--temp-dir=/", "-o /x"]
)
def test_options_that_reach_other_paths_are_refused(option: str) -> None:
    with pytest.raises(BadInput, match="not allowed: "):
        rsync._checked_options(["--server", option, "-lptS", ".", "."], sending=False)


def test_paths_are_dropped() -> None:
    arguments = ["--server", "--sender", "-re.iLsfxCIvu", "--timeout=120", ".", "/etc/passwd", "../../x", "y"]
    assert rsync._checked_options(arguments, sending=True) == [
        "--server", "--sender", "-re.iLsfxCIvu", "--timeout=120", ".",
    ]  # fmt: skip
