"""The one table of options: what a training run can be told, and by which names.

The flags of `train`, the settings file and its JSON schema, the action's inputs, the variables of role training_job and
the tables of the docs are made from it (`scripts/options` writes those that are files). Bounds and defaults are nowhere
else. Standard library, Python 3.9, because it is part of the worker, which checks the same bounds.
"""

import dataclasses
import enum
import json
import os
from typing import Any, Optional, Union

#: A leap year.
YEAR_S = 366 * 86400.0
#: Largest accepted size: 1 PiB.
MOST_BYTES = 1 << 50
#: Most data folders of one job.
MOST_DATA = 100
#: The versions of Python 3 that a job can have.
PYTHONS = tuple(f"3.{minor}" for minor in range(8, 15))
#: Most folders of results of one job, beside artefacts/.
MOST_RESULTS = 20
#: Lifts a limit that a lower level sets: `--timeout none`.
NONE = "none"
#: Prefix of the environment variables that set options.
VARIABLE_PREFIX = "TRAIN_CLASSIFIER_"
#: The settings file, at the top of a repository.
SETTINGS_FILE = "train-classifier.toml"
#: The caller's own settings file, unless XDG_CONFIG_HOME names another folder.
OWN_SETTINGS = "~/.config/train-classifier/config.toml"
#: Set to ACTION in the action's step, its children and the workers that they call: the names that messages use.
READER = VARIABLE_PREFIX + "READER"
ACTION = "action"


class Kind(enum.Enum):
    """How a value is written; `request.flags` has the parser of each kind."""

    TEXT = "text"
    IMAGE = "an image reference"
    BOOLEAN = "true or false"
    CHOICE = "one of the words"
    GPUS = "a number of GPUs, or auto"
    PYTHON = "a version of Python"
    WHOLE = "a whole number"
    DECIMAL = "a number"
    SIZE = "bytes"
    VRAM = "MiB"
    DURATION = "seconds"
    JOB = "a job's id, or last"
    ENVIRONMENT = "a table of variables"
    NAMES = "a list of names"
    FOLDERS = "a list of folders of the host"
    PATHS = "a list of folders of the repository"
    FILES = "a list of files"
    WORDS = "a list of arguments"


#: Kinds of which several are given, each by its own flag or on its own line.
LISTS = (Kind.ENVIRONMENT, Kind.NAMES, Kind.FOLDERS, Kind.PATHS, Kind.FILES, Kind.WORDS)


class Checkout(enum.Enum):
    """What the settings file of a repository may set for an option.

    A checkout is untrusted: it may change only its own container.
    """

    ANY = "any value"
    #: A host by its name, no pattern.
    NAME = "the name of a host"
    #: A path in the repository, after links are resolved.
    INSIDE = "a path inside the repository"
    #: Folders that the host allows in data_roots of its host.json.
    LISTED = "folders that the host lists"
    #: Not more than the default, because the worker does this on the host, outside of the container.
    LOWER = "a lower limit"
    NOTHING = "nothing"


@dataclasses.dataclass(frozen=True)
class Option:
    """One option. What an entry leaves out follows from its name, or does not exist."""

    #: Its key in a settings file.
    name: str
    kind: Kind
    #: One or two sentences, for help texts, the schema and the docs.
    help: str
    #: Its value in a help text: `SIZE`. Empty for a switch.
    metavar: str = ""
    #: The default in the option's unit; None: unset.
    default: Any = None
    #: The default as a person reads it.
    default_text: str = ""
    #: Bounds in the option's unit, both included.
    least: Optional[float] = None
    most: Optional[float] = None
    #: The accepted words of a choice.
    words: tuple[str, ...] = ()
    #: `none` lifts the limit.
    lifted: bool = False
    #: Its field of the job's specification, where the name differs.
    field: str = ""
    #: Its flag, and a short one; empty: --NAME. Positional arguments have none.
    flags: tuple[str, ...] = ()
    positional: bool = False
    #: A settings file may set it; else only a flag or an environment variable.
    setting: bool = True
    checkout: Checkout = Checkout.ANY
    #: Its environment variable, without the prefix, where it is not the name.
    variable: str = ""
    #: The action's input, and what is different there.
    input: str = ""
    input_help: str = ""
    input_default: str = ""
    #: Its variable of role training_job, without the prefix, where it is not the name; None: none.
    role: Optional[str] = ""
    role_default: Union[str, list[str], dict[str, str]] = ""
    #: Only the action has it.
    action_only: bool = False

    @property
    def flag(self) -> str:
        """The command line's flag."""
        return self.flags[-1] if self.flags else "--" + self.name.replace("_", "-")

    @property
    def environment_variable(self) -> str:
        """The environment variable that sets it."""
        return VARIABLE_PREFIX + (self.variable or self.name.upper())

    @property
    def spec_field(self) -> str:
        """The field of the job's specification."""
        return self.field or self.name


