"""Samples of GPU use."""

from train_classifier.worker.training import usage


def test_values_that_cards_do_not_report_are_empty() -> None:
    text = "GPU-a, 55, 1024\nGPU-b, [N/A], [Not Supported]\nUnable to determine\nGPU-c, 1, 2\n"
    assert usage.parse(text, ["GPU-a", "GPU-b", "GPU-gone"]) == [
        ("GPU-a", "55", "1024"), ("GPU-b", "", ""), ("GPU-gone", "", ""),
    ]  # fmt: skip
