"""Who may have how much of a node: quotas, their accounts, whose turn it is to come in, and what backends are told.

Nothing here knows of connections or frameworks. ``genie.remote`` asks before it lets anybody in, reads, answers or
loads; what a device's memory and time are shared by is the backend's to keep (``seats.Tenanting``).
"""
