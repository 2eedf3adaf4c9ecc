"""A certified objective in a Lightning module: the loss is made once, and stands where `F.cross_entropy` stood."""

import logging
import warnings

import lightning
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import etb_plugin
from etb_plugin.data import load, pixels

warnings.filterwarnings("ignore", module="lightning")
logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)


class Classifier(lightning.LightningModule):
    def __init__(self, epochs: int, batches: int) -> None:
        super().__init__()
        self.network = nn.Sequential(nn.Flatten(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
        self.loss = etb_plugin.objective(
            "mtl-expected", self.network, (1, 8, 8), 10, eps=0.05, epochs=epochs, batches=batches
        )

    def training_step(self, batch: tuple[torch.Tensor, torch.Tensor], number: int) -> torch.Tensor:
        return self.loss(*batch)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.network.parameters(), lr=2e-3)

    # Lightning saves weights and optimizer; these two lines save where the schedule stands.
    def on_save_checkpoint(self, checkpoint: dict) -> None:
        checkpoint["loss"] = self.loss.state_dict()

    def on_load_checkpoint(self, checkpoint: dict) -> None:
        self.loss.load_state_dict(checkpoint["loss"])


lightning.seed_everything(0, verbose=False)
digits = load("digits")
loader = DataLoader(TensorDataset(pixels(digits.train.images), digits.train.labels), batch_size=100, shuffle=True)
module = Classifier(epochs=15, batches=len(loader))
lightning.Trainer(
    max_epochs=15,
    accelerator="cpu",
    logger=False,
    enable_checkpointing=False,
    enable_progress_bar=False,
    enable_model_summary=False,
).fit(module, loader)

found = etb_plugin.evaluate(module.network, digits, eps=0.05, certify=["crown"])
print(f"mtl-expected: clean {found.clean_accuracy:.3f}, PGD {found.pgd_accuracy:.3f}, {found.certified_accuracy}")
