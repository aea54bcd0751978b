"""
From two cores to a cluster
===========================

A search over layers, and a fit from files, are divided by joblib, which sends the parts
to other processes of this machine or to the workers of a cluster. We do the same work
in one process, in two, and on a small cluster of Dask, and watch who is busy.
"""

# %%
# A folder that all can see
# -------------------------
#
# Workers are sent handles: names of files, and places in them. So they need the folder
# under the same name. Here are 64 networks of the digit jungle. To give workers
# something to do, hidden layers are made eight times as wide by copying units; see
# :ref:`sphx_glr_auto_examples_plot_memory.py`.

import tempfile

import numpy as np

from skprobex import LayerSearchCV, ProbeXClassifier, open_models, save_models
from skprobex.datasets import make_digit_jungle

jungle = make_digit_jungle(n_models=64, n_classes=40)
folder = tempfile.mkdtemp()
for i, about in enumerate(jungle.models.metadata):
    layers = {}
    for name in ("hidden1.weight", "hidden2.weight"):
        rows = np.repeat(jungle.layers[name][i : i + 1], 8, axis=1)
        layers[name] = np.repeat(rows, 8, axis=2) / np.float32(8)
    save_models(folder, layers, [about], names=[f"model_{i:04d}"])

models = open_models(folder)
Y = models.labels("trained_on").y
for name in models.layers:
    print(f"{models[name]}: {models[name].nbytes / 1e6:.0f} MB")

# %%
# The work
# --------
#
# First a search for the layer that knows, then one fit on it. Nothing in this function
# says where it runs.


def label_accuracy(estimator, W, Y):
    return np.mean(estimator.predict(W) == Y)


def search_and_fit(events):
    clf = ProbeXClassifier(views=("log_xtx",), random_state=0)
    search = LayerSearchCV(clf, cv=2, scoring=label_accuracy, refit=False)
    events.append(("search", time.perf_counter()))
    search.fit(models, Y)
    events.append(("fit", time.perf_counter()))
    clf.fit(models[search.best_layer_], Y)
    events.append(("end", time.perf_counter()))
    return search.layer_scores_, clf.coef_


# %%
# Who is busy
# -----------
#
# A thread notes, ten times a second, how much time of the processor this process, the
# *driver*, and its workers have had so far.

import os
import threading
import time

import psutil


class Watch(threading.Thread):
    """Note the clock and the processors' seconds until the block is left."""

    def __init__(self, workers):
        super().__init__()
        self.processes = [psutil.Process(pid) for pid in (os.getpid(), *workers)]

    def __enter__(self):
        self.clock, self.seconds, self.is_over = [], [], threading.Event()
        self.start()
        return self

    def __exit__(self, *error):
        self.is_over.set()
        self.join()

    def run(self):
        while not self.is_over.wait(0.1):
            self.clock.append(time.perf_counter())
            self.seconds.append([sum(p.cpu_times()[:2]) for p in self.processes])


watches, results, events = {}, {}, {}


def load():
    """Load skprobex beforehand, so that this is not taken for work."""
    import skprobex  # noqa: F401

    return os.getpid()


def run(where, workers=()):
    """Do the work, watched; say whether it came out as in one process."""
    events[where] = []
    with Watch(workers) as watches[where]:
        results[where] = search_and_fit(events[where])
    scores, coef = results["one process"]
    same = results[where][0] == scores and np.array_equal(results[where][1], coef)
    (_, start), (_, middle), (_, end) = events[where]
    print(
        f"{where:<22} search {middle - start:.1f} s, fit {end - middle:.1f} s", end=""
    )
    print(f", the same results: {same}")


run("one process")

# %%
# Two processes
# -------------
#
# joblib's own backend, "loky", starts processes once and keeps them.

import joblib

with joblib.parallel_config("loky", n_jobs=2):
    workers = set(joblib.Parallel()(joblib.delayed(load)() for _ in range(2)))
    run("two processes", workers)

# %%
# A cluster
# ---------
#
# A scheduler and two workers, each a process of its own. Yours will be on other
# machines, and you will only connect: ``Client("tcp://scheduler:8786")``. Here they
# load skprobex as they start, as ``dask worker --preload skprobex`` does, and so does
# the scheduler, which reads what it passes on.

from distributed import Client, SubprocessCluster

# In a notebook, or where a script begins with ``if __name__ == "__main__":``, a
# ``LocalCluster`` does as well.
settings = {
    "n_workers": 2,
    "threads_per_worker": 1,
    "dashboard_address": None,
    "worker_kwargs": {"preload": "skprobex"},
    "scheduler_kwargs": {"preload": "skprobex"},
}
with SubprocessCluster(**settings) as cluster, Client(cluster) as client:
    client.wait_for_workers(2)
    workers = client.run(os.getpid).values()
    with joblib.parallel_config("dask"):
        run("cluster of two workers", workers)

# %%
# The picture
# -----------
#
# The darker, the busier; a line parts the search from the fit.

import matplotlib.pyplot as plt

fig, axes = plt.subplots(
    3, 1, figsize=(9, 4.5), layout="constrained", sharex=True, height_ratios=[1, 3, 3]
)
for ax, (where, watch) in zip(axes, watches.items(), strict=True):
    clock = np.array(watch.clock) - events[where][0][1]
    seconds = np.array(watch.seconds)
    spent = seconds[-1] - seconds[0]
    busy = np.diff(seconds, axis=0) / np.diff(clock)[:, None]
    names = ["driver", "worker 1", "worker 2"][: len(spent)]
    edges = np.arange(len(names) + 1)
    ax.pcolormesh(clock, edges, busy.T, cmap="Blues", vmin=0, vmax=1)
    ax.set_yticks(edges[:-1] + 0.5, names)
    ax.axvline(events[where][1][1] - events[where][0][1], color="tab:orange")
    ax.invert_yaxis()
    ax.set_title(where, loc="left", fontsize="medium")
    shares = ", ".join(f"{n} {s:.1f} s" for n, s in zip(names, spent, strict=True))
    print(f"{where:<22} {shares}")
axes[-1].set(xlabel="seconds")
fig.savefig("cluster.png", dpi=120)
print("figure: cluster.png")

# %%
# What was learnt
# ---------------
#
# Nothing in the work says where it runs, and it comes out the same everywhere, to the
# bit. In a search each worker has a layer of its own, and the driver next to nothing to
# do. In a fit the workers read, centre and decompose batches, and the driver adds up
# what they send and solves: that stays with it, and is why more workers help a fit less
# than a search. Work as small as this is not done sooner, as starting workers takes
# longer than the work. :doc:`The guide to scaling </scaling>` says what it costs for
# larger layers, and what a cluster needs.
