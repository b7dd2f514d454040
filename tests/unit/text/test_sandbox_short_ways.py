"""The sandbox's short ways to items and namespaces find what the long way finds."""

from __future__ import annotations

from typing import Any

import pytest
from jinja2.sandbox import ImmutableSandboxedEnvironment

from sglite.runtime.text.template_sandbox import BoundedSandbox


@pytest.mark.parametrize(
    "source",
    [
        "{{ m.role }}|{{ m.missing is defined }}|{{ m.none is none }}",
        "{% for k, v in m.items() %}{{ k }}={{ v }};{% endfor %}",  # an attribute goes before an item of its name
        "{{ m.keys() | list }}|{{ m['items'] }}|{{ m.get('role') }}",
        "{% set ns = namespace(a='x', b=[1], c=none) %}{{ ns.a }}{{ ns.b }}{{ ns.c }}{{ ns.d is defined }}",
        "{% set ns = namespace({'a': 1}, b=2) %}{% for i in [3] %}{% set ns.a = i %}{% endfor %}{{ ns.a }}{{ ns.b }}",
        "{% set ns = namespace(f='{}-{}'.format) %}{{ ns.f(1, 2) }}",
        "{{ m.nested.role }}{{ m._private }}{{ m['_private'] }}",
    ],
)
def test_short_ways_find_the_same(source: str) -> None:
    message: dict[str, Any] = {
        "role": "user",
        "items": "shadowed",
        "none": None,
        "nested": {"role": "deep"},
        "_private": "kept",
    }
    reference = ImmutableSandboxedEnvironment().from_string(source).render(m=message)
    sandbox = BoundedSandbox()
    template = sandbox.load(source)
    with sandbox.metered():
        assert template.render(m=message) == reference
