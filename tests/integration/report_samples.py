"""Jobs whose reports the tests look at in a browser: a good one, a failed one, one without metrics, a long one, a wide one."""

import json
import math
import random
import struct
import zlib
from pathlib import Path
from typing import Any

from train_classifier.core.report import curves, document, images
from train_classifier.reports import run_comparison

PAPERS = Path(__file__).parents[1] / "unit" / "data" / "job-summary"
HOSTILE = "</script><script>window.attacked=1</script><img src=x onerror=window.attacked=1> &lt; \u2028 \u202e \ud800 'x' \"y\" `z`"
START = 1_795_788_900.0


def manifest(**more: Any) -> dict[str, Any]:
    phases = {
        "image": 0.4,
        "packages": 0.2,
        "environment": 6.5,
        "queue": 3,
        "gpu-check": 3.2,
        "training": 138,
        "artefacts": 0.6,
    }
    times, at = {}, START
    for name, seconds in phases.items():
        times[name] = [at, at + seconds]
        at += seconds
    return {
        "arguments": ["--epochs", "14", "--learning-rate", "0.001"], "submitter": "ada@desk", "submitted": START - 2, "times": times,
        "repository": {"name": "classifiers", "commit": "0c7e5a5f1f4b" + "0" * 28, "dirty": True, "address": "https://github.com/octocat/classifiers"},
        "data": {"images": "/srv/data/images"}, "environment_variables": ["SEED"], "secrets": ["WANDB_API_KEY"],
        "environment": {"python": "3.11.0", "packages": ["tensorflow==2.17.0", "keras==3.4.1", "numpy==1.26.4", "six==1.16"]},
        "host": {"name": "lab-1", "os": "Debian GNU/Linux 12 (bookworm)", "kernel": "6.1.0-40-amd64", "cpus": 16, "memory_bytes": 64 << 30},
        "gpus": [{"name": "NVIDIA GeForce RTX 4070", "driver": "550.163.01"}],
        "limits": {"timeout_s": 86400, "memory_bytes": 48 << 30, "network": "full"}, **more,
    }  # fmt: skip


def usage(seconds: int, gpus: int) -> str:
    chance = random.Random(1)
    rows = []
    for at in range(0, seconds, 5):
        for card in range(gpus):
            busy = 0 if at < 10 else min(100, 60 + 4 * card + chance.randrange(30))
            rows.append(
                f"{at}.2,{150 + chance.randrange(40)},{(2 << 30) + at * 100_000},GPU-{card},{busy},{6000 + 200 * card},"
                f"{at * 3_000_000},{at * 200_000}\n"
            )
    return (
        "time_s,cpu_percent,memory_bytes,gpu_uuid,gpu_util_percent,gpu_memory_mib,disk_read_bytes,disk_written_bytes\n"
        + "".join(rows)
    )


