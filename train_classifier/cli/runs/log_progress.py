"""How far a training is, found in the end of its log: Keras, Lightning, tqdm, transformers, own lines.

The metrics of its history.csv and the use of its GPUs come from the host as the worker's `figures`.
"""

import collections
import re
import time
from collections.abc import Iterator, Mapping
from typing import Any

from train_classifier.core import text

#: Bytes of the log's end that are looked at.
TAIL = 4096
#: Characters of one line that are looked at, and of a metric's name.
MOST_LINE, MOST_NAME = 500, 24
MOST_METRICS = 3
#: What no card has: percent, and MiB.
MOST_USE = 1e8
#: By so many epochs the time left is estimated.
SEEN_EPOCHS = 4
_ESCAPES = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")
_EPOCH = re.compile(
    r"\bepoch[\s:=\[(#]{1,4}(\d{1,6})(?:\s{0,2}(?:/|of)\s{0,2}(\d{1,6}))?(?![\d.])", re.IGNORECASE | re.ASCII
)
#: transformers: {'loss': 0.52, 'learning_rate': 1e-05, 'epoch': 1.5}
_EPOCH_OF_TABLE = re.compile(r"['\"]epoch['\"]: ?'?(\d{1,6})(?:\.\d{0,12})?", re.ASCII)
#: 45/375 of Keras and tqdm, with what stands around it.
_STEPS = re.compile(r"(?:^|\s|\|)(\d{1,9})/(\d{1,9})(?=\s|$|\[)", re.ASCII)
_METRIC = re.compile(
    r"(?<![\w.])['\"]?((?:val|test|train)?_?(?:loss|acc|accuracy|auc|f1|mae|mse|rmse|iou|map|bleu|perplexity|error)\w{0,12})['\"]?"
    r" {0,3}[:= ] {0,3}'?(-?\d{1,9}(?:\.\d{1,17})?(?:e[-+]?\d{1,3})?)(?![\w.])",
    re.IGNORECASE | re.ASCII,
)


class LogProgress:
    """Takes the log as it comes, which costs nothing, and reads its end when it is asked."""

    def __init__(self) -> None:
        self._tail = b""
        #: The newest epochs that were seen, and when: an attach shows the earlier ones all at once.
        self._seen: collections.deque[tuple[float, float]] = collections.deque(maxlen=SEEN_EPOCHS)

    def feed(self, data: bytes) -> None:
        """Take log bytes."""
        self._tail = data[-TAIL:] if len(data) >= TAIL else (self._tail + data)[-TAIL:]

    def summary(
        self, now: float, figures: Mapping[str, Any] | None = None, began: float | None = None
    ) -> str:
        """Return one short line at `now` (seconds of a steady clock); empty where nothing is known.

        Of the `figures` the metrics of history.csv come before those of the log. `began` is when the training
        began: by it the time left is estimated where the log is seen but once.
        """
        epoch, epochs, steps, metrics = self._found()
        figures = figures or {}
        history = _metrics(figures.get("history"))
        if epoch is None:
            epoch = history.pop("epoch", None)
        history.pop("epoch", None)
        parts = []
        if epoch is not None:
            parts.append(f"epoch {epoch:.0f}" + (f"/{epochs}" if epochs else ""))
        if steps:
            parts.append(f"step {steps}")
        left = self._left(epoch, epochs, now)
        if left is None and began is not None and epoch and epochs and 1 < epoch <= epochs:
            left = max(0.0, now - began) / (epoch - 1) * (epochs - epoch + 1)
        if left:
            shown = f"{left:.0f} s" if left < 60 else text.show_seconds(left)
            parts.append(f"about {shown} left")
        parts += _use_of_gpus(figures.get("gpus"))
        shown_metrics = list((history or metrics).items())[:MOST_METRICS]
        parts += [f"{name} {text.number(value)}" for name, value in shown_metrics]
        return " · ".join(parts)

    def _found(self) -> tuple[float | None, int | None, str, dict[str, float]]:
        """Return epoch, epochs, steps and metrics of the end of the log."""
        epoch = epochs = None
        steps = ""
        metrics: dict[str, float] = {}
        for line in self._newest_lines():
            epoch_match = _EPOCH.search(line) or _EPOCH_OF_TABLE.search(line)
            for name, value in _METRIC.findall(line):
                if len(metrics) < MOST_METRICS:
                    metrics.setdefault(name[:MOST_NAME], float(value))
            if not steps and epoch is None and not (epoch_match and epoch_match.lastindex == 2):
                steps = next(
                    (f"{done}/{of}" for done, of in _STEPS.findall(line) if 0 < int(of) >= int(done)), ""
                )
            if epoch_match:
                epoch = int(epoch_match[1])
                epochs = int(epoch_match[2]) if epoch_match.lastindex == 2 else None
                break
        return epoch, epochs, steps, metrics

    def _newest_lines(self) -> Iterator[str]:
        lines = re.split(r"[\r\n]+", _ESCAPES.sub("", self._tail.decode("utf-8", "replace")))
        if len(self._tail) == TAIL:
            # The first one is cut.
            lines = lines[1:]
        for line in reversed(lines):
            if line.strip():
                yield line[-MOST_LINE:]

    def _left(self, epoch: float | None, epochs: int | None, now: float) -> float | None:
        """Return the seconds to the end, by the time of the epochs that were seen to begin."""
        if epoch is None or epochs is None or epoch > epochs:
            return None
        if self._seen and epoch < self._seen[-1][0]:
            # Another training of the same job begins.
            self._seen.clear()
        if not self._seen or epoch > self._seen[-1][0]:
            self._seen.append((epoch, now))
        (begun, since), (newest, seen) = self._seen[0], self._seen[-1]
        if newest == begun:
            return None
        return max(0.0, (seen - since) / (newest - begun) * (epochs - newest) - (now - seen))


def of_job(figures: Mapping[str, Any] | None, began: float | None) -> str:
    """Return the line for a job that a host was asked about; empty where it is not in training."""
    if not figures:
        return ""
    progress = LogProgress()
    progress.feed(str(figures.get("log_end") or "").encode("utf-8", "replace"))
    return progress.summary(time.time(), figures, began)


def _metrics(history: Any) -> dict[str, float]:
    """Return the epoch and the metrics of a row of history.csv, as a host gave it."""
    if not isinstance(history, dict):
        return {}
    # Other letters may be wide, or turn the direction of the line.
    names = {name: text.short(name, MOST_NAME) for name in history if name.isascii() and name.isprintable()}
    return {names[name]: value for name, value in history.items() if name in names and _is_number(value)}


def _use_of_gpus(gpus: Any) -> list[str]:
    """Return the use and the memory of a job's cards in a few words: the mean, and all together."""
    cards = [card for card in gpus if isinstance(card, dict)] if isinstance(gpus, list) else []
    use = [card["percent"] for card in cards if _is_number(card.get("percent"), MOST_USE)]
    memory = [card["memory_mib"] for card in cards if _is_number(card.get("memory_mib"), MOST_USE)]
    if not use and not memory:
        return []
    words = ["GPU" if len(cards) == 1 else f"{len(cards)} GPUs"]
    words += [f"{sum(use) / len(use):.0f} %"] if use else []
    words += [text.show_bytes(int(sum(memory)) << 20)] if memory else []
    return [" ".join(words)]


def _is_number(value: Any, most: float = 1e300) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < most
