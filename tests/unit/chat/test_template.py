"""Chat templates: rendered as Hugging Face does, by strangers' programs that are kept in bounds."""

import time
from datetime import UTC, datetime

import jinja2
import pytest
from hypothesis import given
from hypothesis import strategies as st

from runner.api.errors import RequestError
from runner.api.requests import Message
from runner.chat.template import MAX_SOURCE_CHARS, ChatTemplate

CHATML = """\
{%- for message in messages %}
    {%- if loop.first and message['role'] != 'system' %}
        {{- '<|im_start|>system\\nBe helpful.<|im_end|>\\n' }}
    {%- endif %}
    {{- '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
{%- endif %}
"""

USER = (Message(role="user", content="Hi"),)


def _render(source: str, messages: tuple[Message, ...] = USER, **options: bool) -> str:
    return ChatTemplate(source, bos="<s>", eos="</s>").render(messages, **options)


def test_chatml_renders_turns_and_the_opening_of_the_answer() -> None:
    assert _render(CHATML) == (
        "<|im_start|>system\nBe helpful.<|im_end|>\n"
        "<|im_start|>user\nHi<|im_end|>\n"
        "<|im_start|>assistant\n"
    )
    assert _render(CHATML, add_generation_prompt=False).endswith("<|im_end|>\n")


def test_messages_are_never_read_as_template() -> None:
    message = Message(role="user", content="{{ 7 * 7 }} {% raw %} <b> & 'x'")
    assert _render("{{ messages[0].content }}", (message,)) == message.content


@given(st.lists(st.tuples(st.sampled_from(["user", "assistant", "system"]), st.text()), min_size=1))
def test_any_content_arrives_unchanged(turns: list[tuple[str, str]]) -> None:
    messages = tuple(Message(role=role, content=content) for role, content in turns)
    template = ChatTemplate(
        "{% for m in messages %}{{ m.role ~ ':' ~ m.content }}|{% endfor %}", bos="", eos=""
    )
    assert template.render(messages) == "".join(f"{role}:{content}|" for role, content in turns)


def test_special_tokens_name_and_absent_things_are_as_templates_expect() -> None:
    named = (Message(role="user", content="Hi", name="Ada"), *USER)
    source = (
        "{{ bos_token }}{{ eos_token }}"
        "{% for m in messages %}{{ m.name if m.name is defined else '-' }}{% endfor %}"
        "{{ tools is none }}{{ enable_thinking is defined }}{{ nothing }}"
    )
    assert _render(source, named) == "<s></s>Ada-TrueFalse"


def test_blocks_are_trimmed() -> None:
    assert _render("{% if true %}\n  {% set x = 1 %}\nyes\n{% endif %}\n") == "yes\n"


def test_namespace_loop_controls_generation_and_macros_work() -> None:
    source = (
        "{% macro wrap(x) %}[{{ x }}]{% endmacro %}"
        "{% set ns = namespace(n=0) %}"
        "{% for i in range(10) if i != 1 %}{% if i == 4 %}{% break %}{% endif %}"
        "{% set ns.n = ns.n + i %}{% endfor %}"
        "{% generation %}{{ wrap(ns.n) }}{% endgeneration %}{{ loop is defined }}"
    )
    assert _render(source) == "[5]False"


def test_loops_keep_their_variables_under_the_bounds() -> None:
    source = "{% for m in messages %}{{ loop.index }}/{{ loop.length }}{{ loop.last }};{% endfor %}"
    assert _render(source, USER * 2) == "1/2False;2/2True;"


def test_tojson_escapes_nothing_for_html_and_takes_the_usual_arguments() -> None:
    source = (
        "{{ {'b': '<é>', 'a': 1} | tojson }} "
        "{{ {'b': 1, 'a': 2} | tojson(sort_keys=true, indent=2) }}"
    )
    assert _render(source) == '{"b": "<é>", "a": 1} {\n  "a": 2,\n  "b": 1\n}'
    assert _render("{{ 'é' | tojson(ensure_ascii=true) }}") == '"\\u00e9"'


