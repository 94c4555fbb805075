"""The jobs of one `train`: a plan for each model, and a job for each combination of the sweeps."""

import dataclasses
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from train_classifier.cli.runs import sweeps as sweep_option
from train_classifier.controller import groups
from train_classifier.controller.order import Order
from train_classifier.core.errors import BadInput
from train_classifier.core.job import MOST_GROUP, JobSpec, job_of_group, new_group_id
from train_classifier.core.text import quoted
from train_classifier.request import checks, units
from train_classifier.request.build import Plan, TrainRequest, build
from train_classifier.request.flags import own_settings


@dataclasses.dataclass(frozen=True)
class GroupRequest:
    """What one command trains, without a problem."""

    #: One for each model.
    plans: list[Plan]
    #: Each job with the plan of its model.
    jobs: list[tuple[Plan, JobSpec]]

    @property
    def warnings(self) -> list[str]:
        """The warnings of all plans, each once."""
        return list(dict.fromkeys(warning for plan in self.plans for warning in plan.warnings))

    def orders(self) -> list[Order]:
        """Return the jobs in the form that the training functions use."""
        orders = [(plan, plan.order()) for plan in self.plans]
        return [
            dataclasses.replace(order, spec=spec)
            for plan, spec in self.jobs
            for of_plan, order in orders
            if of_plan is plan
        ]

    def outputs(self) -> list[Path]:
        """Return where the archive of each job goes."""
        if len(self.jobs) == 1:
            return [self.plans[0].output]
        return [groups.archive_paths(plan.output, [spec.id])[spec.id] for plan, spec in self.jobs]

    def secrets(self) -> dict[str, dict[str, str]]:
        """Return the values of each job's secrets, by its id."""
        return {spec.id: plan.secrets for plan, spec in self.jobs}


def resolve(
    values: dict[str, Any], more_models: Sequence[str], sweeps: Sequence[str], max_parallel: str | None
) -> GroupRequest:
    """Check a request of one or more models, and return its jobs. Raises BadInput with every problem."""
    models = [values["model"], *more_models]
    choices, problems = sweep_option.combinations(sweeps, len(models))
    problems += [
        f"model {quoted(model)} is named twice" for model in dict.fromkeys(models) if models.count(model) > 1
    ]
    most = None
    if max_parallel is not None:
        try:
            most = units.whole(max_parallel, 1, MOST_GROUP)
        except ValueError as error:
            problems.append(f"--max-parallel: {error}")
        if len(models) == 1 and not sweeps:
            problems.append("--max-parallel needs several models or --sweep: there is one job")
        if "?" in str(values.get("dependency") or ""):
            problems.append("--max-parallel and a --dependency with ? exclude each other")
    plans: list[Plan] = []
    hint = None
    for model in models:
        try:
            request = TrainRequest(**{**values, "model": model})
            plans.append(build(request, os.environ, own_settings=own_settings(os.environ)))
        except BadInput as error:
            problems += error.problems
            hint = hint or error.hint
    if len({(plan.inventory, plan.host) for plan in plans}) > 1:
        problems.append("the models have different hosts in the settings file; name one by --host")
    if problems:
        raise BadInput(*dict.fromkeys(problems), hint=hint)
    for plan in plans:
        plan.warnings.extend(_named_twice(plan.spec.arguments, {name for one in choices for name in one}))
    if len(plans) * len(choices) == 1:
        spec = _with_choice(plans[0].spec, choices[0])
        return GroupRequest(plans, [(plans[0], spec)])
    group = new_group_id()
    pairs = [(plan, choice) for plan in plans for choice in choices]
    jobs = [
        (
            plan,
            dataclasses.replace(
                _with_choice(plan.spec, choice),
                id=job_of_group(group, number),
                group=group,
                max_parallel=most,
            ),
        )
        for number, (plan, choice) in enumerate(pairs, 1)
    ]
    return GroupRequest(plans, jobs)


def _named_twice(arguments: Sequence[str], names: set[str]) -> list[str]:
    return [
        f"the model gets --{name} twice: what --sweep gives comes after the arguments behind --"
        for name in sorted(names)
        if any(word == f"--{name}" or word.startswith(f"--{name}=") for word in arguments)
    ]


def _with_choice(spec: JobSpec, choice: dict[str, str]) -> JobSpec:
    """Return a job with the arguments of a combination. Raises BadInput."""
    arguments = (*spec.arguments, *sweep_option.arguments(choice))
    problems = checks.arguments(arguments)
    if problems:
        raise BadInput(*problems)
    return dataclasses.replace(spec, arguments=arguments, sweep=choice)
