"""Builds the Plan of one run from flags, environment and settings, or reports all problems together."""

import concurrent.futures
import dataclasses
import functools
import os
import platform
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from train_classifier.ansible_bridge import inventory
from train_classifier.ansible_bridge.inventory import Target
from train_classifier.controller.order import Order, pack_names
from train_classifier.core import job, options
from train_classifier.core.errors import BadInput
from train_classifier.core.job import JobSpec
from train_classifier.core.text import printable
from train_classifier.request import checkout, checks, precedence, push_list
from train_classifier.request.push_list import Sources


class TrainRequest:
    """The caller's values by the names of `core.options`, unparsed: sizes and numbers may be text."""

    def __init__(self, *, cwd: Path | None = None, **values: Any) -> None:
        """Take the values that are set. Relative paths start at `cwd`, None: at this process's folder.

        Raises TypeError for a name that is no option.
        """
        unknown = sorted(set(values) - set(options.BY_NAME))
        if unknown:
            raise TypeError(f"no option of a training: {', '.join(unknown)}")
        self.cwd = cwd
        self.values = {name: value for name, value in values.items() if value is not None}

    def get(self, name: str) -> Any:
        """Return the value of an option, None where it is not set."""
        return self.values.get(name)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Plan:
    """A request without a problem."""

    spec: JobSpec
    #: The checkout's real path.
    repository: Path
    sources: Sources
    #: Values by name; never written anywhere.
    secrets: dict[str, str] = dataclasses.field(repr=False)
    #: Where the archive goes; absolute.
    output: Path
    #: Absolute path or host list; None: no inventory, this machine.
    inventory: str | None
    #: The requested host, group or pattern.
    host: str | None
    #: Resolves the one host with Ansible; None where the caller has its own connection.
    look: "Callable[[], Target] | None" = dataclasses.field(repr=False)
    detach: bool
    #: Seconds without a connection before this side gives up.
    patience_s: float
    #: The flags that another command needs to find the host again, with a space before each.
    flags: str
    warnings: list[str]
    #: The origin of each value that was set, by its key.
    origin: dict[str, str]

    @property
    def target(self) -> Target | None:
        """The one host; Ansible needs a second for it. Raises BadInput as `inventory.single_host` does."""
        return self.look() if self.look else None

    def order(self) -> Order:
        """Return the plan in the form that the training functions use, for any host."""
        return Order(
            spec=self.spec,
            tree=str(self.repository),
            files=pack_names(self.sources.paths),
            output=str(self.output),
            fingerprint=push_list.fingerprint(self.repository, self.sources.paths),
            patience_s=self.patience_s,
            flags=self.flags,
            detach=self.detach,
        )


def build(
    request: TrainRequest,
    environ: Mapping[str, str],
    *,
    resolve: bool = True,
    own_settings: Path | None = None,
) -> Plan:
    """Check the checkout and the request, and return the plan.

    Order: flag, environment variable TRAIN_CLASSIFIER_<NAME>, the caller's own settings file (only where
    `own_settings` names it), the repository's train-classifier.toml, default. With `resolve`
    the host is the inventory's; inside Ansible it is known already. Ansible needs a second to resolve it. So
    it is resolved here only to report all problems together, otherwise by `Plan.target` or the first step of
    the playbook. Raises BadInput with all problems together; nothing on disk or on a host has changed.
    """
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        return _Builder(request, environ, resolve, own_settings, pool).plan()


