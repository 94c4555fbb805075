"""What setup.py and setup.cfg say of a package, as far as their text alone says it."""

import ast
import configparser
import re
import warnings
from typing import Any, Optional

#: The keywords of setup() that say what is installed; all others are for people and indexes.
KEYWORDS = (
    "name", "version", "install_requires", "extras_require", "entry_points", "packages", "package_dir",
    "py_modules", "use_scm_version",
)  # fmt: skip
#: Those with which a build makes or moves files.
_BUILDS = (
    "ext_modules", "ext_package", "cmdclass", "scripts", "rust_extensions", "cffi_modules", "data_files",
    "libraries", "distclass", "pbr",
)  # fmt: skip
#: The sections of setup.cfg that are read.
_SECTIONS = (
    "metadata", "options", "options.extras_require", "options.entry_points", "options.packages.find",
    "versioneer",
)  # fmt: skip
#: The modules whose `setup` is setuptools' own.
_SETUPTOOLS = ("setuptools", "distutils.core")
_FINDERS = ("find_packages", "find_namespace_packages")
#: Most calls of functions of setuptools: each is looked for in the whole file.
MOST_CALLS = 20
#: Names with which any code, and those with which code outside of functions, may bind any name of the module.
_ANY_NAME = ("globals", "__dict__", "modules")
_ANY_NAME_OUTSIDE = ("locals", "vars", "setattr")
#: A value that is computed.
UNKNOWN = object()


class NotStatic(Exception):
    """The text alone does not say what the build would."""


def read_setup(text: str) -> dict[str, Any]:
    """Return the literal values of setup()'s keywords; a version that is none is UNKNOWN.

    Computed extras are left out: one that is asked for needs a build. `packages` may be `("find", FOLDER)`.
    Raises NotStatic where another keyword that counts is computed.
    """
    tree = _parsed(text)
    calls = [
        node
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and _called(node) == "setup" and node.keywords
    ]
    if not calls and re.search(r"\bsetup\(\s*\)", text):
        return {}
    mains = [node for node in tree.body if isinstance(node, ast.If) and _is_main(node.test)]
    top = [*tree.body, *(each for node in mains for each in node.body)]
    if len(calls) != 1 or not any(isinstance(node, ast.Expr) and node.value is calls[0] for node in top):
        raise NotStatic
    finders = [
        node for node in ast.walk(calls[0]) if isinstance(node, ast.Call) and _called(node) in _FINDERS
    ]
    own = (calls[0], *finders)
    if calls[0].args or len(own) > MOST_CALLS or not all(_is_of_setuptools(tree, call) for call in own):
        raise NotStatic
    constants = _constants(tree, calls[0])
    values: dict[str, Any] = {}
    for keyword in calls[0].keywords:
        if keyword.arg is None or (keyword.arg in _BUILDS and not _is_versioneer(keyword.value)):
            raise NotStatic
        if keyword.arg in KEYWORDS:
            value = _value(keyword.value, constants)
            if value is UNKNOWN and keyword.arg not in ("version", "extras_require"):
                raise NotStatic
            if value is not UNKNOWN or keyword.arg == "version":
                values[keyword.arg] = value
    return values


def literal(text: str, name: str) -> Optional[str]:
    """Return the text that a module assigns to a name; None when it is computed."""
    try:
        body = _parsed(text).body
    except NotStatic:
        return None
    for node in body:
        targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
        value = getattr(node, "value", None)
        if any(isinstance(target, ast.Name) and target.id == name for target in targets):
            return value.value if isinstance(value, ast.Constant) and isinstance(value.value, str) else None
    return None


def _parsed(text: str) -> ast.Module:
    """Return a module's statements. Raises NotStatic; what Python would warn about is not ours."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return ast.parse(text)
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise NotStatic from error


def _called(node: ast.Call) -> str:
    function = node.func
    return getattr(function, "id", "") or getattr(function, "attr", "")


def _is_main(test: ast.expr) -> bool:
    """Tell whether a condition compares `__name__`."""
    sides = (test.left, *test.comparators) if isinstance(test, ast.Compare) else ()
    return any(getattr(side, "id", "") == "__name__" for side in sides)


def _is_of_setuptools(tree: ast.Module, call: ast.Call) -> bool:
    """Tell whether a called function is setuptools' own: others of its name compile, or add values."""
    function = call.func
    if isinstance(function, ast.Attribute):
        return ast.unparse(function.value) in _SETUPTOOLS
    name = getattr(function, "id", "")
    imports = [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
    own = {id(alias) for node in imports if node.module in _SETUPTOOLS for alias in node.names}
    bound = [node for node in ast.walk(tree) if _bound_name(node) in (name, "*")]
    return bool(bound) and all(id(node) in own for node in bound)


def _bound_name(node: ast.AST) -> str:
    """Return the name that a node itself binds, without what is in it: "" for none, `*` for unknown ones."""
    if isinstance(node, ast.alias):
        return (node.asname or node.name).partition(".")[0]
    if isinstance(node, ast.Name):
        return "" if isinstance(node.ctx, ast.Load) else node.id
    if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.ExceptHandler)):
        return node.name or ""
    # Python 3.9 does not have them.
    if type(node).__name__ in ("MatchAs", "MatchStar", "MatchMapping"):
        return getattr(node, "name", None) or getattr(node, "rest", None) or ""
    return ""


