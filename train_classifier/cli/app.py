"""The commands and their flags. Each command imports its code when it runs, so that `--help` is fast."""

import os
import shlex
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from train_classifier.core.errors import BadInput, ExitCode, TrainClassifierError
from train_classifier.core.text import quoted

#: Some versions of Typer include click, others depend on it.
_CLICK_ERROR = typer.BadParameter.__mro__[2]

HELP = ["-h", "--help"]
EXIT_CODES = """\b
Exit codes: 0 trained · 1 our own bug · 2 bad input · 3 host or engine not
ready · 4 training failed · 5 timed out · 6 cancelled · 7 trained, but
nothing new in artefacts/ or not delivered · 8 GPU not available or not
visible · 9 environment not built · 10 job lost · 11 out of touch, the job
still runs"""

app = typer.Typer(
    name="train-classifier",
    help="Train a repository's models on GPU hosts.\n\n"
    "\b\nExamples:\n"
    "  train-classifier train mnist           train ./mnist, bring artefacts.tar.gz\n"
    "  train-classifier train mnist --detach  print the job's id and leave\n"
    "  train-classifier attach last           pick it up again, from anywhere\n"
    "  train-classifier doctor -i hosts.yml   are the hosts ready, and what to do\n\n" + EXIT_CODES,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": HELP, "max_content_width": 80},
)


def _print_version(asked: bool) -> None:
    if asked:
        from train_classifier import __version__

        sys.stdout.write(f"train-classifier {__version__}\n")
        raise typer.Exit


@app.callback()
def _top(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit."),
    ] = False,
) -> None:
    pass


def _complete_model(ctx: typer.Context, incomplete: str) -> list[str]:
    """Complete the names of models in the repository."""
    folder = str((ctx.params or {}).get("repo") or ".")
    try:
        with os.scandir(folder) as entries:
            names = [
                entry.name
                for entry in entries
                if entry.name.startswith(incomplete)
                and entry.name.isidentifier()
                and Path(entry.path, "__main__.py").is_file()
            ]
    except OSError:
        return []
    return sorted(names)


Inventory = Annotated[
    str | None,
    typer.Option(
        "--inventory", "-i", metavar="FILE", help="Ansible inventory of the hosts. Without one: this machine."
    ),
]
HostName = Annotated[str | None, typer.Option("--host", metavar="HOST", help="A host of the inventory.")]
Json = Annotated[
    bool, typer.Option("--json", help="One JSON value on standard output, everything else on standard error.")
]
JobId = Annotated[str, typer.Argument(metavar="JOB", help="A job's id, a unique beginning of it, or last.")]
Output = Annotated[
    str | None,
    typer.Option(
        "--output", "-o", metavar="FILE", help="Where the archive goes. [default: artefacts.tar.gz]"
    ),
]


def _group(name: str, *flags: str, metavar: str | None = None, help: str) -> Any:
    return typer.Option(*flags, metavar=metavar, help=help, rich_help_panel=name)


