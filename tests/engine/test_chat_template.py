"""Templates are programs from strangers: rendered as transformers does, stopped when they go on."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from headrace.engine import template_worker
from headrace.engine.chat_template import ChatTemplate
from headrace.engine.tokenizer import Tokenizer
from headrace.errors import CheckpointError, ParameterError, UnsupportedModelError

from . import vocabularies

HELLO = [{"role": "user", "content": "hello"}]
LOOP = "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}"


@contextmanager
def opened(source: str, **variables: str) -> Iterator[ChatTemplate]:
    template = ChatTemplate(source, variables, "model")
    try:
        yield template
    finally:
        template.close()


TEMPLATES = [
    vocabularies.TEMPLATE,
    "{% for m in messages %}\n  {% if loop.first %}\n{{ bos_token }}\n  {% endif %}\n"
    "{{- m.role | capitalize }}: {{ m.content | trim }}\n{% endfor %}",
    "{{ messages | tojson }}{{ messages | tojson(indent=1) }}{{ {'b': 1, 'a': 'é'} | tojson }}",
    "{% for m in messages %}{% if loop.index > 1 %}{% break %}{% endif %}{{ m.content }}"
    "{% endfor %}{% generation %}<{{ eos_token }}>{% endgeneration %}",
    "{% set ns = namespace(n=0) %}{% for m in messages %}{% set ns.n = ns.n + 1 %}{% endfor %}"
    "{{ ns.n }}{{ strftime_now('%Y') | length }}{{ tools is none }}{{ documents is none }}"
    "{{ add_generation_prompt }}{{ nothing }}{{ messages[-1]['content'].split('l') }}",
]


@pytest.mark.parametrize("source", TEMPLATES)
def test_templates_render_as_transformers_renders_them(tmp_path: Path, source: str) -> None:
    from transformers import AutoTokenizer

    folder = vocabularies.save(vocabularies.byte_level(), tmp_path, source)
    messages: list[dict[str, Any]] = [*HELLO, {"role": "assistant", "content": " <é> 'q' "}]
    expected = AutoTokenizer.from_pretrained(folder).apply_chat_template(
        messages, tokenize=False, add_generation_prompt=True
    )
    tokenizer = Tokenizer.load(folder)
    try:
        assert tokenizer.render_chat(messages) == expected
    finally:
        tokenizer.close()


@pytest.mark.parametrize(
    "source",
    [
        "{{ 'x' * 10**10 }}",
        "{{ '%10000000000d' % 3 }}",
        "{{ 'a'.center(10**10) }}",
        "{% set n = namespace(a='x') %}{% for i in range(60) %}{% set n.a = n.a * 2 %}{% endfor %}",
        "{% for i in range(99999) %}{{ 'x' * 9999 }}{% endfor %}",
        "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
        "{{ ''.__class__.__mro__ }}",
        "{{ cycler.__init__.__globals__ }}",
        "{% include '/etc/passwd' %}",
        "{{ messages.append(1) }}",
    ],
)
def test_what_a_template_may_not_do_is_refused(source: str) -> None:
    with opened(source) as template, pytest.raises(ParameterError, match="refuses the messages"):
        template.render(HELLO)


@pytest.mark.parametrize("source", [LOOP, "{{ 10 ** (10 ** 9) }}"])
def test_a_template_without_end_is_refused_for_good(source: str) -> None:
    with opened(source) as template, pytest.raises(UnsupportedModelError, match="goes too far"):
        template.render(HELLO)


def test_a_conversation_that_makes_it_run_on_costs_that_conversation() -> None:
    source = "{% if messages[0].content == 'z' %}" + LOOP + "{% endif %}fine"
    with opened(source) as template:
        assert template.render(HELLO) == "fine"
        with pytest.raises(ParameterError, match="goes too far with these messages"):
            template.render([{"role": "user", "content": "z"}])
        assert template.render(HELLO) == "fine"


def test_no_template_is_a_fault_of_the_checkpoint() -> None:
    with opened("{% if") as template, pytest.raises(CheckpointError, match="TemplateSyntaxError"):
        template.render(HELLO)


def test_messages_that_are_no_data_are_refused() -> None:
    with opened("x") as template, pytest.raises(ParameterError, match="plain data"):
        template.render([{"role": object()}])


def test_the_process_ends_with_the_template_and_writes_no_file() -> None:
    before = len(os.listdir("/proc/self/fd"))
    template = ChatTemplate("x", {}, "model")
    template.render(HELLO)
    assert template._process is not None
    limits = Path(f"/proc/{template._process.pid}/limits").read_text()
    size = next(line for line in limits.splitlines() if line.startswith("Max file size"))
    assert size.split()[3:5] == ["0", "0"]
    pid = template._process.pid
    template.close()
    template.close()
    assert not Path(f"/proc/{pid}").exists()
    assert len(os.listdir("/proc/self/fd")) == before


def test_a_forgotten_template_leaves_no_process() -> None:
    template = ChatTemplate("x", {}, "model")
    template.render(HELLO)
    assert template._process is not None
    pid = template._process.pid
    del template
    assert not Path(f"/proc/{pid}").exists()


def test_the_worker_refuses_more_text_than_it_may_make(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(template_worker, "MAX_CHARACTERS", 10)
    render = template_worker._compiled("{% for i in range(4) %}abc{% endfor %}", {})
    with pytest.raises(template_worker.TooLongError):
        render([])
    assert (
        template_worker._limited(lambda: render([]))[0]["error"]
        == "it makes more than 10 characters"
    )
    assert template_worker._limited(lambda: "x" * 3) == ({}, "xxx")