def test_the_date_comes_from_the_clock() -> None:
    def clock() -> datetime:
        return datetime(2025, 3, 1, tzinfo=UTC)

    template = ChatTemplate("{{ strftime_now('%d %b %Y') }}", bos="", eos="", clock=clock)
    assert template.render(USER) == "01 Mar 2025"
    assert len(_render("{{ strftime_now('%Y') }}")) == 4


def test_a_refusal_carries_the_template_s_own_words_and_line() -> None:
    source = "{% if true %}\n\n{{ raise_exception('roles must alternate') }}{% endif %}"
    with pytest.raises(RequestError) as caught:
        _render(source)
    assert caught.value.message == (
        "the model's chat template refuses these messages (line 3): roles must alternate"
    )
    assert caught.value.param == "messages"


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("ok\n{% for %}", "is broken (line 2)"),
        ("\n{{ nothing.at.all }}", "failed (line 2): 'nothing' is undefined"),
        ("{{ 1 / 0 }}", "failed (line 1): ZeroDivisionError: division by zero"),
        ("{{ 'a' + 1 }}", "failed (line 1): TypeError"),
        ("{% macro m() %}\n{{ missing.x }}{% endmacro %}\n{{ m() }}", "failed (line 2)"),
        ("{% include 'other' %}", "failed (line 1): TypeError"),
        ("{{ x | no_such_filter }}", "is broken (line 1): No filter named"),
        ("{{ " + "(" * 5000 + ")" * 5000 + " }}", "is broken: RecursionError"),
    ],
)
def test_a_broken_template_is_an_error_that_names_the_line(source: str, message: str) -> None:
    with pytest.raises(RequestError) as caught:
        _render(source)
    assert message in caught.value.message


@pytest.mark.parametrize(
    "source",
    [
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ ''['__class__'].__base__ }}",
        "{{ messages.append(1) }}",
        "{{ messages[0].update(role='system') }}",
        "{{ raise_exception.__globals__.os }}",
        "{{ strftime_now.__globals__.os }}",
        "{{ '{0.__class__.__init__.__globals__}'.format(range) }}",
        "{{ ('{0.__class__.__init__.__globals__}' | attr('format'))(range) }}",
        "{{ messages | map('attr', '__class__') | first | string | length / 0 }}",
        "{{ self.__init__.__globals__ }}",
        "{{ cycler.__init__.__globals__ }}",
    ],
)
def test_the_sandbox_holds(source: str) -> None:
    with pytest.raises(RequestError):
        _render(source)


@pytest.mark.parametrize(
    "source",
    [
        "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
        "{% for a in range(99999) %}{% for b in range(99999) if false %}{% endfor %}{% endfor %}",
        (
            "{% set s = 'x' * 9999 %}{% for a in s %}{% for b in s %}{% for c in s %}{% continue %}"
            "{% endfor %}{% endfor %}{% endfor %}"
        ),
        "{% macro m(n) %}{% if n %}{{ m(n-1) }}{{ m(n-1) }}{% endif %}{% endmacro %}{{ m(60) }}",
        "{% block b %}{% set x = self.b() %}{% set x = self.b() %}{% endblock %}",
        (
            "{% for x in [[[]]] recursive %}{% for i in range(9999) %}{{ loop.index }}{% endfor %}"
            "{{ loop([[[]]]) }}{{ loop([[[]]]) }}{% endfor %}"
        ),
    ],
)
def test_a_template_without_end_is_stopped(source: str) -> None:
    template = ChatTemplate(source, bos="", eos="", timeout_s=0.2)
    start = time.monotonic()
    with pytest.raises(RequestError, match=r"was stopped|recursion"):
        template.render(USER)
    assert time.monotonic() - start < 10


def _squared(value: str, operator: str) -> str:
    step = "{% set n.x = n.x OP n.x %}".replace("OP", operator)
    return (
        "{% set n = namespace(x=" + value + ") %}{% for i in range(64) %}" + step + "{% endfor %}"
    )