@app.command(
    epilog="\b\nExamples:\n"
    "  train-classifier train mnist\n"
    "  train-classifier train mnist --gpus auto -- --epochs 3\n"
    "  train-classifier train yolo -i hosts.yml --host gpu-1 --timeout 6h --detach\n"
    "  HF_TOKEN=… train-classifier train mnist --secret HF_TOKEN --data /mnt/a:b\n"
)
def train(
    ctx: typer.Context,
    model: Annotated[
        str | None,
        typer.Argument(
            metavar="MODEL",
            help="The model: a Python package of the repository. [default: $MODEL]",
            autocompletion=_complete_model,
        ),
    ] = None,
    arguments: Annotated[
        list[str] | None,
        typer.Argument(metavar="[-- ARGS…]", help="Arguments for the model itself, after --."),
    ] = None,
    repo: Annotated[
        str | None, typer.Option("--repo", metavar="DIR", help="The repository. [default: .]")
    ] = None,
    inventory: Inventory = None,
    host: HostName = None,
    gpus: Annotated[
        str | None,
        typer.Option(
            "--gpus",
            metavar="N|auto",
            help="GPUs; 0 is the CPU; auto takes a GPU if there is one. [default: 1]",
        ),
    ] = None,
    min_vram: Annotated[
        str | None,
        typer.Option("--min-vram", metavar="SIZE", help="Memory that must be free on each GPU, as 8GiB."),
    ] = None,
    gpu_check: Annotated[
        str | None,
        typer.Option(
            "--gpu-check", metavar="framework|device|off", help="How far the GPU is proven before training."
        ),
    ] = None,
    image: Annotated[
        str | None, typer.Option("--image", metavar="REF", help="Container image to train in.")
    ] = None,
    timeout: Annotated[
        str | None, typer.Option("--timeout", metavar="TIME", help="Limit of the training, as 6h.")
    ] = None,
    wait: Annotated[
        str | None, typer.Option("--wait", metavar="TIME", help="Longest wait for a GPU, as 2h.")
    ] = None,
    grace: Annotated[
        str | None,
        typer.Option("--grace", metavar="TIME", help="Time between SIGTERM and SIGKILL. [default: 10s]"),
    ] = None,
    lease: Annotated[
        str | None,
        typer.Option(
            "--lease",
            metavar="TIME",
            help="Stop the job when nobody followed it for so long. [default: never]",
        ),
    ] = None,
    memory: Annotated[
        str | None, typer.Option("--memory", metavar="SIZE", help="Memory limit, as 16GiB.")
    ] = None,
    cpus: Annotated[str | None, typer.Option("--cpus", metavar="N", help="CPU limit, as 4 or 0.5.")] = None,
    shm_size: Annotated[
        str | None, typer.Option("--shm-size", metavar="SIZE", help="Size of /dev/shm. [default: 2GiB]")
    ] = None,
    pids: Annotated[
        str | None,
        typer.Option("--pids", metavar="N", help="Most processes and threads. [default: 8192]"),
    ] = None,
    network: Annotated[
        str | None,
        typer.Option("--network", metavar="full|none", help="The container's network. [default: full]"),
    ] = None,
    env: Annotated[
        list[str] | None,
        typer.Option("--env", "-e", metavar="K=V", help="Set a variable in the container."),
    ] = None,
    env_file: Annotated[
        list[str] | None,
        typer.Option("--env-file", metavar="FILE", help="Set variables from a file of K=V lines."),
    ] = None,
    secret: Annotated[
        list[str] | None,
        typer.Option(
            "--secret", metavar="NAME", help="Pass this variable of yours on, and mask its value in the log."
        ),
    ] = None,
    data: Annotated[
        list[str] | None,
        typer.Option(
            "--data", metavar="HOST_DIR:NAME", help="A folder of the host, read-only at /data/NAME."
        ),
    ] = None,
    resume: Annotated[
        str | None,
        typer.Option("--resume", metavar="JOB|last", help="Start from a copy of that job's checkpoints."),
    ] = None,
    output: Output = None,
    allow_empty: Annotated[
        bool | None, typer.Option("--allow-empty", help="Writing nothing into artefacts/ is no failure.")
    ] = None,
    push_limit: Annotated[
        str | None,
        typer.Option("--push-limit", metavar="SIZE", help="Most that is pushed. [default: 5GiB]"),
    ] = None,
    log_max: Annotated[
        str | None,
        typer.Option("--log-max", metavar="SIZE", help="Most of the log that is kept. [default: 2GiB]"),
    ] = None,
    artefacts_max: Annotated[
        str | None,
        typer.Option(
            "--artefacts-max",
            metavar="SIZE",
            help="Most of artefacts/ that is packed; more stays on the host. [default: 50GiB]",
        ),
    ] = None,
    patience: Annotated[
        str | None,
        typer.Option(
            "--patience",
            metavar="TIME",
            help="Give up after so long without a connection; the job runs on. [default: 10m]",
        ),
    ] = None,
    detach: Annotated[
        bool | None,
        typer.Option("--detach", "-d", help="Print the job's id once it is safe on the host, and leave."),
    ] = None,
    json_mode: Json = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what would be pushed and run; touch nothing.")
    ] = False,
) -> int:
    """Push the repository, train MODEL on a host, show its log, and bring artefacts.tar.gz.

    Standard output is the job's log, byte for byte; everything of ours is on standard error.
    Ctrl-C stops the job and collects what it left; a second one leaves at once. A hang-up stops nothing.
    """
    from train_classifier.cli import train as request

    given = {
        "gpus": gpus,
        "min_vram": min_vram,
        "gpu_check": gpu_check,
        "image": image,
        "timeout": timeout,
        "wait": wait,
        "grace": grace,
        "lease": lease,
        "memory": memory,
        "cpus": cpus,
        "shm_size": shm_size,
        "pids": pids,
        "network": network,
        "env": env,
        "env_file": env_file,
        "secret": secret,
        "data": data,
        "resume": resume,
        "output": output,
        "allow_empty": allow_empty,
        "push_limit": push_limit,
        "log_max": log_max,
        "artefacts_max": artefacts_max,
        "patience": patience,
        "detach": detach,
        "host": host,
        "inventory": inventory,
    }
    if arguments:
        words = shlex.join(arguments)
        raise BadInput(
            f"unexpected {quoted(words)}: one run trains one model; the model's own arguments go after --",
            hint=f"train-classifier train {shlex.quote(str(model))} -- {words}",
        )
    return request.train(model, ctx.obj, repo, given, json_mode=json_mode, dry_run=dry_run)


