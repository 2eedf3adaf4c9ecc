"""The ends of the activations' inputs: what a relaxation starts from.

They come from interval arithmetic, from the rows of every unit that interval arithmetic leaves unstable, layer by layer
(`crown_ends`), from the rows of every unit (`dual_ends`), or from splits (`tightened`). Rows are worked on in blocks.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from etb_plugin.graph.activations import Activation, Curved
from etb_plugin.graph.affine import Linear, Pairs
from etb_plugin.graph.graph import Ends, Graph
from etb_plugin.graph.regions import Region
from etb_plugin.graph.relaxation import Choice, Hinge, Relaxation, cut, optimized, ordered
from etb_plugin.graph.rounding import are_rigorous, gamma
from etb_plugin.graph.rows import Rows, Window
from etb_plugin.memory import fitting
from etb_plugin.shapes import are_fixed
from etb_plugin.stopping import check_time

_ROUNDING = 1e-9
"""How far apart, relative to their size, two ends of a point may be rounded in float64."""
_EXAMPLES_AT_ONCE = 2**26
"""Elements that the rows of the output, or the windows of all units, of the examples of one block may hold."""
_KEPT = 2**26
"""Elements of the rows of a layer's units up to which their slopes are kept, and what a gradient needs, which is not
computed again then: it takes about four times as much memory."""
_FEW = 0.25
"""The share of unstable units up to which the dual follows their rows apart: one by one they cost twice as much."""


def _block(like: Tensor) -> int:
    """Return how many elements the rows of one block may hold at one node: on a CPU what its caches hold is five times
    as fast as what has to come from memory."""
    return fitting(2**21 if like.device.type == "cpu" else 2**26)


@dataclass(frozen=True)
class Tightened:
    """The ends of every activation's input; which branches are empty, [branches]; and the lower slopes that gave the
    ends: for each activation the units that were bounded, and slopes [units, 2, *features or window], lower sides
    first. Without optimisation there are none."""

    ends: dict[int, tuple[Tensor, Tensor]]
    empty: Tensor
    slopes: dict[int, tuple[Tensor, Mapping[Hinge, Tensor]]]


def flat_ends(graph: Graph, ends: Ends) -> tuple[Tensor, Tensor]:
    """Return the ends of all activations' inputs, one activation after another, lower and upper [batch, units]."""
    low, high = (torch.cat([ends[i][side].flatten(1) for i in graph.activations], 1) for side in (0, 1))
    return low, high


def shaped_ends(graph: Graph, low: Tensor, high: Tensor) -> Ends:
    """Return the ends that `flat_ends` made `low` and `high` of."""
    shapes = {i: graph.nodes[graph.nodes[i].inputs[0]].shape for i in graph.activations}
    sizes = [shape.numel() for shape in shapes.values()]
    parts = zip(shapes.items(), low.split(sizes, 1), high.split(sizes, 1), strict=True)
    return {i: (lower.unflatten(1, shape), upper.unflatten(1, shape)) for (i, shape), lower, upper in parts}


@torch.no_grad()
def row_size(graph: Graph, position: int, like: Tensor) -> int:
    """Return the number of elements of a unit's row where it is widest on its way back."""
    if position in graph.row_sizes:
        return graph.row_sizes[position]
    one = torch.zeros(1, dtype=torch.long, device=like.device)
    start, _ = _rows_of(graph, position, one, one, like)
    widest = 1

    def through(i: int, activation: Activation, rows: Rows) -> tuple[Tensor, Tensor | None]:
        nonlocal widest
        widest = max(widest, rows.values.numel())
        if activation.joins:
            before = graph.nodes[graph.nodes[i].inputs[0]].shape
            return activation.repeated(rows.values).expand(*rows.values.shape[:2], *before), None
        return rows.values, None

    found, _ = graph.backward(start, through, shifts=False)
    graph.row_sizes[position] = max(widest, found[0].values.numel())
    return graph.row_sizes[position]


