"""Names of classes as added evidence: they never decide, they agree."""

from __future__ import annotations

import re

from genie.graph import Evidence

_CLASSES: tuple[tuple[str, re.Pattern[str]], ...] = tuple(
    (role, re.compile(named, re.IGNORECASE))
    for role, named in (
        ("norm", "norm"),
        ("attention", "att(ention|n)"),
        ("kv_append", "att(ention|n)|cache"),
        ("rotary", "rotary|rope|att(ention|n)"),
        ("embedding", "embed"),
        ("position_embedding", "embed|position"),
        ("mlp", "mlp|feed|ffn|dense|intermediate|output|linear|conv1d|gelu|relu|silu|activation"),
        ("moe", "moe|expert|router|gate"),
        ("conv", "conv"),
        ("depthwise_conv", "conv"),
        ("pointwise_conv", "conv"),
        ("patch_embedding", "patch"),
        ("pool", "pool"),
        ("residual", "layer|block|residual"),
        ("timestep_embedding", "time"),
    )
)


def agreeing(role: str, module: str) -> Evidence | None:
    """Evidence that the class ``module`` gives for a role found otherwise; ``None`` if it says nothing."""
    for word, named in _CLASSES:
        if (role == word or role.startswith(f"{word}_") or role.endswith(f"_{word}")) and named.search(module):
            return Evidence("role", "framework", f"issued from a {module[:256]}", 0.6)
    return None