@app.command(name="list", epilog="\b\nExample:\n  train-classifier list --inventory hosts.yml --all --json\n")
def list_jobs(
    inventory: Inventory = None,
    host: HostName = None,
    everything: Annotated[
        bool, typer.Option("--all", "-a", help="Every job there; else those at work and the newest twenty.")
    ] = False,
    json_mode: Json = False,
) -> int:
    """List jobs of all hosts of the inventory."""
    from train_classifier.cli import jobs

    console = _console(json_mode)
    return jobs.show_list(_hosts(inventory, host), everything, console)


@app.command(epilog="\b\nExample:\n  train-classifier status last\n")
def status(job: JobId, inventory: Inventory = None, host: HostName = None, json_mode: Json = False) -> int:
    """Show a job's state, phases and result."""
    from train_classifier.cli import jobs

    return jobs.show_status(_hosts(inventory, host), job, _console(json_mode))


@app.command(epilog="\b\nExample:\n  train-classifier logs -f last | grep loss\n")
def logs(
    job: JobId,
    follow: Annotated[
        bool, typer.Option("--follow", "-f", help="Until the job ends; Ctrl-C only leaves.")
    ] = False,
    inventory: Inventory = None,
    host: HostName = None,
) -> int:
    """Write a job's log to standard output: its bytes, nothing added."""
    from train_classifier.cli import jobs
    from train_classifier.cli.console import Console

    try:
        patience = _patience()
        return jobs.show_logs(_hosts(inventory, host), job, follow, patience, Console(quiet=True))
    except KeyboardInterrupt:
        return ExitCode.OUT_OF_TOUCH if follow else ExitCode.CANCELLED


@app.command(epilog="\b\nExample:\n  train-classifier attach last --output results.tar.gz\n")
def attach(
    job: JobId,
    output: Output = None,
    inventory: Inventory = None,
    host: HostName = None,
    json_mode: Json = False,
) -> int:
    """Follow a job from its first byte, fetch its artefacts, and return its exit code. Ctrl-C only leaves."""
    from train_classifier.cli import jobs

    path, patience, console = jobs.output_path(output), _patience(), _console(json_mode)
    run, code = jobs.attach(_hosts(inventory, host), job, path, patience, console)
    jobs.finish_attach(run, code, console)
    return code


