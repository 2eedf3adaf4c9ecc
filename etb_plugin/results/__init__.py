"""Results: what is written about networks (`records`), and the networks back from disk (`networks`)."""

from etb_plugin.results.records import SCHEMA, Candidate, Result, environment, write_results

__all__ = ["SCHEMA", "Candidate", "Result", "environment", "write_results"]
