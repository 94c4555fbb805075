"""The common causes of a failed build or training, recognised in a program's output.

`CAUSES` is the table; docs/troubleshooting.md is checked against it. To add a cause, add an entry: a test
looks for the cause in its example. The output is untrusted: only its end is read, and a hint has only fixed
sentences, names from `debian_names`, and names of a checked form.
"""

import dataclasses
import re
from collections.abc import Iterator, Sequence
from typing import Callable, Optional

from train_classifier.core import requirements_file
from train_classifier.core.job import WORKSPACE
from train_classifier.core.options import show_option
from train_classifier.core.project.tables import normal_name
from train_classifier.core.text import show_bytes, without_escapes
from train_classifier.worker.system import debian_names

#: The end of the output that is read: bytes, lines, and characters of a line.
TAIL_BYTES = 1 << 16
MOST_LINES = 300
MOST_CHARACTERS = 1000
#: Lines that are read where no traceback shows where the final message begins.
PLAIN_LINES = 20
HEADER = "Traceback (most recent call last):"
DIRECT_CAUSE = "The above exception was the direct cause of the following exception:"
#: Exceptions that say only that another program or process failed: its own message is above.
CHILD_FAILED = re.compile(
    r"(?:\w+\.){0,9}(?:CalledProcessError|ChildFailedError|ProcessExitedException|BrokenProcessPool|InductorError)\b"
)
#: torchrun and PyTorch's own hook write the process before each line.
RANK = re.compile(r"\[(?:rank|default)[0-9]{1,6}\]: ?")
PATH = re.compile(r"[\w./-]{1,200}\Z", re.ASCII)
VERSION = re.compile(r"[0-9][0-9a-z.+]{0,40}\Z")
#: Beginnings of paths that are no data of the host.
NOT_DATA = (
    f"{WORKSPACE}/", "/checkpoints/", "/cache/", "/tmp/", "/usr/", "/lib", "/bin/", "/opt/", "/etc/",
    "/proc/", "/sys/", "/dev/", "artefacts/",
)  # fmt: skip

#: Names of NumPy that its release 1.24 removed.
REMOVED_IN_1_24 = ("bool", "int", "float", "complex", "object", "str", "long", "unicode", "typeDict")


@dataclasses.dataclass(frozen=True)
class Explanation:
    """A recognised cause: its topic, what happened, and what to do."""

    topic: str
    reason: str
    hint: str


@dataclasses.dataclass(frozen=True)
class Circumstances:
    """What is known about the job whose program failed."""

    model: str
    network: bool = True
    #: Names of the data folders below /data.
    data: Sequence[str] = ()
    has_gpu: bool = False
    shm_bytes: int = 0
    pids: int = 0
    #: `name==version` of each Python distribution that the program sees.
    packages: Sequence[str] = ()
    #: The file that the packages come from; "" for MODEL/requirements.txt.
    chosen_file: str = ""
    #: Text of the requirements.txt at the top of the repository.
    top_requirements: str = ""
    #: Tells whether the repository has a file or a folder, given as its parts.
    in_repository: Callable[[Sequence[str]], bool] = lambda parts: False
    #: Returns a sentence about the job's cards and who uses them.
    cards: Callable[[], str] = lambda: ""

    @property
    def packages_file(self) -> str:
        """Return the file that names the model's Debian packages."""
        return f"{self.model}/apt-pkgs.txt"

    @property
    def place_to_edit(self) -> str:
        """Return where a Python package is added."""
        return requirements_file.place_to_edit(self.requirements_file)

    @property
    def requirements_file(self) -> str:
        """Return the file that names the model's Python packages."""
        return self.chosen_file or f"{self.model}/requirements.txt"


#: Returns reason and hint for a matching line, None when the line is not about this cause after all.
Explain = Callable[["re.Match[str]", Circumstances], Optional[tuple[str, str]]]