@app.command(epilog="\b\nExample:\n  train-classifier fetch 20260131-120000-0123abcd -o results.tar.gz\n")
def fetch(
    job: JobId,
    output: Output = None,
    max_size: Annotated[
        str | None,
        typer.Option(
            "--max-size",
            metavar="SIZE",
            help="Pack artefacts that stayed on the host up to this size, instead of the job's own limit.",
        ),
    ] = None,
    inventory: Inventory = None,
    host: HostName = None,
    json_mode: Json = False,
) -> int:
    """Bring the archive of a finished job; what stayed on the host is packed first."""
    from train_classifier.cli import jobs
    from train_classifier.request import units

    path, patience = jobs.output_path(output), _patience()
    (most,) = _parsed(("--max-size", units.size, max_size))
    return jobs.fetch(_hosts(inventory, host), job, path, most, patience, _console(json_mode))


@app.command(epilog="\b\nExample:\n  train-classifier cancel last\n")
def cancel(job: JobId, inventory: Inventory = None, host: HostName = None, json_mode: Json = False) -> int:
    """Stop a job. What it wrote so far is packed and can be fetched."""
    from train_classifier.cli import jobs

    return jobs.cancel(_hosts(inventory, host), job, _console(json_mode))


@app.command(epilog="\b\nExample:\n  train-classifier clean --older 7d --keep-environments 20GiB --dry-run\n")
def clean(
    older: Annotated[
        str | None,
        typer.Option("--older", metavar="TIME", help="Remove finished jobs older than this, as 7d."),
    ] = None,
    keep_environments: Annotated[
        str | None,
        typer.Option(
            "--keep-environments",
            metavar="SIZE",
            help="Most that environments and caches may keep, as 20GiB.",
        ),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would go.")] = False,
    inventory: Inventory = None,
    host: HostName = None,
    json_mode: Json = False,
) -> int:
    """Remove what finished and dead jobs left on the hosts. Only ever touches what is ours."""
    from train_classifier.cli import jobs
    from train_classifier.request import units

    seconds, keep = _parsed(
        ("--older", units.duration, older), ("--keep-environments", units.size, keep_environments)
    )
    return jobs.clean(_hosts(inventory, host), seconds, keep, dry_run, _console(json_mode))


@app.command(epilog="\b\nExample:\n  train-classifier doctor --inventory hosts.yml\n")
def doctor(
    gpus: Annotated[
        str | None, typer.Option("--gpus", metavar="N|auto", help="GPUs that a job would want.")
    ] = None,
    inventory: Inventory = None,
    host: HostName = None,
    json_mode: Json = False,
) -> int:
    """Is a host ready: each check, its result, and what to do about it."""
    from train_classifier.cli import doctor as doctors
    from train_classifier.request import flags as options

    (wanted,) = _parsed(("--gpus", options.gpus, gpus))
    return doctors.doctor(_hosts(inventory, host), 1 if wanted is None else wanted, _console(json_mode))


@app.command(
    context_settings={"ignore_unknown_options": True},
    epilog="\b\nExample:\n  train-classifier provision -i hosts.yml --host gpu-1 -- --check --diff\n",
)
def provision(
    ctx: typer.Context,
    arguments: Annotated[
        list[str] | None,
        typer.Argument(metavar="[-- ARGS…]", help="Arguments for ansible-playbook, after --."),
    ] = None,
    inventory: Inventory = None,
    host: HostName = None,
) -> int:
    """Make the inventory's hosts training servers: run site.yml on them."""
    from train_classifier.cli import provision as provisioning

    return provisioning.provision(inventory, host, [*(arguments or ()), *(ctx.obj or ())])


def _console(json_mode: bool) -> Any:
    from train_classifier.cli.console import Console

    return Console(json_mode=json_mode)


def _hosts(inventory: str | None, host: str | None) -> list[Any]:
    from train_classifier.cli.hosts import hosts

    return hosts(inventory, host)


def _patience() -> float:
    from train_classifier.controller.follow import PATIENCE_S
    from train_classifier.request import flags as options

    variable = options.variable_of("patience")
    (found,) = _parsed((variable, options.REQUEST["patience"], os.environ.get(variable) or None))
    return PATIENCE_S if found is None else float(found)


def _parsed(*wanted: tuple[str, Callable[[Any], Any], str | None]) -> list[Any]:
    """Return the values of (name, parser, text), None where not given. Raises BadInput with every problem."""
    found, problems = [], []
    for name, parse, text in wanted:
        try:
            found.append(None if text is None else parse(text))
        except ValueError as error:
            problems.append(f"{name}: {error}")
    if problems:
        raise BadInput(*problems)
    return found


def run(arguments: Sequence[str]) -> int:
    """Run the command line and return the exit code. Never lets a traceback through."""
    ours, theirs = _split(arguments)
    json_mode = "--json" in ours
    command = _light(typer.main.get_command(app))
    try:
        status = command.main(ours, prog_name="train-classifier", standalone_mode=False, obj=theirs)
        # Typer's own number for Ctrl-C.
        return ExitCode.CANCELLED if status == 130 else int(status or 0)
    except TrainClassifierError as error:
        return _fail(error, json_mode)
    except (KeyboardInterrupt, typer.Abort):
        sys.stderr.write("\n")
        return ExitCode.CANCELLED
    except typer.Exit as leave:
        return leave.exit_code
    except Exception as error:
        if isinstance(error, _CLICK_ERROR):
            words = str(error.format_message())  # type: ignore[attr-defined]
            context = getattr(error, "ctx", None)
            if type(error).__name__ == "NoArgsIsHelpError":
                sys.stdout.write(f"{words}\n")
                return ExitCode.BAD_INPUT
            hint = f"{context.command_path} --help" if context is not None else None
            command_name = context.info_name if context is not None else None
            if (type(error).__name__, command_name) == ("NoSuchOption", "train"):
                hint = f"The model's own flags go after --: train-classifier train MODEL -- …; ours: {hint}"
            return _fail(BadInput(words, hint=hint), json_mode)
        from train_classifier.controller.temp_files import write_crash_file

        place = write_crash_file(traceback.format_exc())
        reason = f"A bug in train-classifier ({type(error).__name__})."
        return _fail(TrainClassifierError(reason, f"Please report it with {place}"), json_mode)


class _AsGiven:
    """Returns texts and flags unchanged. Typer would load pydantic for it, half a second at each start."""

    def coerce(self, value: Any, **_: Any) -> Any:
        """Return the value."""
        return list(value) if isinstance(value, tuple) else value


def _light(command: Any) -> Any:
    """Let every parameter keep its raw value, because our own parsers report all problems together."""
    for each in (command, *getattr(command, "commands", {}).values()):
        for parameter in each.params:
            parameter._runtime_param = _AsGiven()
        # Typer creates the help flag at every parse, unless it exists already.
        helper = (
            each.get_help_option(typer.Context(each, help_option_names=HELP))
            if hasattr(each, "get_help_option")
            else None
        )
        if helper is not None:
            helper._runtime_param = _AsGiven()
    return command


def _split(arguments: Sequence[str]) -> tuple[list[str], list[str] | None]:
    """Return our arguments, and those after the first -- of a command that passes them on (None without --).

    Our parser would remove the -- and use the first of them as the model when MODEL is in the environment.
    """
    words = list(arguments)
    command = next((word for word in words if not word.startswith("-")), None)
    if "--" not in words or command not in ("train", "provision"):
        return words, None
    place = words.index("--")
    return words[:place], words[place + 1 :]


def _fail(error: TrainClassifierError, json_mode: bool) -> int:
    from train_classifier.cli.console import Console
    from train_classifier.cli.result_text import error_json

    console = Console(json_mode=json_mode)
    if json_mode:
        console.out(error_json(error))
    console.error(error)
    return int(error.code)