OPTIONS = (
    Option("model", Kind.TEXT, "The model: a Python package of the repository, with `__main__.py`. Without it the variable MODEL counts.", "MODEL",
        positional=True, setting=False, input="model",
        input_help="The model: a folder of the repository with `__main__.py`. Also from `MODEL`, as callers of the original action set it."),
    Option("arguments", Kind.WORDS, "Arguments for the model itself.", "[-- ARGS…]",
        positional=True, flags=("--",), setting=False, input="args", role_default=[],
        input_help="Arguments for the model, one a line; nothing in them is split or expanded."),
    Option("repo", Kind.TEXT, "The repository.", "DIR", default_text="the current folder", setting=False,
        input="repo", input_help="Path of the repository, relative to the workspace.", input_default="the workspace",
        role="repository", role_default="{{ lookup('env', 'PWD') }}"),
    Option("inventory", Kind.TEXT, "Ansible inventory of the hosts.", "FILE", default_text="this machine",
        flags=("-i", "--inventory"), setting=False, input="inventory", input_default="the runner itself trains", role=None),
    Option("host", Kind.TEXT, "The host of the inventory to train on.", "HOST", default_text="the one that takes the job soonest",
        checkout=Checkout.NAME, input="host", input_default="the only one", role=None),
    Option("gpus", Kind.GPUS, "Number of GPUs, up to 64; 0 is the CPU; auto takes a GPU if the host has one.", "N|auto",
        default=1, default_text="1", least=0, most=64, input="gpus"),
    # A GTX 970, sold as 4 GB, reports 4041 MiB: a default of 4096 would refuse it.
    Option("min_vram", Kind.VRAM, "GPU memory that must be free on each card, as 8GiB; a plain number counts MiB.", "SIZE",
        default=4000, default_text="4000 MiB in all, free or not", least=0, most=1 << 24, field="min_vram_mib", input="min-vram"),
    Option("gpu_check", Kind.CHOICE, "How the GPU is checked before training: by the model's framework, by its device in the container, or not at all.",
        "framework|device|off", default_text="the host's", words=("framework", "device", "off")),
    Option("image", Kind.IMAGE, "Container image to train in.", "REF", default_text="the host's", input="image"),
    Option("environment_kind", Kind.CHOICE, "Python packages: over the image's own (image), without any of them (isolated), or isolated only "
        "where requirements.txt conflicts with the image (auto).", "auto|image|isolated", default="auto", default_text="auto",
        words=("auto", "image", "isolated"), flags=("--environment",), variable="ENVIRONMENT", input="environment"),
    Option("python", Kind.PYTHON, "Version of Python. Where the image has another one, the job runs in a plain image of that Python.",
        "3.N", default_text="requires-python or .python-version, else the image's", input="python"),
    Option("timeout", Kind.DURATION, "Time limit of the training alone, as 6h; none lifts it.", "TIME",
        default_text=NONE, least=1, most=YEAR_S, lifted=True, field="timeout_s", input="timeout"),
    Option("wait", Kind.DURATION, "Longest wait for a GPU, as 2h; none lifts it.", "TIME",
        default_text=NONE, least=0, most=YEAR_S, lifted=True, field="wait_s", input="wait"),
    Option("idle_warning", Kind.DURATION, "Report a GPU of the job that was not used for so long; none switches it off.", "TIME",
        default=1800.0, default_text="30m", least=1, most=YEAR_S, lifted=True, field="idle_warning_s", input="idle-warning"),
    Option("max_idle", Kind.DURATION, "Stop a job that used none of its GPUs for so long, as 2h.", "TIME",
        default_text=NONE, least=1, most=YEAR_S, lifted=True, field="max_idle_s", input="max-idle"),
    Option("grace", Kind.DURATION, "Time between SIGTERM and SIGKILL when a job is stopped, at most an hour.", "TIME",
        default=10.0, default_text="10s", least=0, most=3600, field="grace_s", input="cancel-grace",
        input_help="Time that the model has between SIGTERM and SIGKILL after a cancel; GitHub leaves 10 s for everything.", input_default="3s"),
    Option("lease", Kind.DURATION, "Stop the job when nobody followed it for so long.", "TIME",
        default_text="never", least=5, most=YEAR_S, field="lease_s", setting=False, input="lease",
        input_help="Stop the job when this action has not followed it for so long.", input_default="10m here, 1h over ssh"),
    Option("memory", Kind.SIZE, "Memory limit of the container, as 16GiB, at least 6MiB; none lifts it.", "SIZE",
        default_text=NONE, least=6 << 20, most=MOST_BYTES, lifted=True, field="memory_bytes"),
    Option("cpus", Kind.DECIMAL, "CPUs that the container may use, as 4 or 0.5; none lifts the limit.", "N",
        default_text=NONE, least=0.01, most=4096, lifted=True),
    Option("shm_size", Kind.SIZE, "Size of /dev/shm, which data loaders of PyTorch use.", "SIZE",
        default=2 << 30, default_text="2GiB", least=0, most=MOST_BYTES, field="shm_bytes"),
    Option("pids", Kind.WHOLE, "Most processes and threads in the container, at least 16.", "N",
        default=8192, default_text="8192", least=16, most=1 << 22),
    Option("network", Kind.CHOICE, "The container's network during training.", "full|none",
        default="full", default_text="full", words=("full", "none")),
    Option("environment", Kind.ENVIRONMENT, "A variable of the model; it is recorded with the job, so no secret.", "K=V",
        flags=("-e", "--env"), variable="ENV", input="env", role_default={},
        input_help="Variables for the model, one `NAME=value` a line."),
    Option("env_file", Kind.FILES, "A file of K=V lines that set variables of the model.", "FILE",
        setting=False, role="env_files", role_default=[]),
    Option("secrets", Kind.NAMES, "A variable of yours that the model gets too; its value is `***` in the log. Not in a repository's settings file.",
        "NAME", flags=("--secret",), checkout=Checkout.NOTHING, input="secrets", role_default=[],
        input_help="Names of variables of this step that the model gets too; their values are `***` in every log."),
    Option("data", Kind.FOLDERS, "A folder of the host, read-only at /data/NAME; a repository's settings file names only folders that the host lists (data_roots).",
        "HOST_DIR:NAME", most=MOST_DATA, checkout=Checkout.LISTED, input="data", role_default=[],
        input_help="Folders of the host that the model may read, one `/path:NAME` a line; they appear as `/data/NAME`."),
    Option("resume", Kind.JOB, "Start from a copy of that job's checkpoints: its whole id, or last, the newest of this model that has some.",
        "JOB|last", setting=False, input="resume"),
    Option("output", Kind.TEXT, "Where the archive goes; a missing folder is made. A repository's settings file names a path in the repository.", "FILE",
        default="artefacts.tar.gz", default_text="artefacts.tar.gz", flags=("-o", "--output"), checkout=Checkout.INSIDE,
        input="output", input_help="Where the archive goes, relative to the workspace."),
    Option("artefacts", Kind.PATHS, "A folder of the repository whose new files are results too, beside artefacts/, as outputs; also a file.", "DIR",
        most=MOST_RESULTS, input="artefacts", role_default=[],
        input_help="Folders of the repository whose new files are results too, beside artefacts/, one a line, as outputs; also files."),
    Option("allow_empty", Kind.BOOLEAN, "Accept a model that leaves no new results.", default=False),
    Option("push_limit", Kind.SIZE, "Most that is pushed.", "SIZE", default=5 << 30, default_text="5GiB", least=0, most=MOST_BYTES),
    Option("log_max", Kind.SIZE, "Largest log that is kept whole; of a longer one the beginning and the end are kept.", "SIZE",
        default=2 << 30, default_text="2GiB", least=4096, most=MOST_BYTES, field="log_max_bytes", checkout=Checkout.LOWER),
    Option("artefacts_max", Kind.SIZE, "Most of the results that is packed; more stays on the host until `fetch --max-size`.", "SIZE",
        default=50 << 30, default_text="50GiB", least=0, most=MOST_BYTES, field="artefacts_max_bytes", checkout=Checkout.LOWER),
    Option("partition", Kind.TEXT, "Slurm: the partition to run in.", "NAME", default_text="Slurm's", checkout=Checkout.NOTHING),
    Option("account", Kind.TEXT, "Slurm: the account that pays.", "NAME", default_text="Slurm's", checkout=Checkout.NOTHING),
    Option("qos", Kind.TEXT, "Slurm: the quality of service.", "NAME", default_text="Slurm's", checkout=Checkout.NOTHING),
    Option("constraint", Kind.TEXT, "Slurm: features that the node must have, as a100|h100.", "FEATURES", checkout=Checkout.NOTHING),
    Option("time", Kind.DURATION, "Slurm: time limit of the whole job, as 8h; the job ends in order shortly before it.", "TIME",
        default_text="that of --timeout and an hour around it, else the partition's", least=60, most=YEAR_S, field="slurm_time_s", checkout=Checkout.NOTHING),
    Option("nice", Kind.WHOLE, "Slurm: lowers the priority by so much.", "N", least=0, most=(1 << 31) - 4, checkout=Checkout.NOTHING),
    Option("dependency", Kind.TEXT, "Slurm: start after other jobs, as afterok:JOB; JOB is an id of ours or of Slurm.", "TYPE:JOB",
        setting=False),
    Option("requeue", Kind.BOOLEAN, "Slurm: start again from the job's own checkpoints when its node fails or another job takes its place.",
        default=False, checkout=Checkout.NOTHING),
    Option("nodes", Kind.WHOLE, "Slurm: nodes that train together, each with --gpus of its own; MASTER_ADDR, RANK and the like tell the model its place.", "N",
        default_text="1", least=1, most=1024, checkout=Checkout.NOTHING),
    Option("patience", Kind.DURATION, "Give up after so long without a connection; the job runs on.", "TIME",
        default=600.0, default_text="10m", least=0, most=YEAR_S, setting=False),
    Option("detach", Kind.BOOLEAN, "Print the job's id once it is safe on the host, and leave.", flags=("-d", "--detach"),
        default=False, setting=False),
    Option("slack_webhook", Kind.TEXT, "Slack webhook: `T…/B…/…` or its full address. Also from `SLACK_IDENTIFIER`.",
        setting=False, input="slack-webhook", role=None, action_only=True),
    Option("slack_notify", Kind.TEXT, "What to tell Slack beside failures and idle GPUs: `start`, `success`, `cancelled`, or `all`; `none` for nothing.",
        default_text="failures and idle GPUs", setting=False, input="slack-notify", role=None, action_only=True),
)  # fmt: skip
BY_NAME = {option.name: option for option in OPTIONS}
#: Options that only a submit host of Slurm understands.
SLURM = ("partition", "account", "qos", "constraint", "time", "nice", "dependency", "requeue", "nodes")
#: What a settings file may set, by key.
SETTINGS = {option.name: option for option in OPTIONS if option.setting}