@dataclasses.dataclass(frozen=True)
class Cause:
    """One entry of the table; the docs show its title, its remedy, and the beginning of its example."""

    title: str
    #: Its anchor on the page; the link to it is printed.
    topic: str
    #: A regular expression, searched in each line.
    pattern: str
    explain: Explain
    #: A real message.
    example: str
    remedy: str
    #: Whether a build of the environment can fail in this way, too.
    in_builds: bool = False


def find(output: str, circumstances: Circumstances, in_build: bool = False) -> Optional[Explanation]:
    """Return the cause that the end of a program's output names; None when no cause is recognised."""
    causes = [cause for cause in CAUSES if cause.in_builds or not in_build]
    for line in final_lines(output, all_lines=in_build):
        for cause in causes:
            match = re.search(cause.pattern, line, re.ASCII)
            explanation = cause.explain(match, circumstances) if match else None
            if explanation is not None:
                return Explanation(cause.topic, *explanation)
    return None


def final_lines(output: str, all_lines: bool = False) -> Iterator[str]:
    """Yield the lines that may name the cause of the end, the last one first.

    These are the lines from the last traceback on, with the tracebacks that it names as its direct cause, so
    that earlier warnings are not mistaken for the cause. With `all_lines` all of them are returned.
    """
    lines = [_plain(line) for line in output[-TAIL_BYTES:].split("\n")[-MOST_LINES:]]
    start = 0 if all_lines else _index_of_first(lines)
    return reversed(lines[start:])


def _plain(line: str) -> str:
    """Return a line as a terminal shows it at last, shortened, without the name of a process before it."""
    text = without_escapes(line[:MOST_CHARACTERS].rstrip("\r").rpartition("\r")[2]).rstrip()
    rank = RANK.match(text)
    return text[rank.end() :] if rank else text


def _index_of_first(lines: Sequence[str]) -> int:
    """Return the index of the first final line."""
    headers = [
        index
        for index, line in enumerate(lines)
        if line == HEADER and not (index and lines[index - 1].startswith("Exception ignored in"))
    ]
    if not headers:
        return max(len(lines) - PLAIN_LINES, 0)
    if any(CHILD_FAILED.match(line) for line in lines[headers[-1] :]):
        return 0
    start = headers.pop()
    while headers and DIRECT_CAUSE in lines[max(start - 3, 0) : start]:
        start = headers.pop()
    return start


def _add_package(package: str, job: Circumstances) -> str:
    return f"add the line {package} to {job.packages_file}"


def _library(match: "re.Match[str]", job: Circumstances) -> Optional[tuple[str, str]]:
    # TensorFlow warns in this way, and goes on without the library.
    if "dlerror: " in match.string:
        return None
    name = match["name"]
    reason = f"the shared library {name} is missing in the image"
    package = debian_names.library_package(name)
    if package:
        hint = _add_package(package, job)
        if any(pin.startswith("opencv-python==") for pin in job.packages):
            hint += f", or put opencv-python-headless instead of opencv-python into {job.requirements_file}"
        return reason, hint
    if name.startswith("libcuda.so"):
        gpu = "see train-classifier doctor" if job.has_gpu else f"the job has none: {show_option('gpus')} 1"
        return reason, f"it belongs to the driver of the GPU; {gpu}"
    if re.match(r"lib(?:cu|nv|nccl)", name):
        return (
            reason,
            f"it belongs to CUDA: choose an image with this version of CUDA ({show_option('image')})",
        )
    return (
        reason,
        f"add the Debian package that has it to {job.packages_file}; apt-file search {name} names it",
    )


def _program(match: "re.Match[str]", job: Circumstances) -> Optional[tuple[str, str]]:
    name = "cmake" if match["cmake"] else match["name"].rpartition("/")[2]
    package = debian_names.PROGRAMS.get(name)
    if package is None:
        return None
    return f"the program {name} is missing in the image", _add_package(package, job)


def _git(match: "re.Match[str]", job: Circumstances) -> tuple[str, str]:
    return "the program git is missing in the image", _add_package("git", job)