def _last_unknown_line(tree: ast.Module) -> float:
    """Return the last line that may bind any name of the module; 0 without one."""
    last: float = 0
    for statement in tree.body:
        is_function = isinstance(statement, (ast.FunctionDef, ast.AsyncFunctionDef))
        for node in ast.walk(statement):
            used = getattr(node, "id", getattr(node, "attr", ""))
            if used in _ANY_NAME or (isinstance(node, ast.alias) and node.name == "*"):
                # A function runs at any time.
                last = float("inf") if is_function else max(last, statement.end_lineno or 0)
            elif not is_function and (used in _ANY_NAME_OUTSIDE or _is_plain_exec(node)):
                last = max(last, statement.end_lineno or 0)
    return last


def _is_plain_exec(node: ast.AST) -> bool:
    """Tell whether a node is `exec(code)`, which binds the names of the module."""
    return isinstance(node, ast.Call) and _called(node) in ("exec", "execfile") and len(node.args) < 2


def _is_versioneer(value: ast.expr) -> bool:
    """Tell whether a value is `versioneer.get_cmdclass()`, which writes the version into a file."""
    return isinstance(value, ast.Call) and _called(value) == "get_cmdclass" and not value.args


def _constants(tree: ast.Module, call: ast.Call) -> dict[str, ast.expr]:
    """Return the values of names that are assigned once; lists and tables, if only setup() uses them."""
    inside = {id(node) for node in ast.walk(call)}
    stored: dict[str, int] = {}
    elsewhere = set()
    for node in ast.walk(tree):
        name = _bound_name(node)
        stored[name] = stored.get(name, 0) + 1
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load) and id(node) not in inside:
            elsewhere.add(node.id)
    unknown = _last_unknown_line(tree)
    return {
        target.id: node.value
        for node in tree.body
        if isinstance(node, ast.Assign) and node.lineno > unknown
        for target in node.targets
        if isinstance(target, ast.Name)
        and stored[target.id] == 1
        # A list with two names may be changed by the other one.
        and (isinstance(node.value, ast.Constant) or (target.id not in elsewhere and len(node.targets) == 1))
    }


def _value(node: ast.expr, constants: dict[str, ast.expr]) -> Any:
    """Return a literal value, `("find", FOLDER)` for find_packages, UNKNOWN for anything else."""
    if isinstance(node, ast.Name):
        node = constants.get(node.id, node)
    if isinstance(node, ast.Call) and _called(node) in _FINDERS:
        where = [*node.args[:1], *(keyword.value for keyword in node.keywords if keyword.arg == "where")]
        folder = _value(where[0], constants) if where else "."
        return ("find", folder) if isinstance(folder, str) and len(node.args) < 2 else UNKNOWN
    try:
        return ast.literal_eval(node)
    except (ValueError, TypeError, SyntaxError, RecursionError, MemoryError):
        return UNKNOWN


def read_config(text: str) -> dict[str, Any]:
    """Return what a setup.cfg says, with the keywords of setup(). Raises NotStatic for what is not read.

    A value `file: …` or `attr: …` is returned as `("file", …)` or `("attr", …)`.
    """
    parser = configparser.RawConfigParser(strict=False)
    parser.optionxform = str  # type: ignore[assignment,method-assign]
    try:
        # configparser needs quadratic time for a long run of blanks of any kind.
        parser.read_string(re.sub(r"(?<=\S)[^\S\n]+", " ", text))
    except configparser.Error as error:
        raise NotStatic from error
    if "files" in parser or "build_ext" in parser:
        raise NotStatic
    # Each section has all keys of [DEFAULT], too: only these few are made.
    sections = {name: dict(parser.items(name)) for name in _SECTIONS if parser.has_section(name)}
    keys = {**sections.get("metadata", {}), **sections.get("options", {})}
    # setuptools took `install-requires` for `install_requires` for years.
    options = {key.replace("-", "_"): value for key, value in keys.items()}
    if set(options) & set(_BUILDS):
        raise NotStatic
    values: dict[str, Any] = {
        name: _reference(options[name]) for name in ("name", "version") if name in options
    }
    if "install_requires" in options:
        text = options["install_requires"]
        values["install_requires"] = _listed(text if "\n" in text else text.replace(";", "\n"))
    for name in ("extras_require", "entry_points"):
        section = f"options.{name}"
        if section in sections:
            values[name] = {key: _listed(value) for key, value in sections[section].items()}
        elif name in options:
            raise NotStatic
    if "package_dir" in options:
        pairs = (line.partition("=") for line in _lines(options["package_dir"]))
        values["package_dir"] = {key.strip(): value.strip() for key, _, value in pairs}
    if "py_modules" in options:
        values["py_modules"] = _lines(options["py_modules"].replace(",", "\n"))
    if "versioneer" in sections:
        values["versioneer"] = sections["versioneer"]
    packages = options.get("packages", "").strip()
    if packages in ("find:", "find_namespace:"):
        values["packages"] = ("find", sections.get("options.packages.find", {}).get("where", "."))
    elif packages:
        values["packages"] = _lines(packages.replace(",", "\n"))
    return values


def _reference(text: str) -> Any:
    kind, colon, rest = text.partition(":")
    return (kind, rest.strip()) if colon and kind in ("file", "attr") else text.strip()


def _listed(text: str) -> Any:
    """Return the lines of a list, or the reference to a file."""
    reference = _reference(text)
    return reference if isinstance(reference, tuple) else _lines(text)


def requirement_lines(value: Any) -> list[str]:
    """Return the requirements in a text or a list of texts, as setuptools reads them: without comments."""
    lines = [line for text in ([value] if isinstance(value, str) else value) for line in text.splitlines()]
    return list(filter(None, (re.split(r"(?:\A|\s)#", line, maxsplit=1)[0].strip() for line in lines)))


def _lines(text: str) -> list[str]:
    """Return the lines of a value that are no comments."""
    lines = (line.strip() for line in text.splitlines())
    return [line for line in lines if line and not line.startswith("#")]
