"""Builds the Plan of one run from flags, environment and settings, or reports all problems together."""

import concurrent.futures
import dataclasses
import functools
import os
import platform
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from train_classifier.ansible_bridge import inventory
from train_classifier.ansible_bridge.inventory import Target
from train_classifier.core import job
from train_classifier.core.errors import BadInput
from train_classifier.core.job import JobSpec
from train_classifier.core.text import printable
from train_classifier.request import checkout, checks, precedence, push_list
from train_classifier.request import flags as options
from train_classifier.request.push_list import Sources

if TYPE_CHECKING:
    from train_classifier.controller.steps import Order

_FIELDS = {
    "timeout": "timeout_s",
    "wait": "wait_s",
    "grace": "grace_s",
    "lease": "lease_s",
    "min_vram": "min_vram_mib",
    "memory": "memory_bytes",
    "shm_size": "shm_bytes",
    "log_max": "log_max_bytes",
    "artefacts_max": "artefacts_max_bytes",
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainRequest:
    """The caller's values, unparsed: None means not set. Sizes, durations and numbers may be text."""

    model: str | None = None
    arguments: Sequence[str] | None = None
    repo: str | None = None
    inventory: str | None = None
    host: str | None = None
    image: str | None = None
    gpus: str | int | None = None
    min_vram: str | int | None = None
    gpu_check: str | None = None
    timeout: str | float | None = None
    wait: str | float | None = None
    grace: str | float | None = None
    lease: str | float | None = None
    patience: str | float | None = None
    memory: str | int | None = None
    cpus: str | float | None = None
    shm_size: str | int | None = None
    pids: str | int | None = None
    network: str | None = None
    #: K=V, or K for the caller's own value; a table is accepted too.
    environment: Sequence[str] | Mapping[str, str] | None = None
    env_file: Sequence[str] | None = None
    secrets: Sequence[str] | None = None
    #: HOST_DIR:NAME
    data: Sequence[str] | None = None
    resume: str | None = None
    output: str | None = None
    allow_empty: bool | str | None = None
    log_max: str | int | None = None
    artefacts_max: str | int | None = None
    push_limit: str | int | None = None
    detach: bool | str | None = None
    #: The folder that relative paths start from; None: this process's.
    cwd: Path | None = None


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
    #: Seconds without a connection before this side gives up; None: the default.
    patience_s: float | None
    #: The flags that another command needs to find the host again, with a space before each.
    flags: str
    warnings: list[str]
    #: The origin of each value that was set, by its key.
    origin: dict[str, str]

    @property
    def target(self) -> Target | None:
        """The one host; asks Ansible, which takes a second. Raises BadInput as `inventory.one` does."""
        return self.look() if self.look else None

    def order(self) -> "Order":
        """Return the plan in the form that the training functions use, for any host."""
        from train_classifier.controller.steps import Order, pack_names

        order = Order(
            spec=self.spec,
            tree=str(self.repository),
            files=pack_names(self.sources.paths),
            output=str(self.output),
            fingerprint=push_list.fingerprint(self.repository, self.sources.paths),
            flags=self.flags,
            detach=self.detach,
        )
        return order if self.patience_s is None else dataclasses.replace(order, patience_s=self.patience_s)


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

    def plan(self) -> Plan:
        """Return the plan, or raise BadInput."""
        try:
            cwd = (self.request.cwd or Path.cwd()).absolute()
        except FileNotFoundError as error:
            raise BadInput("the current folder no longer exists; change to another") from error
        model = self._model()
        top = self._catch(None, lambda: checkout.resolve(cwd / (self._text("repo") or ".")))
        given = precedence.gather(self.request, self.environ, cwd, model, top, self.own_settings)
        self.problems += given.problems
        self.warnings += given.warnings
        where = self._inventory(cwd)
        look = None
        if self.resolve and (where is not None or self._text("inventory") is None):
            host = given.values.get("host")
            environ = {**self.environ, inventory.VARIABLE: ""}
            look = functools.cache(lambda: inventory.one(where, host, environ, cwd))
        secrets, problems = checks.secrets(given.values, self.environ)
        self.problems += problems
        from_file = top is not None and given.origin.get("output") == precedence.FROM_FILE
        text = str(given.values.get("output", options.OUTPUT))
        output, problems = checks.output(text, top if top is not None and from_file else cwd, from_file)
        self.problems += problems
        arguments = self._catch((), self._arguments)
        described = self.pool.submit(checkout.describe, top, output) if top else None
        found = self._repository(top, model, output, given.values)
        self.warnings += checks.oddities(given.values, secrets, arguments)
        if look and (self.problems or where is None):
            self._catch(None, look)
        if self.problems or top is None or model is None or described is None:
            raise BadInput(*dict.fromkeys(self.problems))
        identity, warnings = described.result()
        self.warnings += warnings
        spec = self._spec(given.values, model, identity, arguments, found)
        self._raise_any(spec.problems())
        return Plan(
            spec=spec,
            repository=top,
            sources=found,
            secrets=secrets,
            output=output,
            inventory=where,
            host=given.values.get("host"),
            look=look,
            detach=given.values.get("detach", False),
            patience_s=given.values.get("patience"),
            flags=inventory.flags(where if self.request.inventory is not None else None, self.request.host),
            warnings=list(dict.fromkeys(self.warnings)),
            origin=given.origin,
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
        given = getattr(self.request, name)
        return given if given is not None else self.environ.get(options.variable_of(name)) or None

    def _model(self) -> str | None:
        name = self._text("model") if self.request.model is not None else None
        name = name if name is not None else self._text("model") or self.environ.get("MODEL")
        # A shell completes a folder with a slash.
        return name.rstrip("/") or name if name else None

    def _inventory(self, cwd: Path) -> str | None:
        if not self.resolve:
            return None
        found: str | None = self._catch(
            None, lambda: inventory.source(self.request.inventory, self.environ, cwd)
        )
        return found

    def _arguments(self) -> tuple[str, ...]:
        given = self.request.arguments
        found = precedence.split_arguments(self._text("arguments") or "") if given is None else tuple(given)
        self._raise_any(checks.arguments(found))
        return found

    def _repository(
        self, top: Path | None, model: str | None, output: Path, chosen: Mapping[str, Any]
    ) -> Sources:
        if top is None:
            return Sources()
        problems, warnings = checkout.check_model(top, model)
        good = not problems
        if model is not None and good:
            from train_classifier.core import apt_file, requirements_file

            wanted = requirements_file.parse(top, model)
            problems += [printable(problem) for problem in wanted.problems]
            problems += [printable(problem) for problem in apt_file.parse(top, model).problems]
        # Walking through a home folder is useless when there is no model in it.
        known = (
            good or (top / ".git").exists() or (top / options.SETTINGS_FILE).exists() or checkout.models(top)
        )
        found = Sources()
        if known:
            found = push_list.collect(
                top, model if good else None, output, chosen.get("push_limit", push_list.DEFAULT_PUSH_LIMIT)
            )
        if good and not found.problems and model is not None:
            pushed = set(found.paths)
            lists = [*wanted.files, f"{model}/apt-pkgs.txt"]
            problems += [
                f"{printable(name)} is needed for the job's environment and is left out of the push"
                for name in lists
                if (top / name).is_file() and os.fsencode(name) not in pushed
            ]
        self.problems += problems + found.problems
        self.warnings += warnings + found.warnings
        return found

    @staticmethod
    def _spec(
        chosen: dict[str, Any],
        model: str,
        identity: job.Repository,
        arguments: tuple[str, ...],
        found: Sources,
    ) -> JobSpec:
        fields = {field.name for field in dataclasses.fields(JobSpec)}
        wanted = {_FIELDS.get(key, key): value for key, value in chosen.items()}
        return JobSpec(
            id=job.new_job_id(),
            model=model,
            repository=identity,
            arguments=arguments,
            submitter=f"{checkout.user_name()}@{platform.node()}",
            source_files=found.files,
            source_bytes=found.bytes,
            **{key: value for key, value in wanted.items() if key in fields},
        )
