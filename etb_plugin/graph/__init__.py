"""The engine: a network as a graph, and the walks over it that every bound stands on.

Words owned here: box and ball (`regions`), affine map, activation, node, graph, ends (of an activation's input), rows.
Start at `graph`; `tracing` makes one from an `nn.Module`. Nothing here knows a bound.
"""
