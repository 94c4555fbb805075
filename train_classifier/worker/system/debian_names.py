"""The Debian packages and Python distributions that have what a program misses, by the names in its messages.

A hint names only entries of these tables, because messages are untrusted output.
"""

import re
from typing import Optional

#: Shared libraries: a regular expression for the file's name, and the Debian package.
LIBRARIES = (
    (r"libGL\.so\.1", "libgl1"),
    (r"lib(?:glib|gthread|gobject|gio|gmodule)-2\.0\.so\.0", "libglib2.0-0"),
    (r"libgomp\.so\.1", "libgomp1"),
    (r"libxcb\.so\.1", "libxcb1"),
    (r"libX11\.so\.6", "libx11-6"),
    (r"libXext\.so\.6", "libxext6"),
    (r"libXrender\.so\.1", "libxrender1"),
    (r"libSM\.so\.6", "libsm6"),
    (r"libICE\.so\.6", "libice6"),
    (r"libEGL\.so\.1", "libegl1"),
    (r"libGLU\.so\.1", "libglu1-mesa"),
    (r"libOSMesa\.so\.8", "libosmesa6"),
    (r"libfontconfig\.so\.1", "libfontconfig1"),
    (r"libfreetype\.so\.6", "libfreetype6"),
    (r"libsndfile\.so(?:\.1)?", "libsndfile1"),
    (r"libportaudio\.so\.2", "libportaudio2"),
    (r"libgfortran\.so\.5", "libgfortran5"),
    (r"libquadmath\.so\.0", "libquadmath0"),
    (r"libopenblas\.so\.0", "libopenblas0"),
    (r"libstdc\+\+\.so\.6", "libstdc++6"),
    (r"libpq\.so\.5", "libpq5"),
    (r"libusb-1\.0\.so\.0", "libusb-1.0-0"),
    (r"libexpat\.so\.1", "libexpat1"),
    (r"libibverbs\.so\.1", "libibverbs1"),
    (r"libnuma\.so\.1", "libnuma1"),
    (r"libopenmpi\.so\.\d+|libmpi\.so\.40", "libopenmpi3"),
)
#: C headers.
HEADERS = {
    "Python.h": "python3-dev",
    "stdio.h": "libc6-dev",
    "stdlib.h": "libc6-dev",
    "limits.h": "libc6-dev",
    "zlib.h": "zlib1g-dev",
    "bzlib.h": "libbz2-dev",
    "lzma.h": "liblzma-dev",
    "ffi.h": "libffi-dev",
    "openssl/ssl.h": "libssl-dev",
    "openssl/opensslv.h": "libssl-dev",
    "curl/curl.h": "libcurl4-openssl-dev",
    "libxml/xpath.h": "libxml2-dev",
    "libxml/xmlversion.h": "libxml2-dev",
    "jpeglib.h": "libjpeg-dev",
    "png.h": "libpng-dev",
    "ft2build.h": "libfreetype-dev",
    "hdf5.h": "libhdf5-dev",
    "netcdf.h": "libnetcdf-dev",
    "gsl/gsl_math.h": "libgsl-dev",
    "fftw3.h": "libfftw3-dev",
    "cblas.h": "libopenblas-dev",
    "geos_c.h": "libgeos-dev",
    "portaudio.h": "portaudio19-dev",
    "sndfile.h": "libsndfile1-dev",
    "libpq-fe.h": "libpq-dev",
    "mysql.h": "default-libmysqlclient-dev",
    "sqlite3.h": "libsqlite3-dev",
    "graphviz/cgraph.h": "libgraphviz-dev",
    "mpi.h": "libopenmpi-dev",
    "yaml.h": "libyaml-dev",
}
#: Programs that models and builds start.
PROGRAMS = {
    "git": "git",
    "git-lfs": "git-lfs",
    "gcc": "gcc",
    "x86_64-linux-gnu-gcc": "gcc",
    "aarch64-linux-gnu-gcc": "gcc",
    "cc": "gcc",
    "g++": "g++",
    "x86_64-linux-gnu-g++": "g++",
    "aarch64-linux-gnu-g++": "g++",
    "c++": "g++",
    "gfortran": "gfortran",
    "make": "make",
    "cmake": "cmake",
    "ninja": "ninja-build",
    "cargo": "cargo",
    "rustc": "rustc",
    "swig": "swig",
    "pkg-config": "pkg-config",
    "pg_config": "libpq-dev",
    "ffmpeg": "ffmpeg",
    "ffprobe": "ffmpeg",
    "sox": "sox",
    "wget": "wget",
    "curl": "curl",
    "unzip": "unzip",
    "dot": "graphviz",
    "tesseract": "tesseract-ocr",
    "java": "default-jre-headless",
}
#: Parts of Python's standard library that Debian packages separately.
STANDARD_MODULES = {"tkinter": "python3-tk", "_tkinter": "python3-tk"}
#: Python distributions whose name is not the one that is imported.
DISTRIBUTIONS = {
    "Bio": "biopython",
    "Crypto": "pycryptodome",
    "MySQLdb": "mysqlclient",
    "OpenSSL": "pyopenssl",
    "PIL": "pillow",
    "attr": "attrs",
    "bs4": "beautifulsoup4",
    "community": "python-louvain",
    "cv2": "opencv-python-headless",
    "dateutil": "python-dateutil",
    "distutils": "setuptools",
    "docx": "python-docx",
    "dotenv": "python-dotenv",
    "faiss": "faiss-cpu",
    "fitz": "pymupdf",
    "git": "gitpython",
    "google.protobuf": "protobuf",
    "hydra": "hydra-core",
    "imblearn": "imbalanced-learn",
    "jwt": "pyjwt",
    "magic": "python-magic",
    "mpl_toolkits": "matplotlib",
    "osgeo": "gdal",
    # setuptools 82 removed this module.
    "pkg_resources": "setuptools<82",
    "psycopg2": "psycopg2-binary",
    "pptx": "python-pptx",
    "ruamel": "ruamel.yaml",
    "serial": "pyserial",
    "skimage": "scikit-image",
    "sklearn": "scikit-learn",
    "slugify": "python-slugify",
    "umap": "umap-learn",
    "usb": "pyusb",
    "yaml": "pyyaml",
    "zmq": "pyzmq",
}
#: Python distributions that are imported by their own name (PEP 503: `_` and `-` are the same).
SAME_NAME = {
    "accelerate", "aiohttp", "albumentations", "click", "datasets", "diffusers", "dm_tree", "einops",
    "evaluate", "fastapi", "flax", "ftfy", "gensim", "gym", "gymnasium", "h5py", "huggingface_hub",
    "imageio", "imgaug", "jax", "joblib", "keras", "kornia", "librosa", "lightgbm", "lightning",
    "lightning_fabric", "loguru", "lxml", "matplotlib", "mlflow", "mlxtend", "monai", "networkx", "nibabel",
    "ninja", "nltk", "numba", "numpy", "omegaconf", "onnx", "onnxruntime", "open_clip", "openpyxl", "optax",
    "optuna", "orjson", "packaging", "pandas", "peft", "plotly", "polars", "protobuf", "psutil", "pyarrow",
    "pycocotools", "pydantic", "pydicom", "pytorch_lightning", "ray", "regex", "requests", "rich",
    "rouge_score", "safetensors", "scipy", "seaborn", "segmentation_models_pytorch",
    "sentence_transformers", "sentencepiece", "setuptools", "shap", "simpleitk", "six", "soundfile",
    "spacy", "statsmodels", "sympy", "tabulate", "tensorboard", "tensorboardX", "tensorflow",
    "tensorflow_addons", "tensorflow_datasets", "tensorflow_hub", "tensorflow_probability", "termcolor",
    "tf_keras", "tifffile", "tiktoken", "timm", "tokenizers", "torch", "torch_geometric", "torchaudio",
    "torchinfo", "torchmetrics", "torchsummary", "torchtext", "torchvision", "tqdm", "transformers",
    "triton", "trl", "ultralytics", "wandb", "xarray", "xgboost", "yacs", "zarr",
}  # fmt: skip

_DOTTED = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,60}(?:\.[A-Za-z_][A-Za-z0-9_]{0,60}){0,8}\Z")


def library_package(name: str) -> Optional[str]:
    """Return the Debian package of a shared library, None when it is not known."""
    return next((package for pattern, package in LIBRARIES if re.fullmatch(pattern, name)), None)


def is_module(name: str) -> bool:
    """Tell whether a text is the dotted name of a Python module, of a moderate length."""
    return bool(_DOTTED.match(name))


def distribution(module: str) -> Optional[str]:
    """Return the Python distribution that has a module, None when it is not known."""
    top = module.partition(".")[0]
    same = top.lower().replace("_", "-") if top in SAME_NAME else None
    return DISTRIBUTIONS.get(".".join(module.split(".")[:2])) or DISTRIBUTIONS.get(top) or same
