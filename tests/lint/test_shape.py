"""The shape of the package: what a newcomer can rely on when looking for something."""

import ast
import collections
import re
import statistics
from collections.abc import Iterator
from pathlib import Path

PACKAGE = Path(__file__).parents[2] / "train_classifier"
MOST_ENTRIES = 12
MOST_LINES = 60
MOST_PARAMETERS = 8
MOST_MEDIAN_LINES = 12

MODULES = {
    path.relative_to(PACKAGE).as_posix(): ast.parse(path.read_text(encoding="utf-8"))
    for path in sorted(PACKAGE.rglob("*.py"))
    # Templates are models of others.
    if not {"_content", "templates"} & set(path.parts)
}


def functions() -> Iterator[tuple[str, ast.FunctionDef]]:
    for module, tree in MODULES.items():
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef):
                yield f"{module}: {node.name}", node


def lines(function: ast.FunctionDef) -> int:
    assert function.end_lineno
    return function.end_lineno - function.lineno + 1


def parameters(function: ast.FunctionDef) -> int:
    names = [one.arg for one in (*function.args.posonlyargs, *function.args.args, *function.args.kwonlyargs)]
    return len([name for name in names if name not in ("self", "cls")])


def test_few_entries_beside_each_other() -> None:
    entries = collections.Counter()
    for folder in {PACKAGE / Path(module).parent for module in MODULES}:
        for entry in folder.iterdir():
            if not entry.name.startswith("_") and (entry.is_dir() or entry.suffix == ".py"):
                entries[folder.relative_to(PACKAGE).as_posix()] += 1
    assert {name: count for name, count in entries.items() if count > MOST_ENTRIES} == {}


def test_functions_are_short_and_take_few_parameters() -> None:
    assert [name for name, one in functions() if lines(one) > MOST_LINES] == []
    assert [name for name, one in functions() if parameters(one) > MOST_PARAMETERS] == []
    assert statistics.median(lines(one) for _, one in functions()) < MOST_MEDIAN_LINES


def test_one_name_for_one_thing() -> None:
    modules, classes = collections.Counter(), collections.Counter()
    for module, tree in MODULES.items():
        # A command's file has the command's name.
        counts = not Path(module).name.startswith("_") and not module.startswith("cli/commands/")
        modules[Path(module).name] += counts
        for node in tree.body:
            classes[
                node.name if isinstance(node, ast.ClassDef) and not node.name.startswith("_") else ""
            ] += 1
    del classes[""]
    assert [name for counted in (modules, classes) for name, count in counted.items() if count > 1] == []


def test_modules_that_the_architecture_names_exist() -> None:
    text = (PACKAGE.parent / "docs" / "architecture.md").read_text(encoding="utf-8")
    missing = []
    # `core/options.py`, `state/file_trees.remove`; those of the worker also without its name.
    for module, name in re.findall(r"`([a-z_]+(?:/[a-z_]+)+)\.?(\w*)`", text):
        paths = [PACKAGE / f"{module}.py", PACKAGE / "worker" / f"{module}.py"]
        source = "".join(path.read_text(encoding="utf-8") for path in paths if path.exists())
        is_module = any(path.parent.is_dir() for path in paths)
        if is_module and not (source and (name == "py" or name in source)):
            missing.append(f"{module}.{name}")
    assert missing == []


def test_public_functions_say_what_they_do() -> None:
    silent = []
    for module, tree in MODULES.items():
        public = [
            tree,
            *(node for node in tree.body if isinstance(node, ast.ClassDef) and node.name[0] != "_"),
        ]
        for node in (node for owner in public for node in owner.body):
            if isinstance(node, ast.FunctionDef) and node.name[0] != "_" and not ast.get_docstring(node):
                silent.append(f"{module}: {node.name}")
    assert silent == []


def test_files_of_tests_have_names_of_their_own() -> None:
    # Without packages pytest imports each by its name alone, and collects the second of two names nowhere.
    names = collections.Counter(path.name for path in (PACKAGE.parent / "tests").rglob("test_*.py"))
    assert [name for name, count in names.items() if count > 1] == []
