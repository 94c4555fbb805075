"""GPUs are hidden from containers that need none."""

from docker.types import DeviceRequest

from train_classifier.worker.containers import helper


def test_gpus_are_hidden_unless_a_runtime_gives_them() -> None:
    void = {"NVIDIA_VISIBLE_DEVICES": "void"}
    assert helper.no_gpu_variables({}) == void
    by_cdi = DeviceRequest(driver="cdi", device_ids=["nvidia.com/gpu=0"])
    assert helper.no_gpu_variables({"device_requests": [by_cdi]}) == void
    by_runtime = DeviceRequest(device_ids=["GPU-1"], capabilities=[["gpu"]])
    assert helper.no_gpu_variables({"device_requests": [by_runtime]}) == {}


def test_answers_of_our_own_programs_are_not_shown() -> None:
    assert helper.line_for_people(b"a\n building x\n\n") == " building x"
    assert helper.line_for_people(b'train-classifier:{"packages": {}}\n') == ""
    assert helper.line_for_people(b"\n") == ""
    assert helper.line_for_people(b"building six @ https://me:" + b"x" * 300 + b"@h/") == (
        "building six @ https://***@h/"
    )
    assert helper.line_for_people(b"from its beginning " + b"x" * 300).startswith("from its beginning x")
