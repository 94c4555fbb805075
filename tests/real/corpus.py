"""Requirement files in the forms that real projects use, and what becomes of each over the image that we make.

`requirements/` has the files, written anew. `image.json` has the packages of the image (TensorFlow 2.19 for the CPU,
Python 3.11) with what they require. Nothing is installed here: uv resolves only, by the product's own program and plans,
from wheels, with the index that this machine is configured with.
"""

from __future__ import annotations

import json
import re
import subprocess
import types
from pathlib import Path
from typing import Any

from train_classifier.core import requirements_file
from train_classifier.core.errors import NoEnvironment
from train_classifier.core.options import PYTHONS
from train_classifier.worker.environments import build_failures, environment_plan
from train_classifier.worker.environments.environment_plan import EnvironmentPlan

HERE = Path(__file__).parent
DOCS = HERE.parents[1] / "docs" / "environments.md"
PROGRAM = HERE.parents[1] / "train_classifier/worker/environments/inside/install_requirements.py"
IMAGE = json.loads((HERE / "image.json").read_text())
PACKAGES = {name: package["version"] for name, package in IMAGE.items()}
PYTHON = "3.11"
#: The target of the resolution, whatever machine and interpreter run the tests.
TARGET = ("--python-version", PYTHON, "--python-platform", "x86_64-manylinux_2_36")
#: What becomes of each file: the kind of its environment, the versions of Python that it names, or another end.
EXPECTED = json.loads((HERE / "expected.json").read_text())
#: Those of them that install.
INSTALLED = re.compile(r"(?:image|isolated)\Z|Python ")
#: Those whose packages do not work together, although what they declare agrees; what the message says to write.
NOT_IMPORTED = {
    "albumentations": "require another version of albucore",
    "opencv-detector": "add the line numpy<2",
    "tensorflow-addons": "add the line tensorflow<2.16",
    "tensorflow-text-nlp": "write its version for this TensorFlow",
}
#: Packages that have no wheel. They are left out here, and built in test_corpus.
BUILT = ("antlr4-python3-runtime==4.9.3", "imutils", "promise")
#: The product then tries to build, which this corpus does not.
SOURCES = "not from wheels alone"
#: What the model of each file imports.
CODE = "import tensorflow\n"


def names() -> list[str]:
    return sorted(path.stem for path in (HERE / "requirements").glob("*.txt"))


def load_program(folder: Path) -> types.ModuleType:
    """Return the program that runs inside images, for the packages of image.json, with its files in `folder`."""
    module = types.ModuleType("install_requirements")
    exec(PROGRAM.read_text().rpartition("main()")[0], module.__dict__)
    module.IMAGE, module.BY_NAME = str(folder / "image"), str(folder / "by-name.txt")  # type: ignore[attr-defined]
    module.PREFERRED = str(folder / "preferred.txt")  # type: ignore[attr-defined]
    module.image_packages = lambda: {  # type: ignore[attr-defined]
        name: (package["version"], package["metadata"]) for name, package in IMAGE.items()
    }
    return module


def outcome(name: str, folder: Path, uv: str) -> str:
    """Return what becomes of a file: `image`, `isolated`, `Python 3.8 to 3.10`, SOURCES, or why it is refused."""
    workspace = folder / "workspace"
    (workspace / "m").mkdir(parents=True)
    (workspace / "m" / "__main__.py").write_text(CODE)
    (workspace / "m" / "requirements.txt").write_bytes((HERE / "requirements" / f"{name}.txt").read_bytes())
    requirements = requirements_file.parse(workspace, "m")
    if requirements.problems:
        return requirements.problems[0]
    settings: dict[str, Any] = {"variables": {}, "source": "", "paths_digest": ""}
    plans = {
        "image": environment_plan.over_image(PACKAGES, True, workspace, requirements, settings),
        "isolated": environment_plan.isolated("m", True, workspace, requirements, settings, False),
    }
    for kind, plan in plans.items():
        program, arguments = load_program(folder / kind), prepare(plan, folder / kind, uv)
        status, output = resolve(program, arguments)
        if status == 0:
            return kind
        if not build_failures.is_final(output):
            reason = SOURCES
            break
        try:
            image = types.SimpleNamespace(reference="the image", packages=PACKAGES)
            build_failures.explain(image, plan, status, output)  # type: ignore[arg-type]
        except build_failures.NotInstallable as error:
            reason = error.reason
        except NoEnvironment as error:
            return error.reason
    fitting = program.fitting_pythons({**arguments, "pythons": PYTHONS})
    if fitting and PYTHON not in fitting:
        return f"Python {build_failures.python_span(fitting)}"
    return reason


def prepare(plan: EnvironmentPlan, folder: Path, uv: str) -> dict[str, Any]:
    """Write the files of a plan, and return what the program reads."""
    (folder / "site").mkdir(parents=True)
    (folder / "requirements.txt").write_text(plan.requirements_text(str(folder)))
    (folder / "constraints.txt").write_text(plan.constraints_text())
    return {
        "uv": uv, "shared": True, "isolated": plan.isolated, "site": str(folder / "site"),
        "requirements": str(folder / "requirements.txt"), "constraints": str(folder / "constraints.txt"), "indexed": "",
        "options": plan.command_line(), "by_name": not plan.hashed(), "pins": plan.frozen(), "package": None,
        "aliases": plan.aliases, "repository": str(folder), "build_constraints": [], "preferred": list(plan.preferred), "wheels_only": True,
    }  # fmt: skip


def resolve(program: types.ModuleType, plan: dict[str, Any]) -> tuple[int, str]:
    if not plan["isolated"]:
        program.add_image_metadata(plan)
    excludes = Path(plan["constraints"]).with_name("excludes.txt")
    excludes.write_text("\n".join(line.partition("==")[0] for line in BUILT))
    target = (*program.into(plan["site"]), "--excludes", str(excludes), *TARGET)
    command = program.command(plan, *target, "--dry-run", "--no-build")
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.returncode, done.stderr


def table() -> str:
    """Return the table of the docs."""
    installed = sum(bool(INSTALLED.match(value)) for value in EXPECTED.values()) - len(NOT_IMPORTED)
    ends = dict(EXPECTED)
    for name, advice in NOT_IMPORTED.items():
        ends[name] += f"; its import fails, and the message says: {advice}"
    rows = [f"| {name} | {end} |" for name, end in sorted(ends.items())]
    share = f"{installed} of {len(EXPECTED)} install and are imported at the first try ({installed * 100 // len(EXPECTED)} %)."
    return "\n".join([share, "", "| File | What becomes of it |", "|---|---|", *rows])


if __name__ == "__main__":
    before, begin, rest = DOCS.read_text().partition("<!-- corpus -->\n")
    DOCS.write_text(before + begin + table() + "\n<!-- /corpus -->" + rest.partition("<!-- /corpus -->")[2])
