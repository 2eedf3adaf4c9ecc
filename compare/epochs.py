"""Our epochs beside CTRAIN's: the same network, images, batch and losses, in turns.

    python -m venv CTRAIN; CTRAIN/bin/pip install CTRAIN
    CTRAIN/bin/pip install --no-deps auto_LiRPA==0.3 onnx2pytorch  # what CTRAIN needs and does not ask for
    python compare/epochs.py --peer CTRAIN/bin/python [--images 10000] [--threads 2] [--rounds 2] [--out FILE]

Real MNIST (ETB_DATA_DIR, or --data-dir), `small`, eps 0.1, Adam, gradients cut at 10, L1 of 1e-6; CROWN-IBP while the
radius grows, without loss fusion. What had to be done to make CTRAIN run is in `peers/ctrain_runs.py`.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from statistics import median

import numpy as np
import torch

from etb_plugin.data import Dataset, load, pixels
from etb_plugin.files import write_json
from etb_plugin.networks import build
from etb_plugin.objectives import Ramp, get_method
from etb_plugin.results import environment
from etb_plugin.training import Settings, train
from etb_plugin.training.allocation import keep_freed_memory

EPS, EPOCHS = 0.1, 4
DETAILS = {"learning_rate": 5e-4, "gradient_clip": 10.0, "l1": 1e-6}
CASES = {"ibp": 1, "crown-ibp": EPOCHS}
"""Methods, and over how many epochs the radius grows."""
WORKER = Path(__file__).parent / "peers" / "ctrain_epochs.py"


def ours(data: Dataset, method: str, ramp: int) -> list[float]:
    """Return the seconds of each epoch but the first."""
    wanted = get_method(method)
    growing = Ramp(0.0, 1.0, 0.0, f"{ramp} epochs", "smooth")
    recipe = replace(wanted.recipe, **DETAILS, eps_ramp=growing, kappa=Ramp(0.0, 0.0), decay_at=())
    if method == "crown-ibp":
        wanted = wanted.changed({"fusion": False})
        recipe = replace(recipe, mix=Ramp(1.0, 0.0, 0.0, f"{ramp} epochs"))
    network = build("small", data.input_shape, data.classes, seed=0)
    run = train(network, replace(wanted, recipe=recipe), data, Settings(EPS, EPOCHS))
    return [epoch.seconds for epoch in run.epochs[1:]]


def theirs(python: str, archive: Path, method: str, ramp: int, threads: int) -> list[float]:
    arguments = [python, "-W", "ignore", WORKER, method, archive, EPS, EPOCHS, ramp, threads]
    done = subprocess.run([str(part) for part in arguments], capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{method}: CTRAIN failed: {done.stderr.strip().splitlines()[-1]}")
    return json.loads(done.stdout.strip().splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peer", required=True, help="the python of an environment with CTRAIN")
    parser.add_argument("--images", type=int, default=10_000)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--data-dir")
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    keep_freed_memory()
    data = load("mnist", data_dir=given.data_dir, train_limit=given.images, test_limit=100)
    found = []
    with tempfile.TemporaryDirectory() as folder:
        archive = Path(folder) / "mnist.npz"
        np.savez(archive, images=pixels(data.train.images).numpy(), labels=data.train.labels.numpy())
        for method, ramp in CASES.items():
            mine, peer = [], []
            for _ in range(given.rounds):
                mine += ours(data, method, ramp)
                peer += theirs(given.peer, archive, method, ramp, given.threads)
            row = {"what": method, "ours_seconds": median(mine), "theirs_seconds": median(peer)}
            row["ratio"] = row["theirs_seconds"] / row["ours_seconds"]
            found.append(row)
            print("{what:20} ours {ours_seconds:6.2f} s   CTRAIN {theirs_seconds:6.2f} s   {ratio:.2f} x".format(**row))
    if given.out:
        write_json(given.out, {"environment": environment("cpu"), "images": given.images, "epochs": found})


if __name__ == "__main__":
    main()
