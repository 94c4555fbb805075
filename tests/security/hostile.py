"""Hostile input for the property tests, and what holds for every reader of it."""

from __future__ import annotations

import contextlib
import json
import math
import time
from collections.abc import Iterator
from typing import Any

from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st

#: Seconds of processor time for one input.
MOST_CPU_S = 5.0
FIXED = settings(
    max_examples=60,
    deadline=None,
    derandomize=True,
    database=None,
    # Shrinking a failing input would take minutes.
    phases=[Phase.explicit, Phase.generate],
    suppress_health_check=[
        HealthCheck.function_scoped_fixture,
        HealthCheck.too_slow,
        HealthCheck.data_too_large,
    ],
)

WORDS = (
    "", " ", "\n", "\r", "\r\n", "\t", "\0", "\x1b[31m", "\x1b]8;;http://x\x07", "\x85", "\u2028", "\u200b", "\u202e",
    "\u2066", "\ufeff", "\ufffe", "\ud800", "\udc80", "é", "ｍ", "😀", "a", "0", "-", "--", "=", "#", "!", "/", "../",
    "\\", "\\\n", "'", '"', '"""', "'''", "[", "]", "{", "}", "(", ")", "<", ">", "|", "||", "`", "```", "````", "~~~",
    "*", "**", "_", "@octocat", "#1", "::", "::error::x", "##[error]x", "::stop-commands::x", "%0A", "%", "%%", "&",
    "&lt;", "<!channel>", "<@U1>", "<script>alert(1)</script>", "<img src=x onerror=alert(1)>", "</code>", "</table>",
    "</details>", "<!--", "-->", "![x](http://x)", "[x](javascript:x)", "http://x.y/z", "www.x.yz", "mailto:a@b.cd",
    "| a | b |", "---", "$(id)", "${HOME}", "{{ x }}", "NaN", "nan", "inf", "-inf", "1e400", "5e-324", "1e30",
    "0x1p5000", "9" * 400, "9" * 5000, "-" + "9" * 5000, "1_000", "٣", "²", "epoch", "loss", "val_loss", "time_s",
    "gpu_uuid", "memory_bytes", ",", ";", "true", "null", "1", "0.5", "-r", "-e", "-c", "x==1", ">=1, ", "x @ http://y",
    "--hash=sha256:0", 'File "/workspace/m/x.py", line 3, in f', "Traceback (most recent call last):", "ValueError: x",
    "Exception Group Traceback (most recent call last):", "  + ", "  | ", "+-+---------------- 1 ----------------",
    "[rank0]: ", "KEY=", "export ", "[defaults]", "[models.m]", "image = ", "gpus = ", "timeout = ", "data = ",
)  # fmt: skip
#: One word again and again: what makes an expression backtrack.
REPEATED = st.tuples(st.sampled_from(WORDS), st.integers(1, 2000), st.sampled_from(WORDS)).map(
    lambda part: (part[0] * part[1])[:8000] + part[2]
)
TEXT = st.one_of(
    st.lists(st.sampled_from(WORDS), max_size=12).map("".join),
    st.lists(st.sampled_from(WORDS), max_size=12).map("\n".join),
    st.text(max_size=30),
    REPEATED,
)
DATA = st.one_of(st.binary(max_size=200), TEXT.map(lambda text: text.encode("utf-8", "surrogatepass")))
NUMBERS = st.one_of(
    st.integers(),
    st.floats(),
    st.sampled_from(
        [
            0,
            -1,
            10**18,
            10**400,
            -(10**400),
            10**4000,
            1e308,
            -1e308,
            5e-324,
            math.inf,
            -math.inf,
            math.nan,
            True,
        ]
    ),
)
LEAVES = st.one_of(st.none(), st.booleans(), NUMBERS, TEXT)
VALUES = st.recursive(
    LEAVES, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXT, inner, max_size=4), max_leaves=8
)


def tables(*names: str, values: st.SearchStrategy[Any] = VALUES) -> st.SearchStrategy[dict[str, Any]]:
    """Return tables with some of the keys that a parser reads."""
    return st.dictionaries(st.sampled_from(names), values, max_size=len(names))


@contextlib.contextmanager
def bounded() -> Iterator[None]:
    """Fail when one input takes too much processor time."""
    began = time.process_time()
    yield
    spent = time.process_time() - began
    assert spent < MOST_CPU_S, f"{spent:.1f} s for one input"


def check_sentences(problems: Any) -> None:
    """Check that messages about bad input fit on a line of a terminal and of a log."""
    for problem in problems:
        assert problem
        assert len(problem) < 20_000
        assert "\n" not in problem
        assert "\x1b" not in problem
        assert "\u202e" not in problem


def digits(value: Any) -> str:
    """Return a number as text, also one that Python does not show."""
    if isinstance(value, int) and abs(value) >= 10**4000:
        return "9" * 4000
    return str(value)


def as_json(value: Any) -> bytes:
    return json.dumps(value, default=str).encode()


RESULT = tables(
    "schema", "id", "model", "outcome", "exit_code", "reason", "hint", "detail", "training_exit_status", "signal",
    "out_of_memory", "archive", "metrics", "seconds", "started", "finished", "image", "gpu_check", "gpus",
)  # fmt: skip
