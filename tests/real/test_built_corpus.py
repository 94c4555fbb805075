"""Files of the corpus, built as a job would build them, and imported. They need a package index."""

from __future__ import annotations

import dataclasses
import re
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import docker
import pytest
from docker.types import Mount
from hosts.fleet import uv_binary
from worker_site import CA, Site, image_after, plain_image

from train_classifier.worker.environments.stored_environments import ISOLATED
from train_classifier.worker.state import file_trees
from train_classifier.worker.system import failure_causes

from . import corpus
from .test_corpus import index

__all__ = ["index"]
# A framework of gigabytes takes minutes to fetch and unpack.
pytestmark = [pytest.mark.engine, pytest.mark.timeout(3600)]

#: What a model imports of each file that installs.
IMPORTED = {
    "albumentations": "albumentations, cv2, timm",
    "audio": "librosa, soundfile, numba, resampy",
    "experiment-tracking": "mlflow, wandb, optuna",
    "frozen-tf-2-12-cpu": "tensorflow, matplotlib.pyplot",
    "frozen-tf-2-13": "tensorflow, keras, pandas",
    "frozen-tf-2-15": "tensorflow, keras, tensorboard",
    "gym-rl": "gymnasium, stable_baselines3",
    "hashed-lines": "six",
    "jax-flax": "jax, flax, optax",
    "keras-2-only": "tensorflow, keras, matplotlib.pyplot",
    "keras-image-classifier": "tensorflow, keras, PIL, sklearn",
    "markers-and-comments": "numpy, torch",
    "mnist-tutorial": "tensorflow, numpy, matplotlib.pyplot",
    "numpy-below-2": "numpy, pandas, sklearn, matplotlib.pyplot",
    "numpy-pinned-1-26": "numpy, pandas, scipy, sklearn",
    "old-scikit": "sklearn, joblib",
    "opencv-detector": "cv2, imutils, skimage",
    "pip-freeze-large": "matplotlib.pyplot, pandas, PIL, requests, scipy, sklearn, tqdm",
    "pip-compile-output": "flask, markupsafe._speedups",
    "powershell-utf-16": "numpy, requests, tqdm",
    "pre-releases": "rich, typer",
    "protobuf-3": "google.protobuf, onnx",
    "py38-era": "numpy, pandas, sklearn, matplotlib.pyplot",
    "pytorch-lightning": "torch, lightning, torchmetrics, hydra, omegaconf",
    "pytorch-pinned": "torch, torchvision",
    "pytorch-vision": "torch, torchvision, PIL",
    "sentence-embeddings": "sentence_transformers, faiss, umap",
    "tabular-boosting": "xgboost, lightgbm, catboost, shap",
    "tensorflow-addons": "tensorflow, tensorflow_addons",
    "tensorflow-text-nlp": "tensorflow_text, tensorflow_datasets",
    "tf-2-8": "tensorflow",
    "tf-gpu-2-10": "tensorflow, PIL",
    "tf-keras-legacy": "tf_keras, tensorflow_hub",
    "tfx-probability": "tensorflow_probability",
    "torch-1-10": "torch, torchvision",
    "torch-1-13": "torch, torchvision",
    "transformers-finetune": "transformers, datasets, accelerate, evaluate, sentencepiece",
    "transformers-torch-extra": "transformers, torch, datasets, sklearn",
    "trusted-host": "requests, yaml, tqdm",
    "ultralytics": "ultralytics, seaborn",
    "windows-editor": "numpy, PIL, tqdm",
}
#: Small files of all kinds, for CI: over the image, isolated and with another Python; hashes, an encoding, options.
QUICK = ("hashed-lines", "keras-2-only", "old-scikit", "powershell-utf-16", "trusted-host")
#: Keras 2 imports TensorFlow, which the file does not name: it comes with --full alone.
QUICK_IMPORTS = {"keras-2-only": "numpy, matplotlib.pyplot"}
#: What the image that role training_host makes has below its packages of Python.
SYSTEM = "gcc g++ libc6-dev make python3-dev git libgomp1 libgl1 libglib2.0-0"
C_MODULE = """#include <Python.h>
static PyObject *count(PyObject *self, PyObject *none) { return PyLong_FromLong(3); }
static PyMethodDef methods[] = {{"count", count, METH_NOARGS, ""}, {NULL, NULL, 0, NULL}};
static struct PyModuleDef module = {PyModuleDef_HEAD_INIT, "sides", "", -1, methods};
PyMODINIT_FUNC PyInit_sides(void) { return PyModule_Create(&module); }
"""
SETUP = """from setuptools import Extension, setup
setup(name="shapes", version="1.0", packages=["shapes"], ext_modules=[Extension("shapes.sides", ["shapes/sides.c"])])
"""
#: A cache of more bytes is removed before the next file: each version of torch brings gigabytes.
MOST_CACHE = 12 << 30


