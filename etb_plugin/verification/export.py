"""Networks and properties written to files that other verifiers read."""

from pathlib import Path

from etb_plugin.bounds import Box
from etb_plugin.data import pixels
from etb_plugin.errors import ConfigError
from etb_plugin.experiment import VerifyRequest, eps_text
from etb_plugin.files import write_file
from etb_plugin.networks.onnx import write_onnx
from etb_plugin.results.networks import restore
from etb_plugin.verification.vnnlib import VERSIONS, vnnlib_text


def export_network(path: Path, request: VerifyRequest, target: Path) -> float:
    """Write the one network in `path` to `target` as ONNX; return how far onnxruntime is from torch (`write_onnx`).

    Raises ConfigError where `path` holds several networks, and as `restore` and `write_onnx` do.
    """
    data, trained = restore(path, request.model_copy(update={"test_limit": 1}))
    if len(trained) != 1:
        names = ", ".join(str(one.about["method"]) for one in trained)
        raise ConfigError(f"{path} holds {len(trained)} networks ({names}); name one file, cells/.../last.safetensors")
    return write_onnx(trained[0].network, data.input_shape, target)


def export_properties(path: Path, request: VerifyRequest, folder: Path, version: str = VERSIONS[0]) -> int:
    """Write a property for each of the request's images and radii to `folder`, in a version of VNN-LIB, and return how
    many.

    Raises ConfigError where no images are named, or are not all there.
    """
    if request.images is None:
        raise ConfigError("which images? write --images 0:10")
    first, stop = request.images
    data, trained = restore(path, request.model_copy(update={"test_limit": stop}))
    if stop > len(data.test):
        raise ConfigError(f"--images {first}:{stop} are not all there: {data.name} has {len(data.test)} test images")
    count = 0
    for eps in request.eps_test or (trained[0].about["eps"] or data.source.default_eps,):
        for image in range(first, stop):
            box = Box.around(pixels(data.test.images[image : image + 1]).double(), eps)
            label = int(data.test.labels[image])
            comment = f"{data.name}, test image {image}, label {label}, eps {eps_text(eps)}"
            text = vnnlib_text(box, label, data.classes, comment, version)
            write_file(folder / f"{data.name}-{image:05d}-eps{eps:g}.vnnlib", text)
            count += 1
    return count
