"""The packages in a model's apt-pkgs.txt; read without installing, on the controller and by the worker."""

import dataclasses
import os
import re
from pathlib import Path

from train_classifier.core import regular_file
from train_classifier.core.requirements_file import MOST_PROBLEMS, decode, shortened

#: Debian policy 5.6.1 (names) and 5.6.12 (versions); a trailing "-" would tell apt-get to remove the package.
PACKAGE = re.compile(
    r"[a-z0-9][a-z0-9+.-]*[a-z0-9+](?::[a-z0-9][a-z0-9-]*)?(?:=[0-9A-Za-z][0-9A-Za-z.+:~-]*)?\Z", re.ASCII
)
MOST_BYTES = 1 << 20


@dataclasses.dataclass(frozen=True)
class Packages:
    """The Debian packages of a model: sorted, each once, `name` or `name=version`."""

    names: tuple[str, ...] = ()
    problems: tuple[str, ...] = ()


def parse(root: Path, model: str) -> Packages:
    """Read MODEL/apt-pkgs.txt of the repository at `root`; a missing file asks for nothing. Never raises."""
    relative = f"{model}/apt-pkgs.txt"
    path = Path(root) / relative
    if not os.path.lexists(path):
        return Packages()
    try:
        text = decode(regular_file.read(path, MOST_BYTES, within=os.path.realpath(root)))
    except (OSError, ValueError) as error:
        return Packages(problems=(f"{relative} cannot be read: {getattr(error, 'strerror', None) or error}",))
    names, problems = set(), []
    for number, line in enumerate(re.split(r"\r\n|\r|\n", text), 1):
        for word in line.partition("#")[0].split():
            if PACKAGE.match(word):
                names.add(word)
            elif word.startswith("-"):
                problems.append(f"{relative}:{number}: {word!r} is an option, not a package")
            else:
                problems.append(f"{relative}:{number}: {word!r} is not the name of a Debian package")
    sentences = tuple(shortened(problem) for problem in problems[:MOST_PROBLEMS])
    if len(problems) > MOST_PROBLEMS:
        sentences += (f"{relative}: there are more problems; mend these first",)
    return Packages(tuple(sorted(names)), sentences)
