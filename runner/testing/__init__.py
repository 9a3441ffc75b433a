"""The test kit for Runner and for plugins: public, like ``runner.api``.

``fake`` is a backend without a model, ``distribution`` installs it (or any module) as a real entry
point that other processes find, ``waiting`` waits for a condition with a deadline.
"""
