"""The wire format of the OpenAI API, and its translation to and from ``runner.api``.

Knows no HTTP server: bodies come in as bytes, answers leave as Structs or bytes.
"""
