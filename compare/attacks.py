"""Our evaluation's PGD beside one that drops nothing and ART's: the same network, images, steps and restarts.

    python compare/attacks.py [--images 300] [--steps 200] [--restarts 10] [--threads 2] [--out FILE]

The zoo's network for MNIST at 0.1, at radii at which nine tenths, a half and a tenth of the images stand. Real MNIST
(ETB_DATA_DIR, or --data-dir). One loss, the cross-entropy, since ART has no other; step sizes as each has them.
"""

import argparse
import time
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
from art.attacks.evasion import ProjectedGradientDescentPyTorch
from art.estimators.classification import PyTorchClassifier
from torch import nn

from etb_plugin.attacks import Pgd
from etb_plugin.bench.evaluation import attack_costs
from etb_plugin.data import load, pixels
from etb_plugin.experiment import Evaluated
from etb_plugin.files import write_json
from etb_plugin.results import environment
from etb_plugin.results.networks import restore

NETWORK = "zoo:mnist-0.1-ibp-small"


def arts(network: nn.Module, images: np.ndarray, labels: np.ndarray, eps: float, attack: Pgd) -> tuple[float, float]:
    """Return the share of the images that stands under ART's PGD, and its seconds."""
    model = PyTorchClassifier(
        network, nn.CrossEntropyLoss(), images.shape[1:], 10, clip_values=(0.0, 1.0), device_type="cpu"
    )
    climber = ProjectedGradientDescentPyTorch(
        model,
        eps=eps,
        eps_step=attack.step * eps,
        max_iter=attack.steps,
        num_random_init=attack.restarts,
        batch_size=len(images),
        verbose=False,
    )
    np.random.seed(0)
    begun = time.perf_counter()
    found = climber.generate(images, labels)
    seconds = time.perf_counter() - begun
    return float((model.predict(found).argmax(1) == labels).mean()), seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=300)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--restarts", type=int, default=10)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--data-dir", type=Path)
    parser.add_argument("--out", type=Path)
    asked = parser.parse_args()
    torch.set_num_threads(asked.threads)
    _, [trained] = restore(Path(NETWORK), Evaluated(device="cpu", data_dir=asked.data_dir))
    split = load("mnist", data_dir=asked.data_dir, test_limit=asked.images).test
    images, labels = pixels(split.images).numpy(), split.labels.numpy()
    attack, rows = Pgd(asked.steps, asked.restarts, losses=("cross-entropy",)), []
    for cost in attack_costs(NETWORK, trained.network, split, attack):
        stands, seconds = arts(trained.network, images, labels, cost.eps, attack)
        rows.append(asdict(cost) | {"ratio": cost.ratio, "art_standing": stands, "art_seconds": seconds})
        print(
            f"eps {cost.eps:.3f}, {cost.standing:.1%} stand: {cost.seconds:.1f} s; dropping nothing "
            f"{cost.dropping_nothing:.1f} s, {cost.ratio:.1f} x; ART's {seconds:.1f} s, "
            f"{seconds / cost.seconds:.1f} x, {stands:.1%} stand",
            flush=True,
        )
    if asked.out:
        about = environment("cpu") | {"images": asked.images, "steps": asked.steps, "restarts": asked.restarts}
        write_json(asked.out, {"environment": about, "measured": rows})


if __name__ == "__main__":
    main()
