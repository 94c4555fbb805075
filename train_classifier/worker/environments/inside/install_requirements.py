"""Runs inside an image, by the image's own Python (3.8 on), as the job's user: makes an environment with uv.

Sent as text (`python3 -c`), so it imports nothing of ours. Reads one JSON object from the file that its
argument names; its keys are described in environments/environment_build.

Over an image, uv gets the packages of the image as metadata only: it then counts them as installed,
prefers them, and downloads only what is missing. Each is also a requirement by name, because uv checks only
what the packages need that it is asked for. The metadata goes away again before the environment is used.
An isolated environment is a virtual environment that sees no package of the image.

With `shared`, uv's cache is shared between repositories: only wheels are installed, nothing is built, and no
Python starts on what was installed.

Otherwise packages are built, each in an environment of its own with what it declares. One that fails since it
imports more (flash-attention imports torch) is built again with the packages of this environment.
"""

import base64
import collections
import json
import os
import re
import shutil
import subprocess
import sys
import urllib.parse
from importlib.metadata import distributions
from typing import Any

#: The installer of metadata that is there for uv alone.
METADATA_ONLY = "train-classifier-image"
#: A virtual environment with the metadata of the image's packages, all as the image has them.
IMAGE = "/tmp/train-classifier-image"
#: A target folder for resolving once more: it has the metadata that the environment began with.
AGAIN = "/tmp/train-classifier-again"
#: The image's packages as requirements.
BY_NAME = "/tmp/train-classifier-image.txt"
#: The packages of a uv.lock as requirements, with their hashes.
LOCKED = "/tmp/train-classifier-locked.txt"
#: What leaves out every requirement of the repository's own package, whose version is each job's own.
OWN = "/tmp/train-classifier-own.txt"
#: The requirements that are left out where they have no solution with all others.
PREFERRED = "/tmp/train-classifier-preferred.txt"
#: The requirements, with the addresses of git repositories without logins.
WITHOUT_LOGINS = "/tmp/train-classifier-without-logins.txt"
#: The requirements that are installed before a package that imports them while it is built.
FIRST = "/tmp/train-classifier-first.txt"
#: Tools of such builds, which are no part of the environment.
TOOLS = "/tmp/train-classifier-tools"
#: Modules of such tools, and the distributions that have them.
BUILD_TOOLS = {
    "setuptools": "setuptools", "pkg_resources": "setuptools<82", "wheel": "wheel", "packaging": "packaging",
    "ninja": "ninja", "psutil": "psutil", "Cython": "cython", "pybind11": "pybind11", "cmake": "cmake",
    "setuptools_scm": "setuptools-scm", "hatchling": "hatchling", "poetry": "poetry-core",
    "flit_core": "flit-core", "skbuild": "scikit-build", "scikit_build_core": "scikit-build-core",
    "mesonpy": "meson-python",
}  # fmt: skip
#: Errors of packages that were written for older tools of builds, and the versions that they need.
OLDER_TOOLS = (
    (r"use_2to3 is invalid", "setuptools<58"),
    (r"'(?:extras|install|tests|setup)_requires?' must be a (?:dictionary|string)", "setuptools<66"),
    (r"cannot import name 'packaging' from 'pkg_resources'", "setuptools<70"),
    (r"name 'msvccompiler' from 'distutils'|No module named 'distutils.msvccompiler'", "setuptools<74"),
    (r"Invalid dash-separated key", "setuptools<78"),
    (r"unexpected keyword argument 'dry_run'|has no attribute 'dry_run'", "setuptools<81"),
    (r"No module named 'pkg_resources'", "setuptools<82"),
    (r"has no attribute 'cython_sources'", "cython<3"),
)
#: The versions of frameworks and tools that packages are built with, if they ask for them.
BUILT_WITH = "/tmp/train-classifier-built-with.txt"
#: Most packages that are built with the packages of the environment.
MOST_UNISOLATED = 3
#: Most lines of an error of uv that are kept, at its beginning and at its end.
HEAD, TAIL = 100, 2000
#: Most downloads and builds that one line of progress names.
SHOWN = 3
#: The package that uv could not build.
NOT_BUILT = re.compile(r"Failed to (?:download and )?build:? `([A-Za-z0-9][A-Za-z0-9._-]*)(?:==| @ )")
MISSING = re.compile(r"ModuleNotFoundError: No module named '([A-Za-z0-9_]+)[A-Za-z0-9_.]*'")
#: The name that a line of a requirements file begins with.
NAMED = re.compile(r"([A-Za-z0-9][A-Za-z0-9._-]*)\s*(?:\[[^\]]*\]\s*)?(?:[@=<>!~;(]|--|\Z)")
#: What uv says while it works.
WORK = re.compile(r"\s*(Downloading|Downloaded|Building|Built|Prepared) (\S+)(.*)")
#: Lines of uv that say nothing to people.
NOISE = re.compile(r"Using (?:C?Python|PyPy)|warning: Requirements file .* does not contain any dependencies")
#: What uv says of each version that it chooses.
CHOSEN = re.compile(r"Selecting: (\S+)==\S+ \[[^]]*\] \((.*)\)")
#: What uv says of each requirement of an installed package that is not met.
UNMET = re.compile(r"The package `([^`]+)` requires `([A-Za-z0-9._-]+)")
#: A version that uv can read (PEP 440); uv ignores packages with another.
VERSION = re.compile(
    r"v?(\d+!)?\d+(\.\d+)*([-_.]?(alpha|beta|preview|pre|post|rev|dev|rc|a|b|c|r)[-_.]?\d*)*(-\d+)?"
    r"(\+[a-z0-9]+([-_.][a-z0-9]+)*)?\Z",
    re.IGNORECASE,
)