def _header(match: "re.Match[str]", job: Circumstances) -> Optional[tuple[str, str]]:
    package = debian_names.HEADERS.get(match["name"])
    reason = "a C header is missing in the image"
    if package is None:
        return reason, f"add the Debian package that has it, its name ends in -dev, to {job.packages_file}"
    return f"the C header {match['name']} is missing in the image", _add_package(package, job)


def _compiler(match: "re.Match[str]", job: Circumstances) -> tuple[str, str]:
    return "a C or C++ compiler is missing in the image", _add_package("g++", job)


def _cuda_compiler(match: "re.Match[str]", job: Circumstances) -> tuple[str, str]:
    return (
        "the image has no CUDA compiler (nvcc)",
        f"choose an image with it ({show_option('image')}): a pytorch/pytorch:…-devel with the CUDA "
        "of your PyTorch, or nvidia/cuda:…-devel; or name a wheel of the package (NAME @ https://….whl)",
    )


def _other_cuda(match: "re.Match[str]", job: Circumstances) -> tuple[str, str]:
    return (
        f"the image's compiler is of CUDA {match['image']}, and PyTorch was built with another CUDA",
        f"choose an image with PyTorch's CUDA ({show_option('image')}), or require a PyTorch that was built "
        f"with CUDA {match['image']} in {job.place_to_edit}",
    )


def _rust(match: "re.Match[str]", job: Circumstances) -> tuple[str, str]:
    return (
        "a Rust compiler is missing in the image",
        f"{_add_package('cargo', job)}, or ask for a version that has a wheel",
    )


def _other_name(match: "re.Match[str]", job: Circumstances) -> Optional[tuple[str, str]]:
    name = debian_names.distribution(match["name"])
    if name is None:
        return None
    return f"the package {match['name']} was given up", f"write {name} instead of it in {job.place_to_edit}"


def _other_torch(match: "re.Match[str]", job: Circumstances) -> tuple[str, str]:
    return (
        "a package was built for another PyTorch than the one that is installed",
        "leave the version of that package out, or require versions that belong together (torchvision 0.N+15 "
        f"and torchaudio 2.N for torch 2.N) in {job.place_to_edit}",
    )


def _old_numpy(match: "re.Match[str]", job: Circumstances) -> Optional[tuple[str, str]]:
    if match["name"] and match["name"] not in REMOVED_IN_1_24:
        return None
    line = "numpy<1.24" if match["name"] else "numpy<2"
    return "a package needs an older NumPy", f"add the line {line} to {job.place_to_edit}"


def _other_tensorflow(match: "re.Match[str]", job: Circumstances) -> Optional[tuple[str, str]]:
    return (
        f"{match['module']} was built for another TensorFlow",
        f"write its version for this TensorFlow, as tensorflow-text==2.N.*, into {job.place_to_edit}",
    )


def _old_keras(match: "re.Match[str]", job: Circumstances) -> Optional[tuple[str, str]]:
    return (
        "a package needs Keras 2",
        f"add the line tensorflow<2.16 to {job.place_to_edit}, or take a newer version of that package",
    )


def _other_version(match: "re.Match[str]", job: Circumstances) -> Optional[tuple[str, str]]:
    name = match["name"]
    top = name.partition(".")[0]
    if match["path"].startswith(f"{WORKSPACE}/") or not debian_names.is_module(name):
        return None
    distribution = (debian_names.distribution(name) or top).partition("<")[0]
    pins = (pin.partition("==")[::2] for pin in job.packages)
    version = next((version for pin, version in pins if normal_name(pin) == normal_name(distribution)), "")
    example = f", as {distribution}<{version}" if VERSION.match(version) else ""
    return (
        f"the installed {distribution} is another version than a package needs: {match['what']} is missing",
        f"require another version of {distribution}{example}, or a newer one of that package in "
        f"{job.place_to_edit}",
    )


def _not_a_model(match: "re.Match[str]", job: Circumstances) -> Optional[tuple[str, str]]:
    if match["name"] != job.model:
        return None
    if match["main"]:
        return f"the package {job.model} cannot be started", f"write its program into {job.model}/__main__.py"
    return f"there is no module {job.model} at the top of the repository", "give MODEL as it stands there"


