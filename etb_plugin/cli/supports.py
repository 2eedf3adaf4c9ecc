"""`etb supports`: what kinds of queries and networks `etb verify` takes, in the words of VNN-LIB 2.0."""

from typing import Annotated

import typer
from rich import box
from rich.table import Table

from etb_plugin.cli import options as o


def command(
    context: typer.Context,
    vnnlib_versions: Annotated[bool, typer.Option("--vnnlib-versions", help="The oldest and the newest.")] = False,
    onnx_opset_versions: Annotated[
        bool, typer.Option("--onnx-opset-versions", help="The oldest and the newest.")
    ] = False,
    onnx_element_types: Annotated[
        bool, typer.Option("--onnx-element-types", help="Those whose own arithmetic proofs are about.")
    ] = False,
    onnx_operators: Annotated[bool, typer.Option("--onnx-operators", help="Operations that are read.")] = False,
    hidden_node_theories: Annotated[
        bool, typer.Option("--hidden-node-theories", help="Values within networks.")
    ] = False,
    multiple_input_output_theories: Annotated[
        bool, typer.Option("--multiple-input-output-theories", help="Several inputs and outputs.")
    ] = False,
    multiple_network_theories: Annotated[
        bool, typer.Option("--multiple-network-theories", help="Several networks.")
    ] = False,
    multiple_node_comparison_theories: Annotated[
        bool, typer.Option("--multiple-node-comparison-theories", help="Conditions on several tensors together.")
    ] = False,
    arithmetic_complexity_theories: Annotated[
        bool, typer.Option("--arithmetic-complexity-theories", help="Bounds, comparisons, sums, polynomials.")
    ] = False,
    optimised_disjunctive_reasoning: Annotated[
        bool, typer.Option("--optimised-disjunctive-reasoning", help="More than a case for each alternative.")
    ] = False,
    serialise_assignments: Annotated[
        bool, typer.Option("--serialise-assignments", help="Counterexamples as ONNX tensors.")
    ] = False,
    unsat_proofs: Annotated[bool, typer.Option("--unsat-proofs", help="Proofs for other programs to check.")] = False,
) -> None:
    """Say what `etb verify` can do, as VNN-LIB 2.0 has other programs ask: a line for each answer, or all as a table.

    Proofs are about real arithmetic, with the weights that a file has: `real` is the one element type that is listed.
    Files and properties of float32 and float64 are taken all the same, and a counterexample is one in the file's own
    precision.

    Example: etb supports --vnnlib-versions
    """
    from etb_plugin.networks.onnx import OPSETS
    from etb_plugin.networks.onnx_operations import OPERATIONS
    from etb_plugin.verification.vnnlib import VERSIONS

    answers = {
        "vnnlib_versions": (VERSIONS[0], VERSIONS[-1]),
        "onnx_opset_versions": (OPSETS[0], OPSETS[-1]),
        "onnx_element_types": ("real",),
        "onnx_operators": sorted({*OPERATIONS, "Constant", "If", "Loop"}),
        "hidden_node_theories": ("NH", "H"),
        "multiple_input_output_theories": ("SIO", "MIO"),
        "multiple_network_theories": ("SNET", "MENET", "MINET", "MNET"),
        "multiple_node_comparison_theories": ("SNC", "MNC"),
        "arithmetic_complexity_theories": ("BND", "OUTC", "LIN", "POLY"),
        "optimised_disjunctive_reasoning": ("false",),
        "serialise_assignments": ("true",),
        "unsat_proofs": ("false",),
    }
    asked = [name for name, wanted in context.params.items() if wanted]
    for name in asked:
        print(*answers[name], sep="\n")
    if not asked:
        table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
        table.add_column("capability", no_wrap=True)
        table.add_column("answer")
        for name, lines in answers.items():
            table.add_row(f"--{name.replace('_', '-')}", " ".join(map(str, lines)))
        o.stdout().print(table)
