"""The evaluations of ``steerable eval``: one module and one typed function each, and what they share."""

from steerable.cli.evaluations.presenting import Sheet, load_models, present

__all__ = ["Sheet", "load_models", "present"]
