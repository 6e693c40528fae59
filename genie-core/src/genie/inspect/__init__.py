"""Seeing graphs: as a tree of modules, as Graphviz text, as a page of its own, and one beside another.

>>> from genie import inspect  # doctest: +SKIP
>>> print(inspect.tree(genie.annotate(genie.get_graph()), depth=2))  # doctest: +SKIP
"""

from genie.inspect.comparison import Comparison, comparison
from genie.inspect.difference import Change, Difference, Lone, compare
from genie.inspect.graphviz import dot
from genie.inspect.html import page
from genie.inspect.module import ModulePart, module_part
from genie.inspect.outline import Outline, tree
from genie.inspect.summary import Summary, summary

__all__ = [
    "Change",
    "Comparison",
    "Difference",
    "Lone",
    "ModulePart",
    "Outline",
    "Summary",
    "compare",
    "comparison",
    "dot",
    "module_part",
    "page",
    "summary",
    "tree",
]
