"""The package's metadata and dependencies."""

from setuptools import find_packages, setup

TENSORFLOW = [
    # tf.data reads image files; clu's TensorBoard writer imports it. CPU build where
    # there is one: the accelerator belongs to JAX.
    'tensorflow-cpu>=2.21; sys_platform == "linux" and platform_machine == "x86_64"',
    'tensorflow>=2.21; sys_platform != "linux" or platform_machine != "x86_64"',
]

# Orbax asks a bucket by it, for checkpoints on gs://, and does not declare it.
GCS = "google-cloud-storage>=3"

setup(
    name="ddae",
    version="0.1.0",
    description="Deep Dynamic AutoEncoding: masked image modelling in JAX",
    python_requires=">=3.11",
    packages=find_packages(include=["ddae", "ddae.*"]),
    install_requires=[
        "jax>=0.10",
        "flax>=0.12.8",  # the networks
        "optax>=0.2.8",  # AdamW, clipping
        "orbax-checkpoint>=0.12.8",  # COMMIT_FILE atomicity
        "etils[epath]>=1.9",  # paths on gs:// as on a disk; orbax brings it
        "ml_collections>=1.1",  # config files
        "clu>=0.0.12",  # parameter overview, TensorBoard scalars and images
        "tensorboard>=2.19",  # clu's writer imports it and does not declare it
        *TENSORFLOW,
        "tensorflow-datasets>=4.9.10",  # ImageNet, CIFAR and others: builders and files
        "importlib_resources>=6",  # TFDS imports it and does not declare it
        "google-crc32c>=1.5",  # checks TFRecords that are read by offset
        "safetensors>=0.5",  # weights in and out, as arrays alone
        "ml_dtypes>=0.5",  # bfloat16 of PyTorch files; jax brings it
        "filelock>=3.12",  # compiled programs that several processes keep in one place
        "absl-py>=2",  # flags
        "jaxtyping>=0.3",  # shapes in signatures
        "numpy>=2.0",
        "scikit-learn>=1.5",  # the scanned digits of the quickstart
        "matplotlib>=3.9",  # figures
        "pillow>=10",  # writes them
        "scipy>=1.13",  # Student's t; scikit-learn brings it
        "psutil>=5.9",  # whose connections a starting cluster has; TFDS brings it
        "rich>=13",  # progress bars
    ],
    extras_require={
        "tpu": ["jax[tpu]>=0.10", GCS],
        "cuda": ["jax[cuda13]>=0.10"],
        # The compiler of that alone, for benchmarks/plan.py: no cuDNN, cuBLAS or NCCL.
        "cuda-plan": ["jax[cuda13-local]>=0.10", "nvidia-cuda-nvcc>=13"],
        "gcs": [GCS],
        "parquet": ["pyarrow>=17"],  # reads what ddae.data.parquet turns into tar files
        # Live parity with transformers; gigabytes, so not part of `test`.
        "torch": ["torch>=2.6", "transformers>=5.0"],
        "test": [
            "pytest>=8",
            "pytest-xdist>=3.6",  # two at a time
            "hypothesis>=6",  # property-based tests
            "beartype>=0.20",  # checks the shapes in signatures
            "pyarrow>=17",  # ddae.data.parquet
            GCS,
            "trustme>=1.1",  # certificates for the bucket of tests/fake_gcs.py
            "ruff>=0.14",
        ],
    },
)
