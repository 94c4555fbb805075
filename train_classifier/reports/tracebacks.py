"""Finds the model's Python tracebacks in a log, and the line in the repository that each refers to."""

import builtins
import dataclasses
import posixpath
import re

from train_classifier.core.job import WORKSPACE
from train_classifier.core.text import without_escapes

#: GitHub shows ten errors of a step; the tenth is the outcome of the job. The last tracebacks are kept,
#: because the last one ended the training.
MAX_ANNOTATIONS = 9

#: A traceback of an ExceptionGroup has a margin before it: `  | `, and `+-+---- 1 ----`.
MARGIN = re.compile(r"\s*(?:\| ?|\+ (?=Exception Group)|\+-?\+?-{4,}.*$)")
#: torchrun and PyTorch's own hook write the process before each line.
RANK = re.compile(r"(?:\[(?:rank|default)[0-9]{1,6}\]: ?)+")
HEADER = re.compile(r"(?:Exception Group )?Traceback \(most recent call last\):\s*\Z")
FRAME = re.compile(r'File "(?P<file>[^"\n]+)", line (?P<line>[0-9]{1,9})(?:, in (?P<function>.*))?\Z')
#: `ValueError: text`, `package.Error`, `KeyboardInterrupt`; also `ExceptionGroup: text (2 sub-exceptions)`.
ERROR = re.compile(r"[A-Za-z_][\w.]*(?:: .*|:)\Z")
#: A name without a text could be a word of other output, so only the names below are accepted.
BARE_ERROR = re.compile(r"(?:[A-Za-z_]\w*\.)*(?P<name>[A-Za-z_]\w*)\Z")
ENDINGS = ("Error", "Exception", "Interrupt", "Exit", "Warning")
BUILTINS = {
    name
    for name, value in vars(builtins).items()
    if isinstance(value, type) and issubclass(value, BaseException)
}
SYNTAX = ("SyntaxError", "IndentationError", "TabError")


@dataclasses.dataclass(frozen=True)
class Annotation:
    """A line in the caller's repository, and the error message for it."""

    #: Relative to the top of the repository.
    file: str
    line: int
    message: str


def find(log: str) -> list[Annotation]:
    """Return one annotation for each traceback of the log, at its innermost frame in the repository.

    Tracebacks without such a frame are left out; a line with the same message counts once. Each of several
    chained exceptions has its own annotation. The output of processes that write their rank before each line
    is read for each process separately. Only the last ones are returned, in order of appearance.
    """
    processes: dict[str, list[str]] = {}
    numbers: dict[str, list[int]] = {}
    for number, raw in enumerate(log.replace("\r\n", "\n").split("\n")):
        line = without_escapes(raw).rpartition("\r")[2]
        rank = RANK.match(line)
        process = rank[0] if rank else ""
        processes.setdefault(process, []).append(_without_margin(line[len(process) :]))
        numbers.setdefault(process, []).append(number)
    annotations: list[tuple[int, Annotation]] = []
    for process, lines in processes.items():
        for index, line in enumerate(lines):
            if HEADER.match(line.strip()):
                annotation = _traceback(lines, index)
            elif FRAME.match(line.strip()) and _bare_syntax_error(lines, index):
                annotation = _traceback(lines, index - 1)
            else:
                continue
            if annotation:
                annotations.append((numbers[process][index], annotation))
    ordered: dict[Annotation, None] = {}
    for _, annotation in sorted(annotations, key=lambda pair: pair[0]):
        # Of two equal ones, the position of the last is used.
        ordered.pop(annotation, None)
        ordered[annotation] = None
    return list(ordered)[-MAX_ANNOTATIONS:]


def _without_margin(line: str) -> str:
    """Return a line without the margin of an ExceptionGroup."""
    while margin := MARGIN.match(line):
        if not margin[0]:
            break
        line = line[margin.end() :]
    return line.rstrip()


def _bare_syntax_error(lines: list[str], index: int) -> bool:
    """Return whether a SyntaxError of the entry point is here: Python prints it without a header."""
    before = next((line for line in reversed(lines[max(index - 4, 0) : index]) if line.strip()), "")
    if HEADER.match(before.strip()) or FRAME.match(before.strip()) or before.startswith("    "):
        return False
    return any(line.startswith(SYNTAX) for line in lines[index + 1 : index + 4])


def _traceback(lines: list[str], header: int) -> Annotation | None:
    """Read the traceback whose header is at `header`."""
    position: tuple[str, int] | None = None
    for line in lines[header + 1 : header + 2000]:
        text = line.strip()
        frame = FRAME.match(text)
        if frame:
            file = _relative(frame["file"])
            position = (file, int(frame["line"])) if file else position
        elif HEADER.match(text):
            return None
        elif line[:1].isspace() or not text:
            # The source line of a frame, its marks, or an empty line of a message.
            continue
        elif _is_error(line):
            return Annotation(*position, message=line[:2000]) if position else None
        else:
            # Other output between the lines of the traceback, by another thread or process.
            continue
    return None


def _is_error(line: str) -> bool:
    """Return whether a line ends a traceback."""
    bare = BARE_ERROR.match(line)
    return bool(ERROR.match(line) or (bare and (bare["name"] in BUILTINS or bare["name"].endswith(ENDINGS))))


def _relative(file: str) -> str | None:
    """Return a frame's file relative to the repository, None when it is not one of the repository's."""
    path = posixpath.normpath(posixpath.join(WORKSPACE, file))
    if file.startswith("<") or not path.startswith(WORKSPACE + "/"):
        return None
    relative = path[len(WORKSPACE) + 1 :]
    return None if "site-packages/" in relative else relative
