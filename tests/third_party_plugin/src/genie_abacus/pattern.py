"""A pattern: an addition of something to what it was computed from."""


class Residual:
    name = "residual"
    specificity = 10

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
        return {node.id: {"semantic_role": "residual"} for node in nodes}
