"""The parts of ``eval_disaggregation.py``: the network, the modes, the workloads and what they must move."""
