"""Faults of the host are not bugs."""

from train_classifier.worker.system import host_faults


def test_faults_of_host_are_not_bugs() -> None:
    import docker.errors
    import requests.exceptions

    full = host_faults.of_host(OSError(28, "No space left on device"))
    away = host_faults.of_host(requests.exceptions.ChunkedEncodingError("Connection broken"))
    refused = host_faults.of_host(
        docker.errors.APIError("x", explanation="write /var/lib/docker: no space left on device")
    )
    assert full is not None and "No space left" in full.reason
    assert away is not None and "engine went away" in away.reason
    assert refused is not None and "disk" in refused.reason
    assert (
        host_faults.of_host(FileNotFoundError(2, "No such file")) is None
        and host_faults.of_host(ValueError()) is None
    )
