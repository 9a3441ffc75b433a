"""What is common to chat in any engine: templates, stop strings, UTF-8; used in workers.

Backends may import from here. Modules are imported by name, so that a backend that only wants
:mod:`runner.chat.stop` does not pay for jinja2.
"""