def _module(match: "re.Match[str]", job: Circumstances) -> Optional[tuple[str, str]]:
    name = match["name"]
    if not debian_names.is_module(name):
        return None
    reason, top = f"the Python module {name} is missing", name.partition(".")[0]
    for folder in (job.model, "src"):
        if job.in_repository((folder, f"{top}.py")) or job.in_repository((folder, top)):
            if folder == job.model:
                return reason, f"the repository has it in {folder}/: import it as {folder}.{name}"
            return (
                reason,
                f"it is in {folder}/: {show_option('environment')} PYTHONPATH={WORKSPACE}/src",
            )
    distribution = debian_names.distribution(name)
    names = {normal_name(word) for word in (top, (distribution or top).partition("<")[0])}
    installed = next((pin for pin in job.packages if normal_name(pin.partition("==")[0]) in names), None)
    if installed and "." in name:
        return (
            reason,
            f"{installed} is installed and lacks it: ask for another version in {job.requirements_file}",
        )
    listed = _listed(job.top_requirements, names)
    if listed:
        return reason, (
            f"requirements.txt at the top of the repository names {listed}, but only {job.requirements_file} "
            f"is installed: copy the line to {job.place_to_edit}"
        )
    if distribution is None and top in debian_names.STANDARD_MODULES:
        return reason, _add_package(debian_names.STANDARD_MODULES[top], job)
    if distribution is None:
        return reason, f"add the Python package that has it to {job.place_to_edit}"
    line = "the line " if job.place_to_edit.endswith(".txt") else ""
    return reason, f"add {line}{distribution} to {job.place_to_edit}"


def _listed(requirements: str, names: set[str]) -> Optional[str]:
    """Return the first of these distributions that a requirements file names."""
    for line in requirements.splitlines():
        match = re.match(r"[A-Za-z0-9][A-Za-z0-9._-]{0,100}", line)
        if match and normal_name(match[0].rstrip("._-")) in names:
            return match[0].rstrip("._-")
    return None


def _path(match: "re.Match[str]", job: Circumstances) -> Optional[tuple[str, str]]:
    path = match["name"]
    # A bare word may be a program.
    if path.startswith(NOT_DATA) or not re.search(r"[/.]", path):
        return None
    shown_path = path if PATH.match(path) else "a path"
    folders = ", ".join(f"/data/{name}" for name in job.data)
    data = f"{show_option('data')} FOLDER:NAME, which the model reads as /data/NAME" + (
        folders and f"; the job has {folders}"
    )
    if path.startswith("/"):
        return (
            f"the model opens {shown_path}, which does not exist in the container",
            f"give the folder of the host that has it: {data}",
        )
    reason = f"the model opens {shown_path}, which is not there"
    if shown_path == path and job.in_repository((job.model, *path.split("/"))):
        return reason, f"it is in {job.model}/, and relative paths start at the top of the repository"
    return reason, (
        "relative paths start at the top of the repository, without what .trainignore leaves out; data that "
        f"lie elsewhere on the host: {data}"
    )


def _shared_memory(match: "Optional[re.Match[str]]", job: Circumstances) -> tuple[str, str]:
    return (
        f"shared memory is full (/dev/shm of {show_bytes(job.shm_bytes)})",
        f"raise {show_option('shm_size')}, or let the data loader use fewer workers",
    )


def _gpu_memory(match: "re.Match[str]", job: Circumstances) -> Optional[tuple[str, str]]:
    if not job.has_gpu or "device:CPU" in match.string:
        return None
    hint = f"use a smaller batch or model, or ask for a larger card ({show_option('min_vram')})"
    return "the GPU's memory is full", "; ".join(filter(None, (job.cards(), hint)))


def _no_gpu(match: "re.Match[str]", job: Circumstances) -> tuple[str, str]:
    if job.has_gpu:
        return (
            "the framework finds no GPU",
            f"try another image ({show_option('image')}), or a framework that suits the driver",
        )
    return "the model needs a GPU, and the job has none", f"give it one: {show_option('gpus')} 1"