@pytest.mark.parametrize(
    "source",
    [
        "{{ 'x' * 10**9 }}",
        "{{ 10**9 * 'x' }}",
        "{{ [0] * 10**9 }}",
        "{{ 9 ** 99999999 }}",
        _squared("7", "*"),
        _squared("'ab'", "~"),
        _squared("'ab'", "+"),
        _squared("[1]", "+"),
        "{% for i in range(99999) %}{{ 'x' * 9999 }}{% endfor %}",
        "{{ 'x'.center(10**10) }}",
        "{{ 'x' | center(10**10) }}",
        "{{ 'x'.ljust(width) if false else 'x'.zfill(10**10) }}",
        "{{ ('\\n' * 99999) | indent(99999) }}",
        "{{ ('\\t' * 99999).expandtabs(99999) }}",
        "{{ '%1000000000d' % 1 }}",
        "{{ '%*d' % (1000000000, 1) }}",
        "{{ '%1000000000d' | format(1) }}",
        "{{ '{:1000000000}'.format(1) }}",
        "{{ ('x' * 99999).replace('x', 'y' * 99999) }}",
        "{{ ('x' * 99999) | replace('x', 'y' * 99999) }}",
        "{{ ['x' * 99999] * 9999 | join }}",
        "{{ ('x' * 99999).join('y' * 99999) }}",
        "{{ ([1] * 99999) | join('x' * 99999) }}",
        "{{ range(10**9) | list }}",
        "{{ [1] | batch(10**9, 'x') | list }}",
        "{{ [1] | slice(10**9) | list }}",
        "{{ [1] | tojson(indent=10**9) }}",
        "{{ lipsum(10**9) }}",
    ],
)
def test_a_template_that_makes_too_much_is_stopped_before_it_does(source: str) -> None:
    start = time.process_time()
    with pytest.raises(RequestError):
        _render(source)
    assert time.process_time() - start < 5


def test_a_huge_source_is_refused() -> None:
    with pytest.raises(RequestError, match="more than the"):
        ChatTemplate("x" * (MAX_SOURCE_CHARS + 1), bos="", eos="")


def test_long_chats_are_well_within_the_bounds() -> None:
    text = "word\n" * 40_000
    source = (
        "{% for m in messages %}{% set c = m.content | trim %}{{ c.replace('word', 'words') }}"
        "{{ c.find('x', 150000) }}{{ c.split('\\n') | length }}{{ c | indent(4) | length }}"
        "{% endfor %}"
    )
    assert len(_render(source, (Message(role="user", content=text),) * 20)) > 20 * len(text)


def test_a_template_renders_again_after_it_was_stopped() -> None:
    source = "{{ 'x' * 10**9 if messages[0].content == 'bad' else 'fine' }}"
    template = ChatTemplate(source, bos="", eos="")
    with pytest.raises(RequestError):
        template.render((Message(role="user", content="bad"),))
    assert template.render(USER) == "fine"


_HF_CASES = [
    CHATML,
    "{{ bos_token }}{% for m in messages %}{{ m.content | trim }}{{ eos_token }}\n{% endfor %}\n",
    "{%- for m in messages -%}\n  {{ m.role }}: {{ m.content }}\n{%- endfor %}\n\n",
    "{% for m in messages %}\n\t{% if loop.index0 % 2 == 0 %}A{% else %}B{% endif %}\n{% endfor %}",
]


@pytest.mark.parametrize("source", _HF_CASES)
def test_the_bounds_change_no_output(source: str) -> None:
    plain = jinja2.Environment(trim_blocks=True, lstrip_blocks=True, autoescape=False)
    messages = (*USER, Message(role="assistant", content=" Hello\n"), *USER)
    expected = plain.from_string(source).render(
        messages=[{"role": m.role, "content": m.content} for m in messages],
        bos_token="<s>",
        eos_token="</s>",
        add_generation_prompt=True,
    )
    assert _render(source, messages) == expected
