"""What a page was given."""

from __future__ import annotations

import json
import re
from typing import Any


def data(text: str) -> Any:
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', text, re.DOTALL)
    assert found
    return json.loads(found[1])
