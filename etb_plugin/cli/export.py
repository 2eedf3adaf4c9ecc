"""`etb export`: a trained network as ONNX, and the robustness of test images as VNN-LIB properties."""

from pathlib import Path
from typing import Annotated

import typer

from etb_plugin.cli import options as o
from etb_plugin.errors import ConfigError


def command(
    context: typer.Context,
    weights: Annotated[
        Path, typer.Argument(help="A run folder, .safetensors, a state_dict, or .onnx.", show_default=False)
    ],
    onnx: Annotated[Path | None, typer.Option(help="Write the network to this file.")] = None,
    vnnlib: Annotated[Path | None, typer.Option(help="Write a property for each image to this folder.")] = None,
    vnnlib_version: Annotated[str, typer.Option(help="VNN-LIB's version of these: 1.0 or 2.0.")] = "1.0",
    dataset: o.Dataset = None,
    model: o.Model = None,
    images: Annotated[str | None, typer.Option(help="Which test images, such as 0:10.")] = None,
    eps_test: o.EpsTest = None,
    data_dir: o.DataDir = None,
) -> None:
    """Write a network as ONNX, checked by onnxruntime to 1e-5, and properties of test images as VNN-LIB.

    A property says that some point of the image's box is not classified as labelled: unsat means robust.

    Example: etb export mine --onnx mine.onnx --vnnlib properties --images 0:10 --eps-test 0.02
    """
    if onnx is None and vnnlib is None:
        raise ConfigError("what is to be written? give --onnx FILE, --vnnlib FOLDER, or both")
    from etb_plugin.verification.export import export_network, export_properties
    from etb_plugin.verification.vnnlib import VERSIONS

    if vnnlib_version not in VERSIONS:
        raise ConfigError(f"--vnnlib-version {vnnlib_version}: write {' or '.join(VERSIONS)}")
    o.check_there(weights)
    request = o.verification(context)
    if onnx is not None:
        difference = export_network(weights, request, onnx)
        o.stdout().print(f"Written: {onnx}; onnxruntime is within {difference:.1g} of torch", soft_wrap=True)
    if vnnlib is not None:
        count = export_properties(weights, request, vnnlib, vnnlib_version)
        o.stdout().print(f"Written: {count} properties in {vnnlib}", soft_wrap=True)
