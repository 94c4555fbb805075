"""The checkout: its path, its state in git, and whether its model can be run."""

import contextlib
import hashlib
import os
import platform
import pwd
import re
import sys
from pathlib import Path

from train_classifier.core import job, options, regular_file
from train_classifier.core.errors import BadInput
from train_classifier.core.options import PYTHONS, show_option
from train_classifier.core.project import git_version, project_file
from train_classifier.core.text import nearest, printable, quoted
from train_classifier.request import git_state

#: Folders of generated content: never pushed, never a model.
GENERATED = (".git", ".venv", "venv", "node_modules", "__pycache__")
#: Where repositories without a model have their training, and scripts whose names need no quotation.
USUAL_SCRIPTS = ("train.py", "main.py", "src/train.py", "scripts/train.py")
SCRIPT = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_./-]{0,99}\.(?:py|ipynb)")

#: Most that is read of files that say for which Python a repository is.
_MOST_BYTES = project_file.MOST_BYTES
#: A clause of `requires-python`, or of Poetry's `python`.
_BETWEEN_CLAUSES = re.compile(r",|(?<=[\w*])\s+(?=[<>=!~^v\d])")
#: https://user:token@host:1/path, ssh://git@host:22/path and git@host:path.
_REMOTE = re.compile(
    r"(?P<scheme>https|ssh|git\+ssh)://(?:[^/@\s]*@)?(?P<host>[\w.-]{1,253})(?P<port>:[0-9]{1,5})?/(?P<path>[^?#\s]{1,1000})\Z"
    r"|(?:[\w.-]{1,100}@)?(?P<short_host>[\w.-]{1,253}):(?!/)(?P<short_path>[^?#\s]{1,1000})\Z",
    re.ASCII,
)
_PYTHON_CLAUSE = re.compile(r"\s*(\^|~=|~|===?|!=|<=|>=|<|>)?\s*v?(\d+)(?:\.(\d+|\*))?(?:\.(\d+|\*))?[^,]*\Z")


def resolve(folder: Path) -> Path:
    """Return the real path of the checkout. Raises BadInput when it is not a checkout."""
    name = f"{show_option('repo')} {quoted(str(folder))}"
    try:
        path = folder.resolve(strict=True)
    except FileNotFoundError as error:
        raise BadInput(f"{name}: no such folder") from error
    except (OSError, RuntimeError, ValueError) as error:
        raise BadInput(f"{name}: {getattr(error, 'strerror', None) or error}") from error
    if not path.is_dir():
        raise BadInput(f"{name} is not a folder")
    if path == Path("/"):
        raise BadInput(f"{name} is this machine's whole file system; name the folder that holds the model")
    if not os.access(path, os.R_OK | os.X_OK):
        raise BadInput(f"{name}: this user may not read it")
    return path


def user_name() -> str:
    """Return the login name of this process's user; the number if there is no name."""
    try:
        return pwd.getpwuid(os.geteuid()).pw_name
    except KeyError:
        return str(os.geteuid())


def describe(repository: Path, output: Path | None = None) -> tuple[job.Repository, list[str]]:
    """Return the identity of the checkout, and warnings. Archives of runs do not make it dirty.

    The key names this folder for this user on this controller, and in a workflow also the repository at
    GitHub: one mirror and one cache on the host for each. Nothing in the checkout can change the key.
    """
    identity = "\0".join((platform.node(), os.fsdecode(repository), user_name()))
    if os.environ.get("GITHUB_ACTIONS") == "true":
        # A runner reuses the folder of one repository for the next repository of the same name.
        identity += "\0" + os.environ.get("GITHUB_REPOSITORY", "")
    key = hashlib.sha256(identity.encode("utf-8", "surrogateescape")).hexdigest()[:16]
    name = printable(repository.name)
    if not git_state.is_checkout(repository):
        return job.Repository(name, key), []
    commit = description = address = None
    try:
        with git_state.opened(repository) as git:
            commit = git.commit()
            address = web_address(git.origin)
            if git_version.is_used(repository):
                with contextlib.suppress(git_state.GitSilent):
                    description = git.description()
            results = (repository / options.default("output"), output)
            dirty = git.changed(
                lambda path: (
                    path == repository / "artefacts" or any(_is_archive(path, end) for end in results)
                )
            )
    except git_state.GitSilent as silent:
        what = "the commit of this checkout"
        if commit is not None:
            what = f"whether this checkout differs from {commit[:12]}"
        return job.Repository(name, key, commit, description=description, address=address), [
            f"{what} is not recorded: {silent}"
        ]
    warnings = []
    if dirty is None:
        warnings.append(
            f"whether this checkout differs from {commit[:12]} is not recorded: "
            "files seem to be changed that a filter of git (such as LFS) writes, and no filter is run"
        )
    return job.Repository(name, key, commit, dirty, description, address), warnings


