"""The order for one training run, which the steps in the playbook read from a file."""

import base64
import dataclasses
import json
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from train_classifier.core import options
from train_classifier.core.job import JobSpec, failed_archive_name


@dataclasses.dataclass(frozen=True)
class Order:
    """One run on the controller: the specification, the files to push, and the path of the archive."""

    spec: JobSpec
    #: The repository's folder here; "" where the host has the files already.
    tree: str
    #: base64 of zlib of NUL-separated relative paths, as the worker's `prepare` expects them.
    files: str
    #: Where the archive goes; absolute.
    output: str
    #: Hash of the present state of the files (`push_list.fingerprint`); None: unknown.
    fingerprint: str | None = None
    #: How the host runs Python and where it keeps state; None: the defaults.
    python: str | None = None
    state_dir: str | None = None
    #: Seconds without a connection before the controller gives up.
    patience_s: float = options.default("patience")
    #: The flags that another command needs to find the host again, with a space before each.
    flags: str = ""
    #: Return once the job is safe on the host.
    detach: bool = False
    #: A failed job's archive goes to a file of its own, so that the last good one stays.
    keeps_good_archive: bool = False
    #: Somebody watches a live line, which shows what the model uses and has measured.
    is_watched: bool = False

    def archive_path(self, result: Mapping[str, Any]) -> Path:
        """Return where the archive of the job goes, which ended with `result`."""
        return archive_path(Path(self.output), self.spec.id, result, self.keeps_good_archive)

    def to_json(self) -> str:
        """Return the order as JSON; it holds no secret's value."""
        return json.dumps(dataclasses.asdict(self))

    @classmethod
    def from_json(cls, text: str) -> "Order":
        """Read what `to_json` wrote."""
        data = json.loads(text)
        data["spec"] = JobSpec.from_dict(data["spec"])
        return cls(**data)


def archive_path(output: Path, job: str, result: Mapping[str, Any], keeps_good: bool) -> Path:
    """Return where a job's archive goes; with `keeps_good` that of a failed job goes beside `output`."""
    if keeps_good and result.get("exit_code"):
        return output.with_name(failed_archive_name(output.name, job))
    return output


def pack_names(names: Sequence[bytes]) -> str:
    """Return relative paths in the form of `Order.files`."""
    return base64.b64encode(zlib.compress(b"\0".join(names))).decode("ascii")


def unpack_names(packed: str) -> list[bytes]:
    """Return the relative paths that `pack_names` packed."""
    return [name for name in zlib.decompress(base64.b64decode(packed)).split(b"\0") if name]