def default(name: str) -> Any:
    """Return the default of an option, in its unit."""
    return BY_NAME[name].default


def is_for_action() -> bool:
    """Return whether the action's users read the messages of this process, else those of the command line."""
    return os.environ.get(READER) == ACTION


def show_option(name: str) -> str:
    """Return how the reader of a message sets an option: `--wait`, for the action `input wait`."""
    option = BY_NAME[name]
    if not is_for_action():
        return option.flag
    if option.input:
        return f"input {option.input}"
    if option.setting and option.checkout is not Checkout.LOWER:
        return f"{name} in {SETTINGS_FILE}"
    return option.environment_variable


def advice(table: str, name: str, value: Any, own_settings: str = "") -> str:
    """Return what to do with a line that a table of a repository's settings file may not hold.

    The action reads no settings file but the repository's.
    """
    line = f"the line '{name} = {json.dumps(value, ensure_ascii=False)}'"
    items = value if isinstance(value, (list, tuple)) else (value,)
    flags = " ".join(f"{show_option(name)} {item}" for item in items)
    if is_for_action():
        return f"remove {line} and give {flags}"
    # The environment of the caller is not known on a host.
    own_settings = own_settings or f"{OWN_SETTINGS} (or below $XDG_CONFIG_HOME)"
    return f"move {line} below [{table}] of your own settings, {own_settings}, or give {flags}"


def variable(name: str) -> str:
    """Return the environment variable that sets an option."""
    return BY_NAME[name].environment_variable
