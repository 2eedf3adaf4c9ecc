# As a user writes it; the second import has etb_plugin make up what the third misses in numpy 2.
import torch
from digits import network, test, train
from auto_LiRPA import BoundedModule, BoundedTensor, PerturbationLpNorm
from torch.nn import functional as F

torch.manual_seed(0)
mine = network()
bounded = BoundedModule(mine, train[0][:1])
optimizer = torch.optim.Adam(mine.parameters(), 1e-3)


def margins(images, labels, eps, method):
    box = PerturbationLpNorm(x_L=(images - eps).clamp(0, 1), x_U=(images + eps).clamp(0, 1))
    others = torch.stack([torch.arange(10)[torch.arange(10) != label] for label in labels])
    C = F.one_hot(labels, 10)[:, None].float() - F.one_hot(others, 10).float()
    return bounded.compute_bounds(x=(BoundedTensor(images, box),), C=C, method=method, bound_upper=False)[0]


step, steps = 0, 60 * 15
for _ in range(60):
    for chosen in torch.randperm(len(train[0])).split(100):
        images, labels = train[0][chosen], train[1][chosen]
        grown = min(1.0, max(0.0, (step / steps - 0.05) / 0.5))
        kappa = 1 - 0.5 * grown
        for group in optimizer.param_groups:
            group["lr"] = 1e-3 * 0.1 ** sum(step >= share * steps for share in (0.8, 0.9))
        lower = margins(images, labels, 0.05 * grown, "IBP")
        worst = F.cross_entropy(F.pad(-lower, (1, 0)), torch.zeros_like(labels))
        loss = kappa * F.cross_entropy(mine(images), labels) + (1 - kappa) * worst
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        step += 1

images, labels = test
low, high = (images - 0.05).clamp(0, 1), (images + 0.05).clamp(0, 1)
points = low + torch.rand_like(low) * (high - low)
for _ in range(40):
    points.requires_grad_()
    (gradient,) = torch.autograd.grad(F.cross_entropy(mine(points), labels), points)
    points = (points + 0.0125 * gradient.sign()).clamp(low, high).detach()
right = mine(images).argmax(1) == labels
standing = right & (mine(points).argmax(1) == labels)
with torch.no_grad():
    shares = {m: (margins(images, labels, 0.05, m) > 0).all(1).float().mean().item() for m in ("IBP", "CROWN")}
print(right.float().mean().item(), standing.float().mean().item(), shares)
