"""docs/reliability.md names a test for each fault, and these exist."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[3]


def test_every_row_names_a_test_that_exists() -> None:
    text = (ROOT / "docs/reliability.md").read_text()
    rows = [
        line for line in text.splitlines() if line.startswith("| ") and not line.startswith("| What happens")
    ]
    assert len(rows) > 15
    for row in rows:
        match = re.search(r"\| `(tests/[\w/]+\.py)::(test_\w+)` \|$", row)
        assert match, row
        assert f"def {match[2]}(" in (ROOT / match[1]).read_text(), row