def examples_at_once(graph: Graph, region: Region, rows: int, *, units: bool = True) -> int:
    """Return for how many examples `rows` as wide as a node each, and with `units` the windows of every unit, fit in a
    block."""
    largest = rows * graph.widest
    for i in graph.activations if units else ():
        source = graph.nodes[i].inputs[0]
        if source not in graph.affine_prefix:
            image = graph.nodes[source].shape[1:]
            largest = max(largest, image.numel() * row_size(graph, source, region.center) if image else 0)
    return max(1, fitting(_EXAMPLES_AT_ONCE) // largest)


def interval_ends(graph: Graph, region: Region) -> tuple[dict[int, tuple[Tensor, Tensor]], list[tuple[Tensor, Tensor]]]:
    """Return the ends of every activation's input by interval arithmetic, and centre and radius at every node."""
    ends: dict[int, tuple[Tensor, Tensor]] = {}

    def keep(i: int, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
        ends[i] = low, high
        return low, high

    return ends, graph.intervals(region, keep)


def crown_ends(
    graph: Graph, region: Region, *, within: Ends | None = None, steps: int = 0, rate: float = 0.5
) -> Tightened:
    """Return the ends of every activation's input: interval arithmetic's over the ends before, cut to those that are
    known to hold (`within`), then CROWN's where a unit is unstable.

    With `steps` the lower slopes of each unit's own bound are optimised by so many steps (alpha-CROWN). Cost: two
    rows for every unit that interval arithmetic leaves unstable, and three times `steps` more with steps.
    """
    ends: dict[int, tuple[Tensor, Tensor]] = {}
    slopes: dict[int, tuple[Tensor, Mapping[Hinge, Tensor]]] = {}
    relaxation, exact, search = Relaxation(graph, region, ends), graph.affine_prefix, _Search(steps=steps, rate=rate)

    def tighten(i: int, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
        nonlocal relaxation
        if within is not None:
            low, high = cut(low, high, within[i])
        if exact.get(graph.nodes[i].inputs[0], 2) > 1:
            unstable = _unstable(graph.activations[i], i, low, high, search.choice)
            relaxation = relaxation.over(ends)
            low, high, found = _of_units(relaxation, i, low, high, unstable, search)
            if found is not None:
                slopes[i] = found
            low, high = ordered(low, high)
        ends[i] = low, high
        return low, high

    with torch.set_grad_enabled(torch.is_grad_enabled() and not steps):
        graph.intervals(region, tighten)
    return Tightened(ends, torch.zeros(len(region), dtype=torch.bool, device=region.center.device), slopes)


def tightened(relaxation: Relaxation, choice: Choice, *, steps: int, start: Tightened | None = None) -> Tightened:
    """Return the ends of branches, given by the signs of `choice` [branches, 1, *features], from those of
    `relaxation`, which hold for them too. A branch is empty where a lower end lies above the upper one.

    `start` gives slopes to begin with; slopes and multipliers are optimised by `steps` steps.
    """
    graph, known = relaxation.graph, relaxation.ends
    batch = max(len(low) for low, _ in known.values()) if known else len(relaxation.region)
    ends: dict[int, tuple[Tensor, Tensor]] = {}
    slopes: dict[int, tuple[Tensor, Mapping[Hinge, Tensor]]] = {}
    empty = torch.zeros(batch, dtype=torch.bool, device=relaxation.region.center.device)
    search = _Search(choice, start, steps, rate=0.1)
    for i, activation in graph.activations.items():
        low, high = (end.expand(batch, *end.shape[1:]) for end in known[i])
        unstable = _unstable(activation, i, low, high, choice)
        if start is not None and i in start.slopes:
            bounded = torch.zeros(low[0].numel(), dtype=torch.bool, device=low.device)
            bounded[start.slopes[i][0]] = True
            unstable = unstable & bounded.view(1, *low.shape[1:])
        relaxation = relaxation.over(ends)
        low, high, found = _of_units(relaxation, i, low, high, unstable, search)
        if found is not None:
            slopes[i] = found
        empty |= (low > high + _ROUNDING * (1 + high.abs())).flatten(1).any(1)
        ends[i] = ordered(low, high)
    return Tightened(ends, empty, slopes)


def dual_ends(graph: Graph, region: Region) -> dict[int, tuple[Tensor, Tensor]]:
    """Return the ends of every activation's input by the rows of every unit, with the chord's slope on both sides
    (Wong and Kolter 2018), and by interval arithmetic where activations are curved, of which some take no negative
    numbers.

    Cost: a row for every unit. A gradient depends on the ends of unstable units alone: where these are few, as in a
    network that is trained by it, the rows of all units are followed without a gradient, and theirs once more with it.
    """
    known = interval_ends(graph, region)[0] if graph.curved else {}
    ends: dict[int, tuple[Tensor, Tensor]] = {}
    relaxation = Relaxation(graph, region, {})
    for i in graph.activations:
        relaxation = relaxation.over(ends)
        if _has_few_unstable(relaxation, i):
            with torch.no_grad():
                low, high = _of_every_unit(relaxation, i)
            low, high = _differentiable(relaxation, i, low, high)
        else:
            low, high = _of_every_unit(relaxation, i)
        ends[i] = cut(low, high, known[i]) if i in known else (low, high)
    return ends


def _has_few_unstable(relaxation: Relaxation, i: int) -> bool:
    """Whether a gradient is wanted, and few units of an activation's input are unstable: in the first example."""
    graph, ends, activation = relaxation.graph, relaxation.ends, relaxation.graph.activations[i]
    wanted = torch.is_grad_enabled() and any(end.requires_grad for pair in ends.values() for end in pair)
    if not wanted or are_fixed() or isinstance(activation, Curved):
        return False
    with torch.no_grad():
        first = Relaxation(graph, relaxation.region[:1], {j: (low[:1], high[:1]) for j, (low, high) in ends.items()})
        return float(_unstable(activation, i, *_of_every_unit(first, i), Choice()).float().mean()) < _FEW


def _of_every_unit(relaxation: Relaxation, i: int) -> tuple[Tensor, Tensor]:
    """Return the dual's ends of an activation's input, [batch, *features]."""
    graph, region, batch = relaxation.graph, relaxation.region, len(relaxation.region)
    source = graph.nodes[i].inputs[0]
    shape, rows = graph.nodes[source].shape, _every_unit(graph, source, region)
    places = shape[1:].numel() if rows.window is not None else 1
    at_once = max(1, _block(region.center) // (row_size(graph, source, region.center) * places * batch))
    low, high = [], []
    for some in rows.values.split(at_once, 1):
        check_time()
        lower, upper, _, _ = relaxation.between({source: rows.with_values(some)})
        low.append(lower)
        high.append(upper)
    return _units_in_order(low, shape, batch, places), _units_in_order(high, shape, batch, places)


def _differentiable(relaxation: Relaxation, i: int, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
    """Return the dual's ends of an activation's input with those of unstable units as functions of the weights."""
    graph, source = relaxation.graph, relaxation.graph.nodes[i].inputs[0]
    owners, units = _unstable(graph.activations[i], i, low, high, Choice()).flatten(1).nonzero().unbind(1)
    if not len(units):
        return low, high
    at_once = max(1, _block(low) // row_size(graph, source, low))
    lows, highs = [], []
    for owner, unit in _blocks(owners, units, at_once):
        check_time()
        rows, constant = _rows_of(graph, source, owner, unit, low)
        lower, upper, _, _ = relaxation.between(rows)
        lows.append((lower + constant)[:, 0])
        highs.append((upper + constant)[:, 0])
    index = owners, units
    flat_low = low.flatten(1).index_put(index, torch.cat(lows))
    flat_high = high.flatten(1).index_put(index, torch.cat(highs))
    return flat_low.view_as(low), flat_high.view_as(high)


def _units_in_order(parts: list[Tensor], shape: torch.Size, batch: int, places: int) -> Tensor:
    """Return values of all units [batch * places or places or 1, channels], in parts, as [batch, *shape]."""
    value = torch.cat(parts, 1)
    value = value.expand(max(len(value), places), -1).view(-1, places, value.shape[1]).transpose(1, 2)
    return value.reshape(len(value), *shape).expand(batch, *shape)


def _every_unit(graph: Graph, position: int, region: Region) -> Rows:
    """Return a row for every unit of a node, [1, units, ...]: of an image one for every channel, at every place."""
    shape, like = graph.nodes[position].shape, region.center
    eye = torch.eye(shape[0], dtype=like.dtype, device=like.device).unsqueeze(0)
    if len(shape) == 1:
        return Rows(eye)
    image = shape[1:]
    window = Window(tuple(image), (1,) * len(image), (0,) * len(image))
    return Rows(eye.view(1, shape[0], shape[0], *[1] * len(image)), window=window, examples=len(region))


def _rows_of(
    graph: Graph, position: int, owners: Tensor, units: Tensor, like: Tensor
) -> tuple[dict[int, Rows], Tensor | float]:
    """Return rows of `units` of a node, one for each group, where the walk may begin, and the constants beside."""
    node = graph.nodes[position]
    if isinstance(node.operation, Linear) and len(graph.nodes[node.inputs[0]].shape) == 1:
        weight, bias = node.operation.units(units)
        return {node.inputs[0]: Rows(weight.unsqueeze(1), owners)}, 0.0 if bias is None else bias.unsqueeze(1)
    image = node.shape[1:]
    places = image.numel()
    channels = torch.nn.functional.one_hot(units // places, node.shape[0]).to(like.dtype)
    values = channels.view(-1, 1, node.shape[0], *[1] * len(image))
    if not len(image):
        return {position: Rows(values, owners)}, 0.0
    window = Window(tuple(image), (1,) * len(image), (0,) * len(image))
    return {position: Rows(values, owners, units % places, window)}, 0.0


@dataclass(frozen=True)
class _Search:
    """How the rows of units are bounded: the branch, where their slopes begin, and how many steps of which rate they
    are optimised by; none are CROWN's rows."""

    choice: Choice = field(default_factory=Choice)
    start: Tightened | None = None
    steps: int = 0
    rate: float = 0.5


def _of_units(
    relaxation: Relaxation, i: int, low: Tensor, high: Tensor, unstable: Tensor, search: _Search
) -> tuple[Tensor, Tensor, tuple[Tensor, Mapping[Hinge, Tensor]] | None]:
    """Return the ends of an activation's input, bettered by the rows of the `unstable` units, [batch, *features].

    With steps, those units and their slopes too, as `Tightened` has them, where it is one example and they are not too
    many.
    """
    graph, source = relaxation.graph, relaxation.graph.nodes[i].inputs[0]
    pairs = graph.nodes[source].operation
    alike = pairs.alike.to(low.device) if isinstance(pairs, Pairs) and not are_fixed() else None
    if are_fixed():
        batch, count = len(low), low[0].numel()
        owners = torch.arange(batch, device=low.device).repeat_interleave(count)
        units = torch.arange(count, device=low.device).repeat(batch)
    else:
        asked = unstable.flatten(1)
        if alike is not None:
            asked = asked & (alike == torch.arange(len(alike), device=low.device))
        owners, units = asked.nonzero().unbind(1)
    if not len(units):
        return low, high, None
    size = 2 * row_size(graph, source, low)
    at_once = max(1, _block(low) // size)
    twice = torch.is_grad_enabled() and len(units) * size > fitting(_KEPT)
    if twice:
        relaxation = relaxation.without_tables()

    def bounded(owner: Tensor, unit: Tensor) -> tuple[Tensor, Mapping[Hinge, Tensor]]:
        rows, constant = _rows_of(graph, source, owner, unit, low)
        both = {j: some.with_values(torch.cat([some.values, -some.values], 1)) for j, some in rows.items()}
        mine = Choice(_chosen(search.start, i, unit), search.choice.signs)
        if search.steps:
            value, mine = optimized(relaxation, both, steps=search.steps, start=mine, rate=search.rate)
        else:
            value = relaxation.below(both, mine).value
        found = torch.stack([value[:, 0], -value[:, 1]], 1) + constant
        if are_rigorous():
            pad = gamma() * (value.abs() + torch.as_tensor(constant).abs())
            found = found + torch.stack([-pad[:, 0], pad[:, 1]], 1)
        return found, mine.slopes

    parts: list[Tensor] = []
    kept: list[Mapping[Hinge, Tensor]] = []
    keeping = search.steps and search.start is None and len(unstable) == 1 and len(units) * size <= fitting(_KEPT)
    for owner, unit in _blocks(owners, units, at_once):
        check_time()
        if twice:
            part, slopes = checkpoint(bounded, owner, unit, use_reentrant=False)
        else:
            part, slopes = bounded(owner, unit)
        parts.append(part)
        if keeping:
            kept.append(slopes)
    found = torch.cat(parts).to(low)
    if are_fixed():
        new_low, new_high = (end.view_as(low) for end in found.unbind(1))
        low = torch.where(unstable, torch.maximum(low, new_low), low)
        return low, torch.where(unstable, torch.minimum(high, new_high), high), None
    index = (owners, units)
    flat_low, flat_high = low.flatten(1), high.flatten(1)
    flat_low = flat_low.index_put(index, torch.maximum(flat_low[index], found[:, 0]))
    flat_high = flat_high.index_put(index, torch.minimum(flat_high[index], found[:, 1]))
    if alike is not None:
        flat_low, flat_high = flat_low[:, alike], flat_high[:, alike]
    same = bool(kept) and all(block.keys() == kept[0].keys() for block in kept)
    all_slopes = (units, {key: torch.cat([block[key] for block in kept]) for key in kept[0]}) if same else None
    return flat_low.view_as(low), flat_high.view_as(high), all_slopes


def _blocks(owners: Tensor, units: Tensor, at_once: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield units with their owners, in order, at most so many at a time. Where each example fills a block, no block
    has units of two, and its owner stands once: what belongs to the example is not repeated for each unit then."""
    if are_fixed() or len(owners) < at_once * (int(owners[-1]) + 1):
        yield from zip(owners.split(at_once), units.split(at_once), strict=True)
        return
    for owner, mine in zip(*owners.unique_consecutive(return_counts=True), strict=True):
        some, units = units[:mine], units[mine:]
        yield from ((owner.view(1), block) for block in some.split(at_once))


def _unstable(activation: Activation, i: int, low: Tensor, high: Tensor, choice: Choice) -> Tensor:
    """Return which units of an activation are undecided and unstable, [batch, *features]: of a curved one, all that
    may move."""
    if isinstance(activation, Curved):
        return activation.undecided(low, high)
    found = torch.zeros_like(low, dtype=torch.bool)
    for h, (knot, _) in enumerate(activation.hinges()):
        here = (low < knot) & (high > knot)
        sign = choice.signs.get((i, h))
        found = found | (here if sign is None else here & (sign[:, 0] == 0))
    return found


def _chosen(start: Tightened | None, i: int, units: Tensor) -> Mapping[Hinge, Tensor]:
    """Return the slopes that `start` has for the rows of some units of an activation."""
    if start is None or i not in start.slopes:
        return {}
    known, slopes = start.slopes[i]
    place = torch.searchsorted(known, units)
    return {key: values[place] for key, values in slopes.items()}