class _Builder:
    def __init__(
        self,
        request: TrainRequest,
        environ: Mapping[str, str],
        resolve: bool,
        own_settings: Path | None,
        pool: concurrent.futures.ThreadPoolExecutor,
    ) -> None:
        self.request = request
        self.environ = environ
        self.resolve = resolve
        self.own_settings = own_settings
        self.pool = pool
        self.problems: list[str] = []
        self.warnings: list[str] = []
        self.required_pythons: tuple[str, ...] = ()

    def plan(self) -> Plan:
        """Return the plan, or raise BadInput."""
        try:
            cwd = (self.request.cwd or Path.cwd()).absolute()
        except FileNotFoundError as error:
            raise BadInput("the current folder no longer exists; change to another") from error
        model = self._model()
        top = self._catch(None, lambda: checkout.resolve(cwd / (self._text("repo") or ".")))
        option_values = precedence.gather(
            self.request.values, self.environ, cwd, model, top, self.own_settings
        )
        self.problems += option_values.problems
        self.warnings += option_values.warnings
        # A checkout may choose among the inventory's hosts, but names no host of its own.
        from_file = option_values.origin.get("host") == precedence.FROM_FILE
        named = None if from_file else option_values.values.get("host")
        inventory_path = self._inventory(cwd, named, option_values.hosts)
        look = None
        if self.resolve and (inventory_path is not None or self._text("inventory") is None):
            host = option_values.values.get("host")
            environ = {**self.environ, inventory.VARIABLE: ""}
            look = functools.cache(lambda: inventory.single_host(inventory_path, host, environ, cwd))
        secrets, problems = checks.secrets(option_values.values, self.environ)
        self.problems += problems
        from_file = top is not None and option_values.origin.get("output") == precedence.FROM_FILE
        text = str(option_values.values.get("output", options.default("output")))
        output, problems = checks.output(text, top if top is not None and from_file else cwd, from_file)
        self.problems += problems
        if top is not None:
            self.problems += checks.results_folders(option_values.values.get("artefacts", ()), top)
        arguments = self._catch((), self._arguments)
        described = self.pool.submit(checkout.describe, top, output) if top else None
        sources = self._repository(top, model, output, option_values.values)
        self.warnings += checks.oddities(option_values.values, secrets, arguments)
        if look and (self.problems or inventory_path is None):
            self._catch(None, look)
        if self.problems or top is None or model is None or described is None:
            raise BadInput(*dict.fromkeys(self.problems))
        identity, warnings = described.result()
        self.warnings += warnings
        spec = self._spec(option_values.values, model, identity, arguments, sources)
        self._raise_any(spec.problems())
        return Plan(
            spec=spec,
            repository=top,
            sources=sources,
            secrets=secrets,
            output=output,
            inventory=inventory_path,
            host=option_values.values.get("host"),
            look=look,
            detach=option_values.values.get("detach", False),
            patience_s=option_values.values.get("patience", options.default("patience")),
            flags=inventory.flags(
                inventory_path if self.request.get("inventory") is not None else None,
                self.request.get("host"),
            ),
            warnings=list(dict.fromkeys(self.warnings)),
            origin=option_values.origin,
        )

    def _catch(self, default: Any, act: Any) -> Any:
        try:
            return act()
        except BadInput as error:
            self.problems += error.problems
            return default

    @staticmethod
    def _raise_any(problems: list[str]) -> None:
        if problems:
            raise BadInput(*problems)

    def _text(self, name: str) -> str | None:
        value = self.request.get(name)
        return value if value is not None else self.environ.get(options.variable(name)) or None

    def _model(self) -> str | None:
        name = self._text("model") if self.request.get("model") is not None else None
        name = name if name is not None else self._text("model") or self.environ.get("MODEL")
        # A shell completes a folder with a slash.
        return name.rstrip("/") or name if name else None

    def _inventory(self, cwd: Path, host: str | None, own_hosts: tuple[str, ...]) -> str | None:
        if not self.resolve:
            return None
        path: str | None = self._catch(
            None, lambda: inventory.resolve(self.request.get("inventory"), self.environ, cwd, host, own_hosts)
        )
        return path

    def _arguments(self) -> tuple[str, ...]:
        from_flags = self.request.get("arguments")
        arguments = (
            precedence.split_arguments(self._text("arguments") or "")
            if from_flags is None
            else tuple(from_flags)
        )
        self._raise_any(checks.arguments(arguments))
        return arguments

    def _repository(
        self, top: Path | None, model: str | None, output: Path, chosen: Mapping[str, Any]
    ) -> Sources:
        if top is None:
            return Sources()
        problems, warnings = checkout.check_model(top, model)
        model_is_valid = not problems
        if model is not None and model_is_valid:
            from train_classifier.core import apt_file, requirements_file

            requirements = requirements_file.parse(top, model)
            problems += [printable(problem) for problem in requirements.problems]
            warnings += [printable(note) for note in requirements.notes]
            problems += [printable(problem) for problem in apt_file.parse(top, model).problems]
            # Without requirements, what the model imports is in the image alone.
            if not requirements.is_empty:
                self.required_pythons = checkout.required_pythons(top, model)
        # Walking through a home folder is useless when there is no model in it.
        is_repository = (
            model_is_valid
            or (top / ".git").exists()
            or (top / options.SETTINGS_FILE).exists()
            or checkout.models(top)
        )
        sources = Sources()
        if is_repository:
            sources = push_list.collect(
                top,
                model if model_is_valid else None,
                output,
                chosen.get("push_limit", options.default("push_limit")),
            )
        if model_is_valid and not sources.problems and model is not None:
            pushed = set(sources.paths)
            lists = [*requirements.files, f"{model}/apt-pkgs.txt"]
            problems += [
                f"{printable(name)} is needed for the job's environment and is left out of the push"
                for name in lists
                if (top / name).is_file() and os.fsencode(name) not in pushed
            ]
        self.problems += problems + sources.problems
        self.warnings += warnings + sources.warnings
        return sources

    def _spec(
        self,
        chosen: dict[str, Any],
        model: str,
        identity: job.Repository,
        arguments: tuple[str, ...],
        sources: Sources,
    ) -> JobSpec:
        fields = {field.name for field in dataclasses.fields(JobSpec)}
        spec_values = {options.BY_NAME[key].spec_field: value for key, value in chosen.items()}
        return JobSpec(
            id=job.new_job_id(),
            model=model,
            repository=identity,
            arguments=arguments,
            submitter=f"{checkout.user_name()}@{platform.node()}",
            source_files=sources.files,
            source_bytes=sources.bytes,
            required_pythons=self.required_pythons,
            **{key: value for key, value in spec_values.items() if key in fields},
        )
