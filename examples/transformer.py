"""A small transformer on digits: trained, attacked, certified and verified. Bounds follow attention and layer norm."""

import torch
from torch import Tensor, nn

import etb_plugin
from etb_plugin.data import load, pixels


class Transformer(nn.Module):
    """Images of 8 x 8 as four patches and a token for the class."""

    def __init__(self, width: int = 16, heads: int = 2) -> None:
        super().__init__()
        self.patches = nn.Conv2d(1, width, kernel_size=4, stride=4)
        self.token = nn.Parameter(torch.zeros(1, 1, width))
        self.places = nn.Parameter(0.1 * torch.randn(1, 5, width))
        self.layer = nn.TransformerEncoderLayer(width, heads, 2 * width, dropout=0, batch_first=True, norm_first=True)
        self.head = nn.Linear(width, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(len(x), -1, -1), x], 1) + self.places
        return self.head(self.layer(x)[:, 0])


torch.manual_seed(0)
digits = load("digits")
images, labels = pixels(digits.test.images[:100]), digits.test.labels[:100]
network = Transformer()

etb_plugin.train(network, digits, method="pgd", eps=0.03, epochs=12, learning_rate=4e-3)
found = etb_plugin.evaluate(network, (images, labels), eps=0.02, certify=["ibp", "crown"])
print(f"clean {found.clean_accuracy:.2f}, PGD {found.pgd_accuracy:.2f}, certified {found.certified_accuracy}")
print(etb_plugin.verify(network, images[0], int(labels[0]), eps=0.02).verdict)

box = etb_plugin.Box.around(images[:20], 0.02)
crown = etb_plugin.bound("crown", network, box)
expected = etb_plugin.bound("expected", network, box, masks="center")  # IBP's, the default, are far too wide here
print(f"widths: crown {crown.width.mean():.2f} (a certificate), expected {expected.width.mean():.2f} (none)")
