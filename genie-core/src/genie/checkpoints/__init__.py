"""Where the states of sessions are kept while their nodes may die: on this machine's disk, or on another node."""

from genie.checkpoints.disk import DiskCheckpoints
from genie.checkpoints.node import NodeCheckpoints
from genie.checkpoints.store import Checkpoint, CheckpointStore

__all__ = ["Checkpoint", "CheckpointStore", "DiskCheckpoints", "NodeCheckpoints"]
