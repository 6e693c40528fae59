"""A pattern: an addition of something to what it was computed from. It knows better than the patterns Genie comes with,
and says so by its specificity."""


class Residual:
    name = "residual"
    specificity = 100

    def match(self, graph):
        makers = {value: node for node in graph.nodes() for value in node.outputs}
        for node in graph.nodes():
            if node.operation != "aten::add":
                continue
            left, *right = node.operands()
            inner = makers.get(left)
            if inner is not None and right and right[0] in inner.operands():
                yield [node]

    def annotate(self, nodes):
        return {node.id: {"semantic_role": "shortcut"} for node in nodes}
