"""How far a training is, found in the end of its log: Keras, Lightning, tqdm, transformers, own lines."""

import collections
import re
from collections.abc import Iterator

from train_classifier.core import text

#: Bytes of the log's end that are looked at.
TAIL = 4096
#: Characters of one line that are looked at, and of a metric's name.
MOST_LINE, MOST_NAME = 500, 24
MOST_METRICS = 3
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
        self._seen: collections.deque[tuple[int, float]] = collections.deque(maxlen=SEEN_EPOCHS)

    def feed(self, data: bytes) -> None:
        """Take log bytes."""
        self._tail = data[-TAIL:] if len(data) >= TAIL else (self._tail + data)[-TAIL:]

    def summary(self, now: float) -> str:
        """Return one short line at `now` (seconds of a steady clock); empty where nothing is known."""
        epoch = epochs = None
        steps = ""
        metrics: dict[str, str] = {}
        for line in self._newest_lines():
            epoch_match = _EPOCH.search(line) or _EPOCH_OF_TABLE.search(line)
            for name, value in _METRIC.findall(line):
                if len(metrics) < MOST_METRICS:
                    metrics.setdefault(name[:MOST_NAME], value)
            if not steps and epoch is None and not (epoch_match and epoch_match.lastindex == 2):
                steps = next(
                    (f"{done}/{of}" for done, of in _STEPS.findall(line) if 0 < int(of) >= int(done)), ""
                )
            if epoch_match:
                epoch = int(epoch_match[1])
                epochs = int(epoch_match[2]) if epoch_match.lastindex == 2 else None
                break
        parts = []
        if epoch is not None:
            parts.append(f"epoch {epoch}" + (f"/{epochs}" if epochs else ""))
        if steps:
            parts.append(f"step {steps}")
        parts += [f"{name} {text.number(float(value))}" for name, value in metrics.items()]
        left = self._left(epoch, epochs, now)
        if left:
            shown = f"{left:.0f} s" if left < 60 else text.show_seconds(left)
            parts.append(f"about {shown} left")
        return " · ".join(parts)

    def _newest_lines(self) -> Iterator[str]:
        lines = re.split(r"[\r\n]+", _ESCAPES.sub("", self._tail.decode("utf-8", "replace")))
        if len(self._tail) == TAIL:
            # The first one is cut.
            lines = lines[1:]
        for line in reversed(lines):
            if line.strip():
                yield line[-MOST_LINE:]

    def _left(self, epoch: int | None, epochs: int | None, now: float) -> float | None:
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
