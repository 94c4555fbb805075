"""The command line: its commands, each imported when it is used, and how it fails."""

import builtins
import contextlib
import importlib
import sys
from collections.abc import Sequence

import rich_click as click

from train_classifier.core.errors import BadInput, ExitCode, TrainClassifierError
from train_classifier.core.text import nearest

# A blank line between paragraphs, each of which begins with \b.
click.rich_click.PADDING_HELPTEXT_FIRST_LINE = (0, 0, 1, 0)

#: The folder of commands/ that a command's module is in, where it is not commands/ itself.
FOLDERS = {
    **dict.fromkeys(("list", "status", "logs", "attach", "fetch", "cancel", "rerun"), "jobs"),
    **dict.fromkeys(("report", "history", "compare"), "results"),
    **dict.fromkeys(("exec", "shell", "forward", "board"), "inside"),
}
COMMANDS = (
    *("init", "train", "list", "status", "logs", "report", "attach", "fetch", "cancel", "rerun", "history"),
    *("compare", "exec", "shell", "forward", "board", "clean", "top", "doctor", "hosts", "provision"),
)
EXIT_CODES = """\b
Exit codes: 0 trained · 1 our own bug · 2 bad input · 3 host or engine not
ready · 4 training failed · 5 timed out · 6 cancelled · 7 trained, but
nothing new in artefacts/ or not delivered · 8 GPU not available or not
visible · 9 environment not built · 10 job lost · 11 out of touch, the job
still runs"""


class Commands(click.RichGroup):
    """The commands. Each has a module, and imports what it needs when it runs, so that `--help` is fast."""

    def list_commands(self, _: click.Context) -> list[str]:
        """Return the names, in the order of the help text."""
        return list(COMMANDS)

    def get_command(self, _: click.Context, name: str) -> click.Command | None:
        """Return the command of this name; None if there is none."""
        if name not in COMMANDS:
            return None
        folder = f"{FOLDERS[name]}." if name in FOLDERS else ""
        module = importlib.import_module(f"train_classifier.cli.commands.{folder}{name}")
        command: click.Command = getattr(module, f"{name}_" if hasattr(builtins, name) else name)
        return command

    def resolve_command(
        self, context: click.Context, words: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Return the command that is called. Raises UsageError with the nearest name."""
        near = nearest(words[0], COMMANDS) if words[0] != "help" else "--help"
        if near and words[0] not in COMMANDS:
            raise click.UsageError(f"No such command '{words[0]}'. Did you mean '{near}'?", context)
        return super().resolve_command(context, words)


def _print_version(context: click.Context, _: click.Parameter, is_set: bool) -> None:
    if is_set:
        from train_classifier import __version__

        sys.stdout.write(f"train-classifier {__version__}\n")
        context.exit()


@click.group(
    cls=Commands,
    name="train-classifier",
    no_args_is_help=True,
    context_settings={
        "help_option_names": ["-h", "--help"],
        "max_content_width": 80,
    },
)
@click.option(
    "--version",
    is_flag=True,
    callback=_print_version,
    expose_value=False,
    is_eager=True,
    help="Print the version and exit.",
)
def app() -> None:
    """Train a repository's models on GPU hosts."""


app.help = (
    "Train a repository's models on GPU hosts.\n\n"
    "\b\nExamples:\n"
    "  train-classifier train mnist           train ./mnist, bring artefacts.tar.gz\n"
    "  train-classifier train mnist --detach  print the job's id and leave\n"
    "  train-classifier attach last           pick it up again, from anywhere\n"
    "  train-classifier doctor -i hosts.yml   are the hosts ready, and what to do\n\n" + EXIT_CODES
)


def run(arguments: Sequence[str]) -> int:
    """Run the command line and return the exit code. Never lets a traceback through."""
    own, passed = _split(arguments)
    json_mode = "--json" in own
    try:
        return int(app.main(own, prog_name="train-classifier", standalone_mode=False, obj=passed) or 0)
    except TrainClassifierError as error:
        return _fail(error, json_mode)
    except (KeyboardInterrupt, click.Abort):
        # Below the ^C of the terminal.
        sys.stderr.write("\n" if sys.stderr is not None and sys.stderr.isatty() else "")
        return ExitCode.CANCELLED
    except click.ClickException as error:
        return _fail(_bad_use(error), json_mode)
    except Exception as error:
        from train_classifier.controller.temp_files import bug_error

        return _fail(bug_error(error), json_mode)


def _bad_use(error: click.ClickException) -> BadInput:
    context = getattr(error, "ctx", None)
    hint = f"{context.command_path} --help" if context is not None else None
    if isinstance(error, click.NoSuchOption):
        near = nearest(error.option_name, error.possibilities or ())
        error = click.NoSuchOption(error.option_name, error.message, [near] if near else None, context)
    if isinstance(error, click.MissingParameter) and error.param is not None and error.param.name == "job":
        hint = f"JOB is a job's id, a unique beginning of it, or last; {hint}"
    if context is not None and context.info_name == "exec":
        hint = f"The command goes after --: train-classifier exec JOB -- COMMAND; {hint}"
    if isinstance(error, click.NoSuchOption) and context is not None and context.info_name == "train":
        hint = f"The model's own flags go after --: train-classifier train MODEL -- …; ours: {hint}"
    return BadInput(str(error.format_message()), hint=hint)


def _split(arguments: Sequence[str]) -> tuple[list[str], list[str] | None]:
    """Return our arguments, and those after the first -- of a command that passes them on (None without --).

    Our parser would remove the -- and use the first of them as the model when MODEL is in the environment.
    """
    words = list(arguments)
    command = next((word for word in words if not word.startswith("-")), None)
    if "--" not in words or command not in ("train", "provision", "exec"):
        return words, None
    place = words.index("--")
    return words[:place], words[place + 1 :]


def _fail(error: TrainClassifierError, json_mode: bool) -> int:
    from train_classifier.cli.console import Console
    from train_classifier.cli.result_text import error_json

    console = Console(json_mode=json_mode)
    if json_mode:
        # Where its disk is full, standard error still says why.
        with contextlib.suppress(TrainClassifierError):
            console.out(error_json(error))
    console.error(error)
    return int(error.code)