def _input(match: "re.Match[str]", job: Circumstances) -> tuple[str, str]:
    return (
        "the model reads an answer from a terminal, and a job has none",
        f"pass the value as an argument or a variable ({show_option('environment')}), and do not "
        "call input()",
    )


def _download(match: "re.Match[str]", job: Circumstances) -> tuple[str, str]:
    if not job.network:
        return (
            "the model downloads something, and the job has no network",
            f"allow it ({show_option('network')} full), or give what it downloads with {show_option('data')}",
        )
    return (
        "a server cannot be reached: its name is not resolved, or there is no route to it",
        "check the host's network, its proxies and CA bundle (environment, ca_bundle in host.json), or give "
        f"what is downloaded with {show_option('data')}",
    )


def _threads(match: "re.Match[str]", job: Circumstances) -> tuple[str, str]:
    return (
        f"no more processes or threads can be started (limit {job.pids})",
        f"raise {show_option('pids')}, or use fewer workers and threads",
    )


SHARED_MEMORY = "shared-memory"
CAUSES = (
    Cause(
        "A shared library is missing",
        "missing-library",
        r"(?<![\w+.-])(?P<name>lib[\w+.-]{1,80}?\.so(?:\.\d{1,9}){0,4}): cannot open shared object file",
        _library,
        "ImportError: libGL.so.1: cannot open shared object file: No such file or directory",
        "add its Debian package (`libgl1`, `libglib2.0-0`, `libgomp1`, …) to `MODEL/apt-pkgs.txt`",
        in_builds=True,
    ),
    Cause(
        "CUDA's compiler is missing",
        "cuda-compiler",
        (
            r"CUDA_HOME environment variable is not set|nvcc was not found|No CUDA toolset found|"
            r"Failed to find nvcc|CUDA could not be found on your system|Could NOT find CUDA|"
            r"fatal error: (?:cuda\w*|cublas\w*|cusparse|nvrtc)\.h: No such file|"
            r"No such file or directory: '[\w/.+-]{0,100}nvcc'|nvcc: (?:command )?not found"
        ),
        _cuda_compiler,
        "OSError: CUDA_HOME environment variable is not set. Please set it to your CUDA install root.",
        "another `--image`: a `pytorch/pytorch:…-devel` with the CUDA of your PyTorch, or "
        "`nvidia/cuda:…-devel`; or name a wheel of the package",
        in_builds=True,
    ),
    Cause(
        "A C header is missing",
        "missing-header",
        r"fatal error: (?P<name>[\w/.+-]{1,100}): No such file or directory",
        _header,
        "demo.c:1:10: fatal error: Python.h: No such file or directory",
        "add its Debian package (`python3-dev`, …) to `MODEL/apt-pkgs.txt`",
        in_builds=True,
    ),
    Cause(
        "A compiler is missing",
        "missing-compiler",
        (
            r"Failed to find C compiler|No working C\+\+ compiler found|Unknown compiler\(s\): |"
            r"CMAKE_CXX?X?_COMPILER not set|No CMAKE_CX?X?_COMPILER could be found|linker `cc` not found"
        ),
        _compiler,
        "RuntimeError: Failed to find C compiler. Please specify via CC environment variable",
        "add `g++` to `MODEL/apt-pkgs.txt`",
        in_builds=True,
    ),
    Cause(
        "A Rust compiler is missing",
        "rust-compiler",
        r"can't find Rust compiler|Cargo, the Rust package manager, is not installed",
        _rust,
        "error: can't find Rust compiler",
        "add `cargo` to `MODEL/apt-pkgs.txt`, or ask for a version that has a wheel",
        in_builds=True,
    ),
    Cause(
        "CUDA's compiler and PyTorch differ",
        "other-cuda",
        r"The detected CUDA version \((?P<image>[\d.]{1,10})\) mismatches the version that was used to",
        _other_cuda,
        "The detected CUDA version (11.8) mismatches the version that was used to compile",
        "an `--image` with the CUDA that PyTorch was built with, or a PyTorch for that of the image",
        in_builds=True,
    ),
    Cause(
        "A package has another name now",
        "renamed-package",
        r"The '(?P<name>[a-z][a-z0-9-]{0,60})' PyPI package is deprecated, use '",
        _other_name,
        "The 'sklearn' PyPI package is deprecated, use 'scikit-learn'",
        "write the new name, here `scikit-learn`",
        in_builds=True,
    ),
    Cause(
        "A package was built for another PyTorch",
        "other-pytorch",
        (
            r"undefined symbol: _Z\w*(?:3c10|2at|5torch)|operator torchvision::nms does not exist|"
            r"PyTorch and \w{1,60} were compiled with different CUDA"
        ),
        _other_torch,
        "RuntimeError: operator torchvision::nms does not exist",
        "versions that belong together (torchvision 0.N+15 and torchaudio 2.N for torch 2.N)",
    ),
    Cause(
        "A package needs an older NumPy",
        "older-numpy",
        (
            r"module 'numpy' has no attribute '(?P<name>\w{1,20})'|"
            r"`np\.\w{1,20}` was removed in the NumPy 2|"
            r"numpy\.dtype size changed, may indicate binary incompatibility|"
            r"numpy\.core\.multiarray failed to import|_ARRAY_API not found|"
            r"A module that was compiled using NumPy 1\.x cannot be run in"
        ),
        _old_numpy,
        "AttributeError: module 'numpy' has no attribute 'float'.",
        "add `numpy<1.24`, here, or `numpy<2` to `MODEL/requirements.txt`",
    ),
    Cause(
        "A package was built for another TensorFlow",
        "other-tensorflow",
        r"NotFoundError: \S{0,300}/(?P<module>tensorflow_\w{1,40})/\S{1,300}\.so: undefined symbol",
        _other_tensorflow,
        "NotFoundError: /opt/environment/tensorflow_text/python/ops/_x.so: undefined symbol: _ZN6tflite",
        "write its version for this TensorFlow, as `tensorflow-text==2.19.*`",
    ),
    Cause(
        "A package needs Keras 2",
        "keras-2",
        r"No module named 'keras\.(?:src\.)?engine\b",
        _old_keras,
        "ModuleNotFoundError: No module named 'keras.src.engine'",
        "add `tensorflow<2.16` to `MODEL/requirements.txt`",
    ),
    Cause(
        "A package needs another version of one that it imports",
        "other-version",
        (
            r"^ImportError: cannot import name '(?P<what>\w{1,100})' from '(?P<name>[\w.]{1,200})' "
            r"\((?P<path>/[^()]{1,300})\)$"
        ),
        _other_version,
        "ImportError: cannot import name 'cached_download' from 'huggingface_hub' (/opt/environment/hub.py)",
        "require another version, here `huggingface-hub<0.26`, or a newer one of the package that imports it",
    ),
    Cause(
        "Git is missing",
        "missing-git",
        r"Git executable not found|Bad git executable|Cannot find command 'git'",
        _git,
        "ImportError: Bad git executable.",
        "add `git` to `MODEL/apt-pkgs.txt`",
        in_builds=True,
    ),
    Cause(
        "A program is missing",
        "missing-program",
        (
            r"(?:error: command '|FileNotFoundError: \[Errno 2\] No such file or directory: '|: )"
            r"(?P<name>[\w/.+-]{1,100}?)"
            r"(?:' failed: No such file or directory|: command not found|: not found|'$)|"
            r"(?P<cmake>CMake (?:must be|is not) installed|Failed to install temporary CMake)"
        ),
        _program,
        "FileNotFoundError: [Errno 2] No such file or directory: 'ffmpeg'",
        "add its Debian package to `MODEL/apt-pkgs.txt`",
        in_builds=True,
    ),
    Cause(
        "The model cannot be started",
        "not-a-model",
        r": No module named (?P<name>\w{1,100})(?P<main>\.__main__)?(?:;|$)",
        _not_a_model,
        "/usr/bin/python3: No module named MODEL.__main__; 'MODEL' is a package and cannot be directly "
        "executed",
        "a model is started by `python -m MODEL`: write its program into `MODEL/__main__.py`",
    ),
    Cause(
        "A Python module is missing",
        "missing-module",
        r"^(?:\w{1,100}: )?(?:ModuleNotFoundError|ImportError): No module named '(?P<name>[\w.]{1,200})'",
        _module,
        "ModuleNotFoundError: No module named 'sklearn'",
        "add its distribution, here `scikit-learn`, to `MODEL/requirements.txt`; modules of the repository "
        "are imported from its top: `from MODEL import helpers`",
    ),
    Cause(
        "Data are not there",
        "missing-data",
        (
            r"^(?:\w+\.){0,9}(?:FileNotFoundError: \[Errno 2\] No such file or directory: '|"
            r"NotFoundError: Could not find directory )(?P<name>[^']{1,300}?)'?$"
        ),
        _path,
        "FileNotFoundError: [Errno 2] No such file or directory: '/home/me/data/train.csv'",
        "give the host's folder with `--data FOLDER:NAME`, and let the model read `/data/NAME`",
    ),
    Cause(
        "Shared memory is full",
        SHARED_MEMORY,
        (
            r"is killed by signal: Bus error|insufficient shared memory \(shm\)|"
            r"(?:write to|allocate shared memory\(shm\) for|bytes from) file </torch_.{1,80}"
            r"(?:No space left|Cannot allocate)"
        ),
        _shared_memory,
        "RuntimeError: DataLoader worker (pid 77) is killed by signal: Bus error. It is possible that "
        "dataloader's workers are out of shared memory. Please try to raise your shared memory limit.",
        "raise `--shm-size`, or use fewer workers of the data loader",
    ),
    Cause(
        "The GPU's memory is full",
        "gpu-memory",
        (
            r"CUDA out of memory|CUDA error: out of memory|CUDA_ERROR_OUT_OF_MEMORY|"
            r"OOM when allocating tensor|RESOURCE_EXHAUSTED: |CUBLAS_STATUS_ALLOC_FAILED"
        ),
        _gpu_memory,
        "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 300.00 GiB. GPU 0 has a total "
        "capacity of 139.80 GiB of which 139.29 GiB is free.",
        "a smaller batch, or `--min-vram`; the hint names the card, its memory and who else uses it",
    ),
    Cause(
        "There is no GPU",
        "job-without-gpu",
        r"Found no NVIDIA driver on your system|No CUDA GPUs are available|not compiled with CUDA enabled",
        _no_gpu,
        "RuntimeError: Found no NVIDIA driver on your system. Please check that you have an NVIDIA GPU",
        "`--gpus 1`",
    ),
    Cause(
        "There is no terminal",
        "no-terminal",
        r"^EOFError: EOF when reading a line$",
        _input,
        "EOFError: EOF when reading a line",
        "no `input()`: pass the value after `--`, or with `--env`",
    ),
    Cause(
        "There is no network",
        "no-network",
        (
            r"Temporary failure in name resolution|Name or service not known|"
            r"No address associated with hostname|Network is unreachable|Could not resolve host|"
            r"[Cc]heck your connection and try again|We couldn't connect to 'https?://"
        ),
        _download,
        "urllib.error.URLError: <urlopen error [Errno -3] Temporary failure in name resolution>",
        "`--network full`, where it was switched off; the host's network and proxies; or `--data`",
        in_builds=True,
    ),
    Cause(
        "Too many processes",
        "processes",
        r"can't start new thread|pthread_create failed|BlockingIOError: \[Errno 11\] Resource temporarily",
        _threads,
        "RuntimeError: can't start new thread",
        "raise `--pids`, or use fewer workers",
    ),
)


def of_signal(signal: Optional[str], circumstances: Circumstances) -> Optional[Explanation]:
    """Return the cause that a signal alone names."""
    if signal != "SIGBUS" or not circumstances.shm_bytes:
        return None
    reason, hint = _shared_memory(None, circumstances)
    return Explanation(SHARED_MEMORY, f"probably {reason}", hint)
