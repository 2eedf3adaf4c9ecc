"""Networks that onnxruntime quantized: read, bounded and verified as they are, not as they were before."""

import numpy as np
import pytest
import torch
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
from torch import nn

from etb_plugin import Box, bound
from etb_plugin.data import load, pixels
from etb_plugin.networks.onnx import file_outputs, read_onnx, write_onnx
from etb_plugin.verification import PropertyCheck, Settings
from etb_plugin.verification.vnnlib import vnnlib_text


class Images(CalibrationDataReader):
    def __init__(self, images):
        self.rest = iter([{"input": image.numpy()} for image in images.split(10)])

    def get_next(self):
        return next(self.rest, None)


@pytest.fixture(scope="module")
def digits():
    data = load("digits")
    return pixels(data.train.images), data.train.labels


@pytest.fixture(scope="module")
def networks(digits, tmp_path_factory):
    """A trained network on digits and what became of it, by kind: files."""
    images, labels = digits
    torch.manual_seed(0)
    network = nn.Sequential(
        *(nn.Conv2d(1, 4, 3, 2, 1), nn.ReLU(), nn.Conv2d(4, 6, 3, 2, 1), nn.ReLU(), nn.Flatten(), nn.Linear(24, 10))
    )
    optimizer = torch.optim.Adam(network.parameters(), 0.01)
    for _ in range(150):
        chosen = torch.randint(len(images), (200,))
        optimizer.zero_grad()
        nn.functional.cross_entropy(network(images[chosen]), labels[chosen]).backward()
        optimizer.step()
    folder = tmp_path_factory.mktemp("quantized")
    write_onnx(network.eval(), (1, 8, 8), folder / "float.onnx")
    for name, kind, per_channel in (("8 bits", QuantType.QUInt8, False), ("channels", QuantType.QInt8, True)):
        quantize_static(
            str(folder / "float.onnx"),
            str(folder / f"{name}.onnx"),
            Images(images[:200]),
            quant_format=QuantFormat.QDQ,
            activation_type=kind,
            weight_type=QuantType.QInt8,
            per_channel=per_channel,
        )
    return {file.stem: file for file in folder.glob("*.onnx")}


@pytest.mark.parametrize("name", ["8 bits", "channels"])
def test_it_is_read_and_bounded_as_it_is(name, networks, digits):
    network, _ = read_onnx(networks[name])
    images, labels = digits
    assert (network(images[:200]).argmax(1) == labels[:200]).double().mean() > 0.85
    assert (network(images[:50]) != read_onnx(networks["float"])[0](images[:50])).any()
    torch.manual_seed(1)
    box = Box.around(images[:4], 0.02)
    shares = torch.cat([torch.rand(60, *box.lower.shape), torch.rand(60, *box.lower.shape).round()])
    points = box.lower + (box.upper - box.lower) * shares
    values = file_outputs(networks[name], points.flatten(0, 1)).unflatten(0, (120, 4))
    network, widths = network.double(), {}
    own = network(points.double().flatten(0, 1)).unflatten(0, (120, 4))
    for method in ("ibp", "crown"):
        found = bound(method, network, Box(box.lower.double(), box.upper.double()))
        assert (found.lower <= own.amin(0) + 1e-9).all()
        assert (own.amax(0) <= found.upper + 1e-9).all()
        # onnxruntime's float32 may come to the other side of a tie: one step of the last scale.
        assert (found.lower <= values.amin(0) + 0.2).all()
        assert (values.amax(0) <= found.upper + 0.2).all()
        widths[method] = found.width.mean().item()
    assert widths["crown"] < widths["ibp"]


def test_properties_of_it_are_decided(networks, digits, tmp_path):
    images, _ = digits
    words = []
    for eps in (0.005, 0.4):
        image = images[:1].double()
        label = int(file_outputs(networks["8 bits"], image).argmax())
        (tmp_path / "p.vnnlib").write_text(vnnlib_text(Box.around(image, eps), label, 10, "a digit"))
        answer = PropertyCheck(networks["8 bits"], tmp_path / "p.vnnlib", Settings(seconds=30), drop=True).run()
        words.append(answer.word)
        if answer.word == "sat":
            outputs = file_outputs(networks["8 bits"], answer.point.view(1, 1, 8, 8))
            assert outputs[0].index_fill(0, torch.tensor([label]), -np.inf).max() >= outputs[0, label]
    assert words == ["unsat", "sat"]
