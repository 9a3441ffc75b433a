"""Brings the generated parts of the documentation up to date: ``python docs/generate.py``.

Samples are included from files that the tests run; tables come from the code. With ``--check``,
nothing is written, and the exit status says whether anything would have been.
"""

from __future__ import annotations

import inspect
import re
import sys
from pathlib import Path

from runner import hookspecs
from runner.api import errors
from runner.openai import parameters
from runner.openai.chat import ChatBody
from runner.openai.completions import CompletionBody
from runner.openai.embeddings import EmbeddingBody

ROOT = Path(__file__).parent.parent


def include_samples(text: str) -> str:
    """Put each named file into the code block that follows its marker."""

    def fill(match: re.Match[str]) -> str:
        code = (ROOT / match["path"]).read_text(encoding="utf-8")
        return f"<!-- {match['path']} -->\n```{match['language']}\n{code}```"

    pattern = r"<!-- (?P<path>docs/examples/\S+) -->\n```(?P<language>\w+)\n.*?```"
    return re.sub(pattern, fill, text, flags=re.DOTALL)


def hook_reference() -> str:
    """Every hook's signature and docstring."""
    parts = []
    for name in sorted(set(hookspecs.__all__) - {"BACKEND_HOOKS"}):
        hook = getattr(hookspecs, name)
        arguments = ", ".join(inspect.signature(hook).parameters)
        doc = inspect.cleandoc(hook.__doc__ or "")
        doc = re.sub(r":param (\w+):", r"- `\1`:", doc)
        doc = re.sub(r":\w+:`~?(?:[\w.]+\.)?(\w+)`", r"`\1`", doc).replace("``", "`")
        parts.append(f"### `{name}({arguments})`\n\n{doc}")
    return "\n\n".join(parts)


def error_table() -> str:
    """Every error a client can see."""
    rows = ["| code | status | what it means |", "|---|---|---|"]
    classes = [
        getattr(errors, name) for name in errors.__all__ if inspect.isclass(getattr(errors, name))
    ]
    for cls in sorted(classes, key=lambda cls: (cls.status, cls.code)):
        summary = (cls.__doc__ or "").splitlines()[0].replace("|", "\\|")
        rows.append(f"| `{cls.code}` | {cls.status} | {summary} |")
    return "\n".join(rows)


def parameter_table() -> str:
    """What becomes of each parameter, by endpoint."""
    rows = ["| endpoint | implemented | harmless | known and unsupported |", "|---|---|---|---|"]
    for name, body, rules in (
        ("chat/completions", ChatBody, parameters.CHAT),
        ("completions", CompletionBody, parameters.COMPLETION),
        ("embeddings", EmbeddingBody, parameters.EMBEDDING),
    ):
        implemented = body.__struct_fields__
        harmless = sorted(rules.harmless - set(implemented))
        columns = (implemented, harmless, sorted(rules.unsupported))
        cells = [", ".join(f"`{field}`" for field in column) for column in columns]
        rows.append(f"| `{name}` | {' | '.join(cells)} |")
    return "\n".join(rows)


def fill_marker(text: str, marker: str, content: str) -> str:
    """Replace what stands between ``<!-- marker -->`` and the next heading of level 2."""
    pattern = rf"(<!-- {marker} -->\n).*?(?=\n## |\Z)"
    return re.sub(pattern, lambda match: f"{match[1]}\n{content}\n", text, flags=re.DOTALL)


def main() -> int:
    """Write, or check, every page."""
    stale = []
    for page in sorted((ROOT / "docs").glob("*.md")):
        before = page.read_text(encoding="utf-8")
        after = include_samples(before)
        after = fill_marker(after, "hooks", hook_reference())
        after = fill_marker(after, "errors", error_table())
        after = fill_marker(after, "parameters", parameter_table())
        if after != before:
            stale.append(page.name)
            if "--check" not in sys.argv:
                page.write_text(after, encoding="utf-8")
    if stale:
        sys.stdout.write(f"{'stale' if '--check' in sys.argv else 'updated'}: {', '.join(stale)}\n")
    return int(bool(stale) and "--check" in sys.argv)


if __name__ == "__main__":
    sys.exit(main())