def normal(name: str) -> str:
    """Return a package's normalised name (PEP 503)."""
    return re.sub(r"[-_.]+", "-", name).lower()


def site_of(environment: str) -> str:
    """Return the folder of packages of a virtual environment."""
    return os.path.join(environment, "lib", "python%d.%d" % sys.version_info[:2], "site-packages")


def names_in(site: str) -> "dict[str, str]":
    """Return the packages of a folder, with their versions."""
    return {
        normal(package.metadata["Name"]): package.version
        for package in distributions(path=[site])
        if package.metadata["Name"] and package.version
    }


def image_packages() -> "dict[str, tuple[str, list[str]]]":
    """Return version and requirements of each package of the image: the first on sys.path is imported."""
    packages: "dict[str, tuple[str, list[str]]]" = {}
    for package in distributions():
        name, version = package.metadata["Name"], package.version
        if name and version and VERSION.match(version):
            extras = package.metadata.get_all("Provides-Extra") or []
            lines = ["Provides-Extra: %s" % extra for extra in extras]
            lines += ["Requires-Dist: %s" % " ".join(text.split()) for text in package.requires or []]
            packages.setdefault(normal(name), (version, lines))
    return packages


def write_metadata(site: str, name: str, version: str, lines: "list[str]") -> None:
    """Write the metadata of a package of the image: anew, since uv refuses to replace Debian's egg-info."""
    folder = os.path.join(site, "%s-%s.dist-info" % (name.replace("-", "_"), version))
    os.mkdir(folder)
    head = ["Metadata-Version: 2.1", "Name: %s" % name, "Version: %s" % version]
    texts = {
        "METADATA": "\n".join(head + lines) + "\n",
        "INSTALLER": METADATA_ONLY + "\n",
        "WHEEL": "Wheel-Version: 1.0\nTag: py3-none-any\n",
        "RECORD": "".join(
            "%s/%s,,\n" % (os.path.basename(folder), file)
            for file in ("METADATA", "INSTALLER", "WHEEL", "RECORD")
        ),
    }
    for file, text in texts.items():
        with open(os.path.join(folder, file), "w", encoding="utf-8") as out:
            out.write(text)


def add_own_package(site: str, package: "dict[str, Any]") -> None:
    """Write the paths from which each job imports the repository's own package; uv counts it as installed.

    The worker has checked name, version and paths.
    """
    if package["version"]:
        write_metadata(site, package["name"], package["version"], [])
    else:
        with open(OWN, "w", encoding="utf-8") as file:
            file.write("%s ; sys_platform == 'none'\n" % package["name"])
    with open(os.path.join(site, "train-classifier-repository.pth"), "w", encoding="utf-8") as file:
        file.write("\n".join([*package["paths"], ""]))