@pytest.fixture(scope="module")
def corpus_image(
    engine: docker.DockerClient, base_image: str, request: pytest.FixtureRequest
) -> Iterator[str]:
    """The image below the environments: with --full like that of the role, else Keras as the only framework."""
    full = request.config.getoption("--full")
    framework = "tensorflow-cpu==2.19.0 numpy<2.2 setuptools<82" if full else "keras>=3"
    system = (
        f"apt-get -qq update && apt-get -qq install -y --no-install-recommends {SYSTEM} && " if full else ""
    )
    words = " ".join(f"'{word}'" for word in framework.split())
    install = f"/uv pip install --system --break-system-packages --no-cache --python /usr/bin/python3 {words}"
    with image_after(
        engine, base_image, "corpus", ["sh", "-c", system + install],
        mounts=[Mount("/uv", uv_binary(), "bind", read_only=True), Mount("/ca.pem", str(CA), "bind", read_only=True)],
        environment={"SSL_CERT_FILE": "/ca.pem", "DEBIAN_FRONTEND": "noninteractive"},
    ) as image_of_test:  # fmt: skip
        yield image_of_test


@pytest.fixture(scope="module")
def corpus_site(engine: docker.DockerClient, corpus_image: str) -> Iterator[Site]:
    """One host for all files, which share its cache."""
    folder = Path(tempfile.mkdtemp(prefix="train-classifier-test-", dir="/var/tmp"))
    folder.chmod(0o755)
    site = Site(engine, folder, corpus_image, Path(uv_binary()))
    yield site
    for container in site.containers():
        container.remove(force=True)
    shutil.rmtree(folder)


@pytest.fixture
def emptied(corpus_site: Site, request: pytest.FixtureRequest) -> Iterator[Site]:
    """The host; with --full, what a test built is removed."""
    yield corpus_site
    if not request.config.getoption("--full"):
        return
    for environment in corpus_site.store.envs.iterdir():
        shutil.rmtree(environment)
    if file_trees.disk_usage(None, corpus_site.store.uv_caches) > MOST_CACHE:
        shutil.rmtree(corpus_site.store.uv_caches)
        corpus_site.store.make()


@pytest.mark.parametrize(
    "name", [name if name in QUICK else pytest.param(name, marks=pytest.mark.full) for name in IMPORTED]
)
def test_file_is_built_and_imported(
    name: str,
    index: None,
    emptied: Site,
    engine: docker.DockerClient,
    base_image: str,
    request: pytest.FixtureRequest,
) -> None:
    content = (corpus.HERE / "requirements" / f"{name}.txt").read_bytes()
    code = f"import {IMPORTED[name]}\n"
    if name in QUICK_IMPORTS and not request.config.getoption("--full"):
        code = f"import {QUICK_IMPORTS[name]}\n"
    (emptied.workspace / "m" / "__main__.py").write_text(code)
    # A job has a home, where numba keeps what it compiles of packages that cannot be written to.
    code = f"import os\nos.environ['HOME'] = '/tmp'\n{code}"
    python = re.search(r"3\.\d+\Z", corpus.EXPECTED[name])
    if python is None:
        built = emptied.prepare(content)
        assert built.kind == corpus.EXPECTED[name]
        if name not in corpus.NOT_IMPORTED:
            emptied.run(emptied.find(), built, code)
            return
        with pytest.raises(AssertionError) as raised:
            emptied.run(emptied.find(), built, code)
        cause = failure_causes.find(str(raised.value), failure_causes.Circumstances("m"))
        assert cause is not None
        assert cause.hint.startswith(corpus.NOT_IMPORTED[name])
    else:
        with plain_image(engine, base_image, python[0]) as reference:
            built = emptied.prepare(content, reference, kind=ISOLATED)
            emptied.run(emptied.find(reference), built, code)


def test_every_file_that_installs_is_built() -> None:
    installed = {name for name, end in corpus.EXPECTED.items() if corpus.INSTALLED.match(end)}
    assert set(IMPORTED) == installed
    assert {corpus.EXPECTED[name].partition(" ")[0] for name in QUICK} == {"image", "isolated", "Python"}


@pytest.mark.full
def test_package_with_c_code_is_compiled(index: None, emptied: Site) -> None:
    """The package works without its compiled module, so that module is imported."""
    built = emptied.prepare("--no-binary markupsafe\nmarkupsafe==2.1.5\n")
    program = "import markupsafe._speedups as module; print(module.__file__)"
    assert emptied.run(emptied.find(), built, program).endswith(".so\n")


@pytest.mark.full
def test_compiled_module_of_the_repository_is_in_the_copy(index: None, emptied: Site) -> None:
    package = emptied.workspace / "shapes"
    package.mkdir()
    for folder in (emptied.workspace, package):
        folder.chmod(0o777)
    (package / "__init__.py").touch()
    (package / "sides.c").write_text(C_MODULE)
    (emptied.workspace / "setup.py").write_text(SETUP)
    try:
        built = emptied.prepare("-e .\n")
        workspace = Mount("/workspace", str(emptied.workspace), "bind", read_only=True)
        job = dataclasses.replace(built, mounts=(*built.mounts, workspace))
        program = (
            "import sys; sys.path.insert(0, '/workspace'); from shapes import sides; print(sides.count())"
        )
        assert emptied.run(emptied.find(), job, program) == "3\n"
    finally:
        shutil.rmtree(package)
        (emptied.workspace / "setup.py").unlink()
