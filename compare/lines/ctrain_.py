# As a user writes it; the first import makes CTRAIN 0.6 run beside auto_LiRPA 0.3.
import ctrain_runs  # noqa: F401
import torch
from CTRAIN.model_wrappers import ShiIBPModelWrapper
from digits import network, test, train
from torch.utils.data import DataLoader, TensorDataset


def loader(images, labels, **options):
    made = DataLoader(TensorDataset(images, labels), batch_size=100, **options)
    made.normalised, made.mean, made.std = False, torch.zeros(1), torch.ones(1)
    made.min, made.max = torch.zeros(1), torch.ones(1)
    return made


torch.manual_seed(0)
decay = {"milestones": (48, 54), "gamma": 0.1}
ramp = {"warm_up_epochs": 3, "ramp_up_epochs": 33, "start_kappa": 1, "end_kappa": 0.5}
plain = {"gradient_clip": None, "l1_reg_weight": 0, "shi_reg_weight": 0, "lr": 1e-3, "lr_decay_kwargs": decay}
mine = ShiIBPModelWrapper(network(), (1, 8, 8), 0.05, 60, **ramp, **plain, device=torch.device("cpu"))
mine.train_model(loader(*train, shuffle=True))
for method in ("IBP", "CROWN"):
    print(method, mine.evaluate(loader(*test), eval_method=method))
