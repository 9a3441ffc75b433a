"""The process around an engine: what the daemon and its child say to each other, and who ends whom.

``process``, ``worker`` and ``stream`` run in the daemon, ``child`` is a program of its own. Nothing
is imported here, because the child pays for every import before its first word.
"""