def picture(size: int = 160) -> bytes:
    """Return a confusion matrix of ten classes as PNG."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    def pixel(x: int, y: int) -> bytes:
        row, column = y * 10 // size, x * 10 // size
        shade = 40 if row == column else 235 - (row * 7 + column * 13) % 40
        return bytes((shade, shade, 255))

    rows = b"".join(b"\0" + b"".join(pixel(x, y) for x in range(size)) for y in range(size))
    head = struct.pack(">IIBBBBB", size, size, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", head)
        + chunk(b"IDAT", zlib.compress(rows))
        + chunk(b"IEND", b"")
    )


def history(text: str) -> list[tuple[str, curves.Curves]]:
    table = curves.from_csv(text)
    assert table
    return [("artefacts/history.csv", table)]


def good() -> dict[str, Any]:
    result = json.loads((PAPERS / "result.json").read_text())
    size = images.check(picture())
    assert size
    shown = document.build(
        document.JobRecords(
            result=result, manifest=manifest(), usage=usage(138, 1), log="".join(f"epoch {n}/14 loss 0.5\n" for n in range(1, 15)),
            tables=history((PAPERS / "history.csv").read_text()),
            images=[("artefacts/confusion_matrix.png", size, picture()), ("artefacts/samples/0.png", size, picture())],
        )
    )  # fmt: skip
    earlier = [
        {
            "job": f"2026112{n}-141500-1a2b3c4d",
            "outcome": "trained",
            "values": ["0c7e5a5f1f4b", 60 * n, 0.8 + n / 50, None],
        }
        for n in range(3)
    ]
    this = {"job": shown["job"], "outcome": "trained", "values": ["0c7e5a5f1f4b", 145, 0.8867, 119.94]}
    shown["comparison"] = {
        "columns": ["commit", "seconds", "test_map50", "training_seconds"],
        "runs": [*earlier, this],
    }
    return shown


def failed() -> dict[str, Any]:
    result = {
        "id": "20261123-141500-1a2b3c4d", "model": "mnist", "outcome": "failed", "exit_code": 4, "training_exit_status": 1,
        "reason": "the model failed with exit status 1", "hint": HOSTILE, "detail": None, "metrics": {HOSTILE: 1.0, "loss": 1e-300},
        "seconds": {"training": 12.5}, "gpus": [{"name": HOSTILE}], "remarks": [HOSTILE],
    }  # fmt: skip
    log = (
        "Loading data\nepoch 1 loss 2.3\nTraceback (most recent call last):\n"
        '  File "/workspace/mnist/__main__.py", line 41, in <module>\n    main()\n'
        '  File "/workspace/mnist/__main__.py", line 30, in main\n    fit(images, labels)\n'
        f"ValueError: shapes (32,784) and (785,10) not aligned {HOSTILE}\n"
    )  # fmt: skip
    text = f'epoch,loss,"{HOSTILE.replace(chr(34), "")}"\n1,2.3,0\n2,1.9,0\n'
    return document.build(
        document.JobRecords(result=result, manifest=manifest(arguments=["--x", HOSTILE, "y" * 5000]), usage=usage(15, 1), log=log, tables=history(text))
    )  # fmt: skip


def bare() -> dict[str, Any]:
    result = {
        "id": "20261123-141500-1a2b3c4d",
        "model": "job",
        "outcome": "trained",
        "exit_code": 0,
        "gpus": [],
        "seconds": {"training": 3.0},
    }
    return document.build(document.JobRecords(result=result, manifest=manifest(gpus=[])))


def long() -> dict[str, Any]:
    chance = random.Random(2)
    rows = "".join(
        f"{n},{2 / math.sqrt(n) + chance.random() / 10:.5f},{2.2 / math.sqrt(n) + chance.random() / 5:.5f},{1 - 1 / math.sqrt(n):.5f},{1e-3 * 0.9995**n:.3e}\n"
        for n in range(1, 10_001)
    )
    result = {
        **json.loads((PAPERS / "result.json").read_text()),
        "metrics": {f"metric_{n}": n / 7 for n in range(100)},
    }
    times = {
        "image": [START, START + 2],
        "queue": [START + 2, START + 7000],
        "training": [START + 7000, START + 7000 + 86_400],
        "artefacts": [START + 93_400, START + 93_410],
    }
    return document.build(
        document.JobRecords(result=result, manifest=manifest(times=times), usage=usage(86_400, 1), tables=history("epoch,loss,val_loss,accuracy,lr\n" + rows))
    )  # fmt: skip


def wide() -> dict[str, Any]:
    result = {**json.loads((PAPERS / "result.json").read_text()), "gpus": [{"name": "NVIDIA H200"}] * 8}
    names = ",".join(
        f"train/{part}_loss"
        for part in ("box", "class", "objectness", "mask", "keypoint", "angle", "total", "dfl", "extra")
    )
    rows = "".join(f"{n}," + ",".join(f"{(c + 1) / n:.4f}" for c in range(9)) + "\n" for n in range(1, 60))
    return document.build(
        document.JobRecords(
            result=result,
            manifest=manifest(
                times={
                    "gpu-check": [START, START + 9],
                    "training": [START + 9, START + 3620],
                    "artefacts": [START + 3620, START + 3700],
                }
            ),
            usage=usage(3600, 8),
            tables=history(f"epoch,{names}\n{rows}"),
        )
    )


def odd() -> dict[str, Any]:
    """Return a report of numbers at the limits of what is drawn, and beyond them."""
    rows = [
        "1e-29,1e29,1e-29,5,0",
        "2,-1e29,2e-29,5,0",
        f"3,{'9' * 400},nan,5,0",
        "inf,1,1,1,1",
        "1e29,0,0,5,0",
    ]
    times = {
        "image": [0, 1e300],
        "queue": [-1e300, 5],
        "gpu-check": [None, 5],
        "training": [START, None],
        "artefacts": "x",
    }
    result = {
        "id": 5,
        "model": None,
        "exit_code": 0,
        "gpus": "x",
        "metrics": {"a": 10**400, "b": 1e308, "c": -0.0},
        "seconds": {"training": 1e300},
    }
    text = "epoch,huge,tiny,flat,same\n" + "\n".join(rows)
    return document.build(
        document.JobRecords(
            result=result,
            manifest={"times": times, "submitted": 1e300},
            tables=history(text),
            usage=usage(20, 1),
        )
    )


def compared() -> dict[str, Any]:
    """Return nine jobs side by side, one of which failed and says what a stranger likes."""
    second = failed()

    def other(number: int) -> dict[str, Any]:
        shown = good()
        for line in (line for chart in shown["curves"] for line in chart["lines"]):
            line["y"] = [value * (1 + number / 20) for value in line["y"]]
        return shown

    documents = [(f"2026112{n}-141500-1a2b3c4d", second if n == 4 else other(n)) for n in range(9)]
    different = {
        "metric val_accuracy": [str(0.9 + n / 100) for n in range(9)],
        "arguments": ["--lr 0.1 --name " + "x" * 300, *[HOSTILE] * 8],
    }
    same = {"gpus": "1", "repository.commit": "0c7e5a5f1f4b", HOSTILE: HOSTILE}
    return run_comparison.side_by_side(documents, different, same, ["job x is not finished"])


SAMPLES = {
    "compared": compared,
    "good": good,
    "failed": failed,
    "bare": bare,
    "long": long,
    "wide": wide,
    "odd": odd,
}
