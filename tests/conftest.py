"""Settings that must stand before scipy is imported."""

import os

# Many small computations: a second thread would only wait for the first.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# Without it scikit-learn skips its checks on array API input.
os.environ.setdefault("SCIPY_ARRAY_API", "1")
