"""Sessions that ended: what a client that comes back to one is told."""

from __future__ import annotations

import secrets
from collections import OrderedDict

from genie.remote.node.session.messages import NodeSession
from genie.wire.messages import Back

_REMEMBERED = 256


def may_come_back(session: NodeSession, key: str) -> bool:
    """Whether this is the key of a session that waits for its client."""
    return session.lasting is not None and _equal(session.lasting.key, key)


class Departed:
    """The latest ones, each with its key: nobody else learns that there was such a session."""

    def __init__(self) -> None:
        self._ended: OrderedDict[str, tuple[str, str]] = OrderedDict()  # name → key, reason

    def add(self, session: NodeSession) -> None:
        if session.lasting is not None:
            self._ended[session.name] = (session.lasting.key, session.lasting.reason or session.reason)
            if len(self._ended) > _REMEMBERED:
                self._ended.popitem(last=False)

    def reason(self, back: Back, nonce: str) -> str:
        """Why there is no such session, in a sentence's second half. ``nonce`` tells a node's lives apart."""
        if back.session.partition("-")[0] != nonce:
            return "the node was started anew since"
        key, reason = self._ended.get(back.session, ("", ""))
        if key and _equal(key, back.key) and reason:
            return f"the session had ended: {reason}"
        return "the node has no such session any more"


def _equal(ours: str, theirs: str) -> bool:
    return secrets.compare_digest(ours.encode(), theirs.encode(errors="replace"))
