"""Names, as Docker Model Runner reads them."""

from __future__ import annotations

import pytest
from hypothesis import example, given, reject
from hypothesis import strategies as st

from runner.api import RequestError
from runner.store import normalise, parse_model_id, parse_reference

HEX = "0123456789abcdef" * 4
LOCAL = ("embedded", "file")


@pytest.mark.parametrize(
    ("typed", "stored"),
    [
        ("gemma3", "docker.io/ai/gemma3:latest"),
        ("gemma3:1B-Q4", "docker.io/ai/gemma3:1B-Q4"),
        ("MyModel", "docker.io/ai/mymodel:latest"),
        ("ai/x\n", "docker.io/ai/x:latest"),
        ("  smollm2 ", "docker.io/ai/smollm2:latest"),
        ("myorg/model:", "docker.io/myorg/model:latest"),
        ("myorg/Model:V1", "docker.io/myorg/model:V1"),
        ("ai/gemma3", "docker.io/ai/gemma3:latest"),
        ("library/gemma3", "docker.io/ai/gemma3:latest"),
        ("docker.io/gemma3", "docker.io/ai/gemma3:latest"),
        ("docker.io/library/gemma3", "docker.io/ai/gemma3:latest"),
        ("index.docker.io/ai/gemma3", "docker.io/ai/gemma3:latest"),
        ("hf.co/Org/M:Q4_K_M", "huggingface.co/org/m:Q4_K_M"),
        ("huggingface.co/Org/M", "huggingface.co/org/m:latest"),
        ("hf.co/m", "huggingface.co/m:latest"),
        ("localhost:5000/x", "localhost:5000/x:latest"),
        ("localhost/x", "localhost/x:latest"),
        ("registry.local:5000/org/model:v1", "registry.local:5000/org/model:v1"),
        ("[::1]:5000/org/model", "[::1]:5000/org/model:latest"),
        ("registry.example.com/model", "registry.example.com/model:latest"),
        ("a/b/c/d:t", "docker.io/a/b/c/d:t"),
        (f"gemma3@sha256:{HEX}", f"docker.io/ai/gemma3@sha256:{HEX}"),
        (f"org/gemma3:v1@sha256:{HEX}", f"docker.io/org/gemma3:v1@sha256:{HEX}"),
        (f"reg.io/org/m@sha256:{HEX}", f"reg.io/org/m@sha256:{HEX}"),
        ("embedded/SmolLM2", "embedded/smollm2:latest"),
        ("docker.io/embedded/smollm2", "embedded/smollm2:latest"),
        ("file/model:latest", "file/model:latest"),
        ("reg.io/embedded/smollm2", "reg.io/embedded/smollm2:latest"),
        (HEX, HEX),
        (f"sha256:{HEX}", f"sha256:{HEX}"),
        (HEX[:12], HEX[:12]),
        (HEX[:11], f"docker.io/ai/{HEX[:11]}:latest"),
    ],
)
def test_a_name_is_completed(typed: str, stored: str) -> None:
    assert normalise(typed, local=LOCAL) == stored
    assert normalise(stored, local=LOCAL) == stored


@pytest.mark.parametrize(
    ("typed", "why"),
    [
        ("", "empty"),
        ("   ", "empty"),
        ("invalid:reference:format", "invalid:reference"),
        ("a b", '"a b"'),
        ("../../etc/passwd", '".."'),
        ("ai/../x", '".."'),
        ("ai//x", '""'),
        ("/abs/path", '""'),
        ("ai/x/", '""'),
        ("ai/-x", '"-x"'),
        ("ai/x..y", '"x..y"'),
        ("ai/x:-tag", "tag"),
        ("ai/x:" + "t" * 129, "tag"),
        ("ai/" + "x" * 256, "longer than 255"),
        ("x@sha256:abc", "64 lower-case hex"),
        (f"x@sha256:{HEX.upper()}", "64 lower-case hex"),
        (f"x@sha512:{HEX}", "sha256:"),
        ("x@", "sha256:"),
        ("https://huggingface.co/org/m", "URL"),
        ("reg_istry.io/x", "registry"),
        ("host:port/x", "registry"),
        ("ai/ünïcode", "ünïcode"),
        ("ai/x\0y", "valid part"),
    ],
)
def test_an_invalid_name_is_refused_with_the_reason(typed: str, why: str) -> None:
    with pytest.raises(RequestError) as caught:
        parse_reference(typed)
    assert why in caught.value.message.partition(": ")[2]
    assert caught.value.param == "model"
    assert len(caught.value.message) < 400


@pytest.mark.parametrize(
    ("stored", "familiar"),
    [
        ("docker.io/ai/smollm2:latest", "ai/smollm2"),
        ("docker.io/ai/smollm2:Q4", "ai/smollm2:Q4"),
        ("huggingface.co/org/m:latest", "huggingface.co/org/m"),
        ("embedded/smollm2:latest", "embedded/smollm2"),
        ("localhost:5000/x:latest", "localhost:5000/x"),
        (f"docker.io/ai/x@sha256:{HEX}", f"ai/x@sha256:{HEX}"),
    ],
)
def test_the_familiar_name_is_the_shortest(stored: str, familiar: str) -> None:
    assert parse_reference(stored, local=LOCAL).familiar == familiar


def test_local_names_have_no_registry() -> None:
    reference = parse_reference("embedded/smollm2", local=LOCAL)
    assert (reference.is_local, reference.namespace, reference.registry) == (True, "embedded", "")
    assert parse_reference("embedded/smollm2").registry == "docker.io"


def test_ids_are_12_or_64_lower_case_hex_digits() -> None:
    assert parse_model_id(HEX) == parse_model_id(f"sha256:{HEX}") == HEX
    assert parse_model_id(HEX[:12]) == HEX[:12]
    for text in (HEX.upper(), HEX[:13], f"sha256:{HEX[:12]}", "", "sha256:", HEX + "0"):
        assert parse_model_id(text) is None


_component = st.from_regex(r"[a-z0-9]{1,8}((\.|_|__|-{1,3})[a-z0-9]{1,8}){0,2}", fullmatch=True)
_names = st.builds(
    lambda registry, parts, tag, digest: registry + "/".join(parts) + tag + digest,
    st.sampled_from(
        ["", "docker.io/", "hf.co/", "localhost:5000/", "reg.example.com/", "LOCALHOST/"]
    ),
    st.lists(_component, min_size=1, max_size=4),
    st.one_of(st.just(""), st.from_regex(r":[A-Za-z0-9_][A-Za-z0-9_.-]{0,20}", fullmatch=True)),
    st.sampled_from(["", f"@sha256:{HEX}"]),
)


@given(st.one_of(_names, st.text(), st.text("aA0._-:/@ ", max_size=20)))
@example("docker.io/localhost/x")
@example("docker.io/a.b/x")
@example("docker.io/library/library/x")
def test_normalising_twice_changes_nothing(text: str) -> None:
    try:
        once = normalise(text, local=LOCAL)
    except RequestError:
        return
    assert normalise(once, local=LOCAL) == once


@given(_names)
def test_familiar_and_stored_name_mean_the_same(text: str) -> None:
    if parse_model_id(text):
        return
    try:
        reference = parse_reference(text, local=LOCAL)
    except RequestError:
        # A first part with a dot is a registry's name, which has stricter rules.
        reject()
    assert parse_reference(reference.familiar, local=LOCAL) == reference
    assert parse_reference(reference.stored, local=LOCAL) == reference