def unmet_in_image(
    plan: "dict[str, Any]", packages: "dict[str, tuple[str, list[str]]]"
) -> "set[tuple[str, str]]":
    """Return what the untouched image does not meet: package, and the name of what it requires."""
    subprocess.check_call([plan["uv"], "venv", "--quiet", "--python", sys.executable, IMAGE])
    site = site_of(IMAGE)
    for name, (version, lines) in packages.items():
        write_metadata(site, name, version, lines)
    check = [plan["uv"], "pip", "check", "--python", os.path.join(IMAGE, "bin", "python")]
    process = subprocess.run(check, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    unmet = UNMET.findall(process.stderr.decode("utf-8", "replace"))
    return {(normal(package), normal(required)) for package, required in unmet}


def add_image_metadata(plan: "dict[str, Any]") -> None:
    """Write the metadata of the image's packages that the environment does not have, and write BY_NAME."""
    packages = image_packages()
    unmet = unmet_in_image(plan, packages)
    own = names_in(plan["site"])
    for alias, name in plan["aliases"].items():
        if name in packages and alias not in packages:
            version = packages[name][0]
            packages[alias] = (version, ["Requires-Dist: %s==%s" % (name, version)])
    for name, (version, lines) in packages.items():
        if name not in own:
            met = [
                line
                for line in lines
                if (name, normal(re.split(r"[^A-Za-z0-9._-]", line.partition(": ")[2])[0])) not in unmet
            ]
            write_metadata(plan["site"], name, version, met)
    if not plan["by_name"]:
        return
    with open(BY_NAME, "w", encoding="utf-8") as out:
        out.write("".join("%s\n" % name for name in packages if name not in plan["aliases"]))
        out.write("".join("%s\n" % pin for pin in plan["pins"]))


def remove_image_metadata(site: str) -> None:
    """Remove the metadata of the image's packages that is still there."""
    for name in os.listdir(site):
        try:
            with open(os.path.join(site, name, "INSTALLER"), encoding="utf-8") as file:
                is_of_image = file.read().strip() == METADATA_ONLY
        except OSError:
            continue
        if is_of_image:
            shutil.rmtree(os.path.join(site, name))


def copy_metadata(site: str, target: str) -> None:
    """Copy what uv reads of installed packages."""
    os.makedirs(target)
    for name in os.listdir(site):
        if name.endswith(".dist-info"):
            os.mkdir(os.path.join(target, name))
            for file in ("METADATA", "RECORD", "INSTALLER"):
                path = os.path.join(site, name, file)
                if os.path.isfile(path):
                    shutil.copyfile(path, os.path.join(target, name, file))


def command(plan: "dict[str, Any]", *options: str) -> "list[str]":
    """Return the command line of uv."""
    files = (BY_NAME, PREFERRED, LOCKED) if plan["requirements"] != FIRST else (BY_NAME, PREFERRED)
    more = [word for file in files if os.path.exists(file) for word in ("-r", file)]
    if plan["indexed"]:
        more += ["-r", plan["indexed"]]
    if plan["build_constraints"] and not plan["shared"]:
        more += ["--build-constraints", BUILT_WITH]
    return [
        plan["uv"], "pip", "install", "--no-progress",
        # No inode in common with the cache, which others read and write.
        "--link-mode", "copy", "--no-compile-bytecode", "-c", plan["constraints"],
        "-r", plan["requirements"], *more, *(["--override", OWN] if os.path.exists(OWN) else []),
        *plan["options"], *options,
    ]  # fmt: skip


def into(site: str) -> "list[str]":
    """Return the options that install into a folder, for the image's own Python."""
    return ["--python", sys.executable, "--target", site]


def holds_sources() -> bool:
    """Tell whether uv's cache holds the source of a package."""
    cache = os.environ["UV_CACHE_DIR"]
    for bucket in os.listdir(cache):
        if bucket.startswith("sdists-"):
            for _, _, names in os.walk(os.path.join(cache, bucket)):
                if set(names) - {".lock", ".git", ".gitignore"}:
                    return True
    return False


def must_build(plan: "dict[str, Any]") -> "list[str]":
    """Return the packages that uv would build if it might.

    With --no-build uv takes an older version that has a wheel, without a word. So it resolves once more with
    builds allowed, from its cache alone: without the sources nothing can be built.
    """
    if holds_sources():
        return ["a package"]
    again = command(plan, *into(AGAIN), "--dry-run", "--offline", "--verbose")
    process = subprocess.run(again, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    messages = process.stderr.decode("utf-8", "replace")
    chosen = CHOSEN.findall(messages)
    sources = sorted({name for name, file in chosen if not file.endswith((".whl", "installed"))})
    # Another uv may have other words.
    understood = process.returncode == 0 and (chosen or "Would make no changes" in messages)
    return sources or ([] if understood else ["a package"])


def fitting_pythons(plan: "dict[str, Any]") -> "list[str]":
    """Return the versions of Python that the requirements have a solution for: of wheels, else of sources."""
    for more in (["--no-build"], []):
        fitting = [
            version
            for version in plan["pythons"]
            if subprocess.call(
                [plan["uv"], "pip", "compile", "--quiet", "--no-header", "--python-version", version,
                 "-c", plan["constraints"], plan["requirements"], *filter(None, [plan["indexed"]]),
                 *plan["options"], *more],
                stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd=plan["repository"],
            ) == 0
        ]  # fmt: skip
        if fitting or plan["wheels_only"]:
            break
    return fitting


def export_lock(plan: "dict[str, Any]") -> int:
    """Write LOCKED: the project's own dependencies, at the versions of its uv.lock."""
    export = [
        plan["uv"], "export", "--quiet", "--frozen", "--offline", "--no-default-groups", "--no-emit-project",
        "--no-annotate", "--no-header", "--python", sys.executable, "-o", LOCKED,
    ]  # fmt: skip
    return subprocess.call(export, cwd=plan["project"])


def show_work(line: str, work: "dict[str, str]") -> None:
    """Print what uv is doing after a line of it; `work` has the downloads and builds that go on."""
    match = WORK.match(line)
    if not match:
        return
    verb, name, size = match.groups()
    if verb in ("Downloading", "Building"):
        work[name] = "%s %s%s" % (verb.lower(), name, size if verb == "Downloading" else "")
    else:
        work.pop(name, None)
    if verb == "Prepared":
        print("writing the packages into the environment", file=sys.stderr)
    elif work:
        more = len(work) - SHOWN
        rest = " and %d more" % more if more > 0 else ""
        print(", ".join(list(work.values())[:SHOWN]) + rest, file=sys.stderr)


def run_uv(words: "list[str]", **options: Any) -> "tuple[int, str]":
    """Run uv and print what it does; return its status and its error, which is not printed."""
    process = subprocess.Popen(words, stderr=subprocess.PIPE, **options)
    stderr = process.stderr
    assert stderr is not None
    head: "list[str]" = []
    tail: "collections.deque[str]" = collections.deque(maxlen=TAIL)
    work: "dict[str, str]" = {}
    for data in iter(lambda: stderr.readline(1 << 16), b""):
        line = data.decode("utf-8", "replace")
        if head or line.startswith("error:"):
            (head if len(head) < HEAD else tail).append(line)
        elif not NOISE.match(line):
            print(line.rstrip("\n"), file=sys.stderr)
            show_work(line, work)
            sys.stderr.flush()
    return process.wait(), "".join([*head, *tail])


def name_of(line: str) -> str:
    """Return the normalised name of a requirement, "" when it has none."""
    match = NAMED.match(line)
    return normal(match[1]) if match else ""


def first_lines(lines: "list[str]", unisolated: "dict[str, str]") -> "list[str]":
    """Return the lines that are installed before the packages in `unisolated`, the modules they lack by name.

    These are all other lines. If another package requires one of these packages, it is not known which: then
    only the lines that name such a module.
    """
    names = {name_of(line) for line in lines if not line.startswith("-")}
    options = [line for line in lines if line.startswith("-")]
    indirect = not set(unisolated) <= names
    if indirect and "" not in names:
        modules = {normal(module) for module in unisolated.values()}
        return options + [line for line in lines if name_of(line) in modules]
    later = {*unisolated, ""} if indirect else set(unisolated)
    return options + [line for line in lines if not line.startswith("-") and name_of(line) not in later]


def install_in_steps(
    plan: "dict[str, Any]", target: "list[str]", site: str, unisolated: "dict[str, str]", tools: "set[str]"
) -> "tuple[int, str]":
    """Install with builds allowed, the packages in `unisolated` last; return status and error of uv."""
    if not unisolated:
        return run_uv(command(plan, *target), cwd=plan["repository"])
    lines: "list[str]" = []
    for path in filter(os.path.exists, (plan["requirements"], LOCKED)):
        with open(path, encoding="utf-8") as file:
            lines += file.read().replace("\\\n", " ").splitlines()
    with open(FIRST, "w", encoding="utf-8") as file:
        file.write("\n".join([*first_lines(lines, unisolated), ""]))
    status, error = run_uv(command({**plan, "requirements": FIRST}, *target), cwd=plan["repository"])
    if status != 0:
        return status, error
    own_tools = [line.partition(" --")[0] for line in lines if name_of(line) in ("setuptools", "wheel")]
    get_tools = [
        plan["uv"], "pip", "install", "--quiet", "--no-progress", *into(TOOLS), *plan["options"],
        "-c", plan["constraints"], "-c", BUILT_WITH,
    ]  # fmt: skip
    for tool in [own_tools or ["setuptools"], *([BUILD_TOOLS[module]] for module in sorted(tools))]:
        # A failure is ignored: without the tool the build fails and names it.
        run_uv([*get_tools, *tool], cwd=plan["repository"])
    # The tools come first: the metadata of the image's packages has no entry points.
    variables = {
        "PYTHONPATH": os.pathsep.join([TOOLS, site]),
        "PATH": os.pathsep.join([TOOLS + "/bin", site + "/bin", os.environ.get("PATH", os.defpath)]),
    }
    options: "list[str]" = []
    for name in unisolated:
        options += ["--no-build-isolation-package", name] if name else ["--no-build-isolation"]
    # A cached build may have been made with other packages.
    again = command(plan, *target, *options, "--no-cache")
    return run_uv(again, cwd=plan["repository"], env={**os.environ, **variables})


def remove_preferred(error: str) -> bool:
    """Remove the preferred requirements if the error may be theirs; tell whether there were any."""
    if "No solution found" not in error or not os.path.exists(PREFERRED):
        return False
    os.remove(PREFERRED)
    return True


def older_tool(plan: "dict[str, Any]", error: str) -> str:
    """Return the older version of a tool that a failed build needs and did not get, "" if there is none."""
    for pattern, tool in OLDER_TOOLS:
        if tool not in plan["build_constraints"] and re.search(pattern, error):
            return tool
    return ""


def build_and_install(plan: "dict[str, Any]", target: "list[str]", site: str) -> "tuple[int, list[str]]":
    """Install with builds allowed; return status, and the packages built with those of the environment."""
    unisolated: "dict[str, str]" = {}
    tools: "set[str]" = set()
    cause = ""
    while True:
        with open(BUILT_WITH, "w", encoding="utf-8") as file:
            file.write("\n".join([*plan["build_constraints"], ""]))
        status, error = install_in_steps(plan, target, site, unisolated, tools)
        if remove_preferred(error):
            continue
        failed = NOT_BUILT.search(error)
        name = normal(failed[1]) if failed else ""
        older = older_tool(plan, error)
        if cause and "No solution found" in error:
            # Another package needs a newer tool.
            error = cause
            break
        if older:
            cause = error
            plan["build_constraints"].append(older)
            print("%s needs %s to be built: trying that" % (name, older), file=sys.stderr, flush=True)
            continue
        missing = MISSING.findall(error)
        if status == 0 or not missing:
            break
        module, known = missing[-1], len(unisolated) + len(tools)
        if len(unisolated) < MOST_UNISOLATED:
            unisolated.setdefault(name, module)
        tools |= {module} & set(BUILD_TOOLS)
        if len(unisolated) + len(tools) == known:
            break
        text = "%s imports %s while it is built, without declaring it: building it in the environment"
        print(text % (name or "a package", module), file=sys.stderr, flush=True)
    sys.stderr.write(error)
    if "" in unisolated:
        del unisolated[""]
        unisolated.update(dict.fromkeys(packages_by_address(site), ""))
    return status, sorted(unisolated)


def packages_by_address(site: str) -> "set[str]":
    """Return the packages of a folder that come from an address or a path."""
    return {
        normal(package.metadata["Name"])
        for package in distributions(path=[site])
        if package.metadata["Name"] and package.read_text("direct_url.json")
    }


def install(plan: "dict[str, Any]") -> int:
    """Install, and print what came of it as the last line."""
    if plan["project"]:
        status = export_lock(plan)
        if status:
            return status
    site = plan["site"]
    if plan["isolated"]:
        subprocess.check_call([plan["uv"], "venv", "--quiet", "--python", sys.executable, site])
        target = ["--python", os.path.join(site, "bin", "python")]
        site = site_of(site)
    if plan["package"]:
        add_own_package(site, plan["package"])
    if plan["isolated"]:
        os.makedirs(AGAIN)
    else:
        add_image_metadata(plan)
        copy_metadata(site, AGAIN)
        target = into(site)
    sources: "list[str]" = []
    unisolated: "list[str]" = []
    if plan["preferred"]:
        with open(PREFERRED, "w", encoding="utf-8") as file:
            file.write("\n".join([*plan["preferred"], ""]))
    if plan["shared"]:
        status, error = run_uv(command(plan, *target, "--no-build"))
        if remove_preferred(error):
            status, error = run_uv(command(plan, *target, "--no-build"))
        sys.stderr.write(error)
        if status == 0:
            sources = must_build(plan)
    else:
        status, unisolated = build_and_install(plan, target, site)
    remove_image_metadata(site)
    if status == 0:
        result = {"packages": names_in(site), "sources": sources, "unisolated": unisolated}
        print()
        print("train-classifier:" + json.dumps(result))
    return status


def put_git_login(address: str) -> str:
    """Return the address of a git repository without its login, which git gets by its environment.

    Anyone on the host can read the command lines of processes, and so that of git. The login is for the
    repositories beside it, too: they may be its submodules.
    """
    match = re.match(r"((?:git\+)?)(https?://)([^/\s]*)@([^/\s@]+/\S*)\Z", address)
    if not match:
        return address
    login = re.sub(r"\$\{([A-Z0-9_]+)\}", lambda name: os.environ.get(name[1], name[0]), match[3])
    user, _, password = (urllib.parse.unquote(word) for word in login.partition(":"))
    header = base64.b64encode(("%s:%s" % (user, password)).encode()).decode()
    number = int(os.environ.get("GIT_CONFIG_COUNT", "0"))
    place = match[4].partition("#")[0]
    place = place.rpartition("@")[0] or place
    # Of the values for one address git sends all, up to the last empty one: a server refuses two logins.
    for part in (os.path.dirname(place), place):
        for value in ("", "Authorization: Basic " + header):
            os.environ["GIT_CONFIG_KEY_%d" % number] = "http.%s%s/.extraHeader" % (match[2], part)
            os.environ["GIT_CONFIG_VALUE_%d" % number] = value
            number += 1
    os.environ["GIT_CONFIG_COUNT"] = str(number)
    return match[1] + match[2] + match[4]


def put_git_logins(plan: "dict[str, Any]") -> None:
    """Take the logins of git repositories out of the files for uv."""
    for key, path in (("requirements", WITHOUT_LOGINS), ("constraints", WITHOUT_LOGINS + ".constraints")):
        with open(plan[key], encoding="utf-8") as file:
            text = file.read()
        changed = re.sub(r"git\+https?://\S+", lambda match: put_git_login(match[0]), text)
        if changed != text:
            with open(path, "w", encoding="utf-8") as file:
                file.write(changed)
            plan[key] = path


def main() -> None:
    """Do what the plan says."""
    with open(sys.argv[1], encoding="utf-8") as file:
        plan = json.load(file)
    put_git_logins(plan)
    if plan["pythons"]:
        print()
        print("train-classifier:" + json.dumps({"pythons": fitting_pythons(plan)}))
    else:
        sys.exit(install(plan))


main()
