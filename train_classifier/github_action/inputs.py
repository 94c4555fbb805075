"""The action's inputs: `with:` overrides the environment, and both become one request."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path

from train_classifier.core import options
from train_classifier.github_action import slack_message
from train_classifier.request.build import TrainRequest

#: Prefix of the variables for `with:`; an empty value means not set, as everywhere.
PREFIX = "TRAIN_CLASSIFIER_INPUT_"
VARIABLE = options.VARIABLE_PREFIX
#: The option of every input of action.yaml, by the input's name with _ for -.
INPUTS = {option.input.replace("-", "_"): option for option in options.OPTIONS if option.input}
#: Seconds that a model has to end after a workflow cancel: GitHub gives 10 s to everything together.
CANCEL_GRACE_S = 3.0
#: Inputs that only the step itself reads, and that no other process may see.
OWN = tuple(
    name
    for name, option in INPUTS.items()
    if option.action_only or option.environment_variable != VARIABLE + name.upper()
)


@dataclasses.dataclass(frozen=True)
class Inputs:
    """The inputs of the step."""

    request: TrainRequest
    #: The environment in which the request is checked.
    environment: dict[str, str]
    #: The webhook, empty for none; a secret.
    webhook: str
    slack_events: frozenset[slack_message.Event]
    #: Problems of the inputs that only the step reads; the request reports those of the others.
    problems: tuple[str, ...] = ()


def read(environment: Mapping[str, str]) -> Inputs:
    """Return the inputs, and the problems of those that only the step reads."""
    merged = {name: value for name, value in environment.items() if not name.startswith(PREFIX)}
    for name in INPUTS:
        value = environment.get(PREFIX + name.upper(), "")
        if value.strip():
            merged[VARIABLE + name.upper()] = value
    values = {name: merged.get(VARIABLE + name.upper(), "") for name in INPUTS}
    for name in OWN:
        merged.pop(VARIABLE + name.upper(), None)
    webhook = values["slack_webhook"].strip() or merged.pop("SLACK_IDENTIFIER", "").strip()
    merged.pop("SLACK_IDENTIFIER", None)
    problems = []
    try:
        slack_events = slack_message.events(values["slack_notify"])
    except ValueError as error:
        # A caller who wants any notice also wants a notice about this failure.
        slack_events = slack_message.events(None)
        problems.append(str(error))
    # Exactly one argument on each line, without the carriage return of a Windows editor.
    lines = [line.removesuffix("\r") for line in values["args"].split("\n")]
    arguments = [line for line in lines if line.strip()]
    request = TrainRequest(
        arguments=arguments or None, grace=values["cancel_grace"].strip() or None, cwd=Path.cwd()
    )
    return Inputs(request, merged, webhook, slack_events, tuple(problems))


def step_variables(environment: Mapping[str, str]) -> set[str]:
    """Return the variables that no child process gets: all inputs, and the webhook."""
    passed = (VARIABLE + "HOST_JSON", options.READER)
    names = {name for name in environment if name.startswith(VARIABLE) and name not in passed}
    return names | ({"SLACK_IDENTIFIER"} & set(environment))
