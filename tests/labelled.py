"""Graphs with every label: of any size, and one whose names mean harm."""

from __future__ import annotations

from typing import Any

from genie.graph import (
    Evidence,
    Graph,
    Input,
    Many,
    Module,
    Node,
    Ref,
    Semantics,
    TensorSpec,
    ValueSemantics,
    verify,
)

HARM = '</script><script>window.harmed=1</script><!--<img src=x onerror="window.harmed=1">'
NAMES = (
    HARM,
    'quote " back \\ slash \\',
    "new\nline",
    "\x1b[31mred\x1b]0;title\x07",
    "line\u2028sep\u2029",
    "rtl\u202eexe",
)

_X = TensorSpec((1, 8, 64), "float32")
_W = TensorSpec((64, 64), "float32")
_CACHE = TensorSpec((1, 4, 7, 16), "float32")


class _Builder:
    def __init__(self) -> None:
        self.values: list[TensorSpec] = []
        self.meanings: list[ValueSemantics | None] = []
        self.inputs: list[Input] = []
        self.steps: list[Node] = []
        self.modules: dict[tuple[str, str], int] = {}

    def value(self, spec: TensorSpec, residency: str, reason: str) -> int:
        self.values.append(spec)
        evidence = (Evidence("residency", "lineage" if residency == "kv_cache" else "framework", reason),)
        self.meanings.append(ValueSemantics(residency=residency, evidence=evidence))
        return len(self.values) - 1

    def input(self, spec: TensorSpec, residency: str, **fields: Any) -> int:
        value = self.value(spec, residency, f"it enters as {fields.get('origin') or 'state'}")
        self.inputs.append(Input(value, **fields))
        return value

    def node(
        self, operation: str, args: tuple[Any, ...], module: tuple[str, str], spec: TensorSpec, **labels: Any
    ) -> int:
        value = self.value(spec, labels.get("residency", "activation"), "made on the way")
        number = self.modules.setdefault(module, len(self.modules)) if module[0] else -1
        evidence = [Evidence("phase", "lineage", "one query position against a longer cache")]
        if "role" in labels:
            evidence.append(Evidence("role", "structure", f"looks like {labels['role']}", 0.8))
        known = {"residency": "activation", "bytes_read": 4096, "bytes_written": 2048, "flops": 0} | labels
        semantics = Semantics(**known, evidence=tuple(evidence))
        self.steps.append(Node(len(self.steps), operation, "", args, (value,), (), (), number, 0, semantics))
        return value

    def graph(self, output: int, name: str) -> Graph:
        modules = tuple(Module(path, kind) for path, kind in self.modules)
        made = Graph(
            tuple(self.values),
            tuple(self.inputs),
            tuple(self.steps),
            (output,),
            modules,
            ("model.py:1",),
            name=name,
            meanings=tuple(self.meanings),
        )
        verify(made)
        return made


def decoder(layers: int = 2, extra: int = 0) -> Graph:
    """A step of a decoder with a cache: 8 nodes a layer, and ``extra`` more in each, then sampling."""
    build = _Builder()
    ids = build.input(TensorSpec((1, 8), "int64"), "input", name="ids", origin="input")
    table = build.input(_W, "weight", name="model.embed.weight", origin="parameter")
    here = {"phase": "embedding_lookup", "modality": "text"}
    x = build.node(
        "aten::embedding", (Ref(table), Ref(ids)), ("model.embed", "Embedding"), _X, role="embedding", **here
    )
    here = {"phase": "decode", "modality": "text"}
    for layer in range(layers):
        path = f"model.layers.{layer}"
        attention, mlp, block = (f"{path}.attn", "Attention"), (f"{path}.mlp", "MLP"), (path, "Block")
        weight = build.input(_W, "weight", name=f"{path}.weight", origin="parameter")
        cache = build.input(_CACHE, "kv_cache", name=f"past.{layer}.key", origin="state", lineage="grown", axis=2)
        start = x
        x = build.node(
            "aten::layer_norm", (Ref(x), Many((64,))), (f"{path}.norm", "LayerNorm"), _X, role="norm", **here
        )
        args = (Ref(x), Ref(weight))
        x = build.node("aten::linear", args, attention, _X, role="attention_qkv", flops=65536, **here)
        kept = {"residency": "kv_cache", "kv_cache_related": True}
        key = build.node(
            "aten::cat", (Many((Ref(cache), Ref(x))), 2), attention, _CACHE, role="kv_append", **here, **kept
        )
        args = (Ref(x), Ref(key), Ref(key))
        x = build.node("aten::scaled_dot_product_attention", args, attention, _X, role="attention", flops=3584, **here)
        x = build.node("aten::add", (Ref(x), Ref(start), 1), block, _X, role="residual", **here)
        start = x
        for _ in range(extra):
            x = build.node("aten::mul", (Ref(x), 2.0), mlp, _X, **here)
        x = build.node("aten::linear", (Ref(x), Ref(weight)), mlp, _X, role="mlp_up", flops=131072, **here)
        x = build.node("aten::gelu", (Ref(x),), mlp, _X, role="mlp_activation", **here)
        x = build.node("aten::add", (Ref(x), Ref(start), 1), block, _X, role="residual", **here)
    here = {"phase": "sampling", "modality": "text"}
    token = build.node("aten::argmax", (Ref(x), -1), ("", ""), TensorSpec((1,), "int64"), role="sampling", **here)
    return build.graph(token, "step")


def hostile() -> Graph:
    """Every name an attempt at the terminal, the page or Graphviz."""
    build = _Builder()
    x = build.input(_X, "input", name=HARM, origin="input")
    for name in NAMES:
        words = {"role": name, "colocation_group": name}
        x = build.node("aten::neg", (Ref(x),), (f"top.{name}", name), _X, **words)
        x = build.node("aten::neg", (Ref(x),), (f"top.{name}", name), _X, **words)
    return build.graph(x, HARM)