def web_address(origin: str) -> str | None:
    """Return a remote's address in a browser, without its login; None for a path and for plain http."""
    match = _REMOTE.match(origin)
    if not match:
        return None
    host = match["host"] or match["short_host"]
    if match["scheme"] == "https":
        host += match["port"] or ""
    path = (match["path"] or match["short_path"]).strip("/").removesuffix(".git")
    address = f"https://{host}/{path}"
    return address if job.WEB_ADDRESS.match(address) else None


def _is_archive(path: Path, output: Path | None) -> bool:
    return (
        output is not None
        and path.parent == output.parent
        and bool(job.archive_name_pattern(output.name).fullmatch(path.name))
    )


def models(repository: Path) -> list[str]:
    """Return the models of a checkout: folders at its top with a `__main__.py`."""
    names = []
    try:
        with os.scandir(repository) as entries:
            for entry in entries:
                if job.MODEL.match(entry.name) and entry.name not in GENERATED:
                    main = Path(entry.path, "__main__.py")
                    if main.is_file():
                        names.append(entry.name)
    except OSError:
        return []
    return sorted(names)


def check_model(repository: Path, name: str | None) -> tuple[list[str], list[str]]:
    """Return problems and warnings of a model's name and of its folder, each a sentence."""
    model_names = models(repository)
    there = (
        f"; models here: {', '.join(model_names[:10])}{', …' if len(model_names) > 10 else ''}"
        if model_names
        else ""
    )
    if name is None or not name.strip():
        return [f"no model is named: give its name, or set MODEL{there or f'; {_no_models(repository)}'}"], []
    if not job.MODEL.match(name):
        return [_bad_name(repository, name, model_names)], []
    if name not in {entry.name for entry in repository.iterdir()}:
        return [_missing(repository, name, model_names)], []
    folder = repository / name
    real = Path(os.path.realpath(folder))
    main = folder / "__main__.py"
    if not folder.exists():
        problem = f"model '{name}' is a symbolic link that leads nowhere"
    elif not _inside(repository, real):
        problem = (
            f"model '{name}' is a symbolic link out of the repository, to {printable(str(real))}; copy it in"
        )
    elif not folder.is_dir():
        problem = f"model '{name}' is a file; a model is a folder with a __main__.py"
    elif name in GENERATED:
        problem = f"model '{name}' has the name of a folder that is never pushed; rename it"
    elif not os.access(folder, os.R_OK | os.X_OK):
        problem = f"model '{name}': this user may not read its folder"
    elif not os.path.lexists(main):
        problem = f"model '{name}' has no __main__.py, which `python -m {name}` runs"
        script = _script_of(repository, folder)
        problem += f": {_way_out(script)}" if script else there
    elif not main.exists():
        problem = f"{name}/__main__.py is a symbolic link that leads nowhere"
    elif not _inside(repository, Path(os.path.realpath(main))):
        problem = f"{name}/__main__.py is a symbolic link out of the repository; copy it in"
    elif not main.is_file():
        problem = f"{name}/__main__.py is not a file"
    else:
        return [], _odd(folder, name)
    return [problem], []


def _odd(folder: Path, name: str) -> list[str]:
    warnings = []
    if not (folder / "__init__.py").exists():
        warnings.append(
            f"{name}/__init__.py is missing: {name} runs as a namespace package; "
            "an empty file makes it an ordinary one"
        )
    if name in sys.stdlib_module_names:
        warnings.append(
            f"model '{name}' has the name of a module of Python itself, which may be run in its place"
        )
    return warnings


def _inside(repository: Path, path: Path) -> bool:
    return path != repository and path.is_relative_to(repository)


def _no_models(repository: Path) -> str:
    sentence = f"{printable(str(repository))} holds no folder with a __main__.py"
    notebooks = sorted(entry.name for entry in repository.glob("*.ipynb"))
    script = next((name for name in (*USUAL_SCRIPTS, *notebooks) if _is_script(repository, name)), "")
    if script:
        return f"{sentence}: {_way_out(script)}"
    return f"{sentence}: is {show_option('repo')} right?"


def _is_script(repository: Path, path: str) -> bool:
    """Tell whether a relative path names a script or notebook, in letters that need no quotation."""
    return bool(SCRIPT.fullmatch(path)) and (repository / path).is_file()


def _script_of(repository: Path, folder: Path) -> str:
    """Return the script of a folder that may train: one of a usual name, or its only one; "" without it."""
    names = [file.name for file in folder.glob("*.py") if file.name != "__init__.py"]
    usual = [name for name in USUAL_SCRIPTS if name in names]
    name = next(iter(usual or (names if len(names) == 1 else [])), "")
    path = f"{folder.name}/{name}"
    return path if _is_script(repository, path) else ""


def _way_out(path: str) -> str:
    """Return how a script or notebook of the repository becomes a model."""
    if path.endswith(".ipynb"):
        return (
            f"{path} is a notebook; jupyter nbconvert --to script makes it a script, "
            "which becomes the __main__.py of a folder"
        )
    folder, _, file = path.rpartition("/")
    stem = file.removesuffix(".py")
    move = "" if folder or not job.MODEL.match(stem) else f"move it to {stem}/__main__.py, or "
    search = f", sys; sys.path.insert(0, '{folder}')" if folder else ""
    return (
        f"{path} is a script; {move}write fit/__main__.py with the line: "
        f"import runpy{search}; runpy.run_path('{path}', run_name='__main__')"
    )


