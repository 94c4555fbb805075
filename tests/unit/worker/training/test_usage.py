"""Samples of GPU use."""

from pathlib import Path

from train_classifier.worker.system.cgroup import ControlGroup
from train_classifier.worker.training import usage


def test_values_that_cards_do_not_report_are_empty() -> None:
    text = "GPU-a, 55, 1024\nGPU-b, [N/A], [Not Supported]\nUnable to determine\nGPU-c, 1, 2\n"
    assert usage.parse(text, ["GPU-a", "GPU-b", "GPU-gone"]) == [
        ("GPU-a", "55", "1024"), ("GPU-b", "", ""), ("GPU-gone", "", ""),
    ]  # fmt: skip


def test_only_what_is_known_to_be_unused_counts_as_idle() -> None:
    sampler = usage.Sampler(Path("/nowhere"), ControlGroup(0), ["GPU-a", "GPU-b", "GPU-c"], "nvidia-smi")
    assert sampler.idle_s() == {}
    sampler._count_idle([("GPU-a", "0", "1"), ("GPU-b", "7", "1"), ("GPU-c", "", "")], 5.0)
    assert sampler.idle_s() == {"GPU-a": 5.0, "GPU-b": 0.0}
    sampler._count_idle([("GPU-a", "0", "1"), ("GPU-b", "0", "1"), ("GPU-c", "0", "")], 4.0)
    assert sampler.idle_s() == {"GPU-a": 9.0, "GPU-b": 4.0, "GPU-c": 4.0}
    # nvidia-smi does not answer: it begins anew.
    sampler._count_idle([("GPU-a", "", ""), ("GPU-b", "1", "1"), ("GPU-c", "0", "")], 1.0)
    assert sampler.idle_s() == {"GPU-b": 0.0, "GPU-c": 5.0}
