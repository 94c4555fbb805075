"""`--sweep`: which values an argument of the model gets, and the jobs for all combinations."""

import csv
import itertools
import math
from collections import Counter
from collections.abc import Sequence

from train_classifier.core.job import MOST_GROUP, SWEEP_NAME
from train_classifier.core.text import quoted

#: One choice: the argument's name and its value, which is empty for a flag.
Choice = tuple[str, str]
_FORM = "write NAME=VALUE,VALUE, as lr=0.1,0.01, or flags, as augment,no-augment"


def parse(text: str) -> tuple[Choice, ...]:
    """Return the choices of one sweep. Raises ValueError with one sentence."""
    name, equals, listed = text.partition("=")
    if name.startswith("-"):
        raise ValueError(f"{quoted(text)} begins with a dash; write the name alone, as lr=0.1,0.01")
    names = [name] if equals else name.split(",")
    for each in names:
        if not SWEEP_NAME.match(each):
            raise ValueError(f"{quoted(each)} is not the name of an argument; {_FORM}")
    if equals:
        values = _values(text, listed)
        choices = tuple((name, value) for value in values)
    elif len(names) == 1:
        raise ValueError(f"{quoted(name)} has no values; {_FORM}")
    else:
        choices = tuple((each, "") for each in names)
    twice = next((choice for choice, count in Counter(choices).items() if count > 1), None)
    if twice is not None:
        raise ValueError(f"{quoted(text)} names {quoted(twice[1] or twice[0])} twice")
    return choices


def _values(text: str, listed: str) -> list[str]:
    try:
        rows = list(csv.reader([listed], strict=True)) if "\n" not in listed else []
    except csv.Error as error:
        raise ValueError(f'{quoted(text)}: {error}; a value with a comma or " is written as in CSV') from None
    if len(rows) > 1 or "\n" in listed:
        raise ValueError(f"{quoted(text)} holds a line break")
    values = rows[0] if rows else []
    if not values or "" in values:
        raise ValueError(f"{quoted(text)} holds an empty value; {_FORM}")
    return values


def combinations(sweeps: Sequence[str], models: int = 1) -> tuple[list[dict[str, str]], list[str]]:
    """Return every combination of the choices, in order, and the problems as sentences.

    Without a sweep there is one, which is empty. `models` is how many models are trained with each.
    """
    lists: list[tuple[Choice, ...]] = []
    problems = []
    names: set[str] = set()
    for text in sweeps:
        try:
            choices = parse(text)
        except ValueError as error:
            problems.append(f"--sweep: {error}")
            continue
        own = {name for name, _ in choices}
        problems += [
            f"--sweep: {quoted(name)} is swept twice; give all its values at once"
            for name in sorted(own & names)
        ]
        names |= own
        lists.append(choices)
    count = math.prod(len(choices) for choices in lists) * models
    if count > MOST_GROUP:
        problems.append(f"{count} jobs are more than the {MOST_GROUP} that one command starts")
    if problems:
        return [], problems
    return [dict(combination) for combination in itertools.product(*lists)], []


def arguments(choice: dict[str, str]) -> tuple[str, ...]:
    """Return the model's arguments for a combination: --lr 0.1 --no-augment.

    A value that begins with a dash is joined with its name: parsers would take it for a name.
    """
    words: list[str] = []
    for name, value in choice.items():
        if value.startswith("-"):
            words.append(f"--{name}={value}")
        else:
            words += [f"--{name}", value] if value else [f"--{name}"]
    return tuple(words)