def _missing(repository: Path, name: str, model_names: list[str]) -> str:
    sentence = f"no model '{name}' in {printable(str(repository))}"
    if (repository / f"{name}.py").is_file():
        return f"{sentence}: {_way_out(f'{name}.py')}"
    same = [other for other in model_names if other.lower() == name.lower()]
    if same:
        return f"{sentence}; did you mean '{same[0]}'? Capitals count"
    near = nearest(name, model_names)
    if near:
        return f"{sentence}; did you mean '{near}'?"
    if model_names:
        return f"{sentence}; models here: {', '.join(model_names[:10])}"
    for folder in repository.parents:
        if name in models(folder):
            where = printable(str(folder))
            return f"{sentence}; it lies in {where}: say {show_option('repo')} {where}"
    return f"{sentence}; {_no_models(repository)}"


def _bad_name(repository: Path, name: str, model_names: list[str]) -> str:
    shown = f"model {quoted(name)}"
    rule = "a model is one folder at the repository's top, named by letters, digits and _"
    if name.startswith("/"):
        return f"{shown} is an absolute path; {rule}"
    if ".." in name.split("/"):
        return f"{shown} climbs out of the repository; {rule}"
    if name.removesuffix(".py") not in model_names and _is_script(repository, name):
        return f"no model {quoted(name)}: {_way_out(name)}"
    if "/" in name:
        return f"{shown} is a path; {rule}"
    if name.startswith("-"):
        return f"{shown} starts with a dash, like an option; {rule}"
    if len(name) > 100:
        return f"{shown} is longer than 100 characters; {rule}"
    if name[0].isdigit():
        return f"{shown} starts with a digit; {rule}"
    if "." in name and re.fullmatch(r"[A-Za-z0-9_.]+", name):
        hint = (
            f"; did you mean '{name.removesuffix('.py')}'?" if name.removesuffix(".py") in model_names else ""
        )
        return f"{shown} holds a dot{hint or f'; {rule}'}"
    odd = sorted({letter for letter in name if not re.match(r"[A-Za-z0-9_]", letter)})
    return f"{shown} holds {', '.join(map(_letter, odd[:5]))}; {rule}"


def _letter(letter: str) -> str:
    names = {
        " ": "a space",
        "\n": "a line break",
        "\t": "a tab",
        "'": "a quote",
        '"': "a quote",
        "\0": "a NUL",
    }
    # A letter of another alphabet looks like one that is allowed.
    return names.get(letter, printable(letter) if letter.isascii() else f"U+{ord(letter):04X}")


def required_pythons(top: Path, model: str) -> tuple[str, ...]:
    """Return the versions that a model of the repository at `top` runs with; empty when it does not say.

    `.python-version` names one; else `requires-python`, or Poetry's `python`, gives a range. What cannot be
    read says nothing, and neither does a file outside the repository.
    """
    match = re.match(r"\s*(?:cpython-|python-)?(3\.\d+)(?:[.\s]|\Z)", _read_text(top, ".python-version"))
    if match and match[1] in PYTHONS:
        return (match[1],)
    for name in (f"{model}/pyproject.toml", "pyproject.toml"):
        try:
            range_ = project_file.required_python(_read_text(top, name))
        except ValueError:
            continue
        if range_ and len(range_) <= 200:
            # Poetry also has ranges with `||`, and blanks between the clauses of one.
            ranges = [
                [_PYTHON_CLAUSE.match(clause) for clause in _BETWEEN_CLAUSES.split(part) if clause.strip()]
                for part in re.split(r"\|\|?", range_)
            ]
            fitting = tuple(
                version
                for version in PYTHONS
                if any(all(clause and _fits(version, clause) for clause in clauses) for clauses in ranges)
            )
            return fitting if fitting != PYTHONS else ()
    return ()


def _read_text(top: Path, name: str) -> str:
    try:
        return regular_file.read(top / name, _MOST_BYTES, within=os.path.realpath(top)).decode(
            "utf-8", "replace"
        )
    except (OSError, ValueError):
        return ""


def _fits(version: str, clause: re.Match[str]) -> bool:
    """Tell whether some release of a minor version satisfies a clause of a range."""
    operator, major, minor, patch = clause.groups()
    own = int(version.partition(".")[2])
    if int(major) != 3:
        return operator in (("<", "<=", "!=") if int(major) > 3 else (">", ">=", "!="))
    if minor in (None, "*"):
        return operator not in ("<", "!=", "===")
    bound, exact = int(minor), patch not in (None, "*")
    return {
        ">=": own >= bound,
        ">": own >= bound,
        "<=": own <= bound,
        "<": own < bound or (own == bound and exact and patch != "0"),
        "!=": own != bound or exact,
        "^": own >= bound,
        "~=": own == bound if exact else own >= bound,
        "~": own == bound,
    }.get(operator, own == bound)
