"""Reports: how results and progress look. Nothing here computes a result.

`table` is the comparison on a terminal; `live` is what is seen while it runs.
"""
