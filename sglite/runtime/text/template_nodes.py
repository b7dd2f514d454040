"""What is built into a chat template when it is compiled: loops, macros, blocks and `~` pass by the sandbox's meter.

They do so through filters, which have names that no template can write.
"""

from __future__ import annotations

from typing import Any

from jinja2 import nodes
from jinja2.ext import Extension
from jinja2.parser import Parser
from jinja2.visitor import NodeTransformer

STEP = 50
"""Units of work of a loop turn or a call."""
CHARGE, TURNS, CONCAT = "charge work", "count turns", "join texts"


class Instrument(NodeTransformer):
    """Makes every loop turn, macro, block and `~` of a parsed template pass by the meter."""

    def visit_For(self, node: nodes.For) -> nodes.For:
        self._body(node)
        node.iter = _filtered(node.iter, TURNS)
        return node

    def visit_Concat(self, node: nodes.Concat) -> nodes.Node:
        self.generic_visit(node)
        return _filtered(nodes.List(node.nodes, lineno=node.lineno), CONCAT)

    def _body(self, node: Any) -> Any:
        self.generic_visit(node)
        text = sum(len(data.data) for data in node.find_all(nodes.TemplateData))
        price = nodes.Const(STEP + text, lineno=node.lineno)
        node.body.insert(0, nodes.ExprStmt(_filtered(price, CHARGE), lineno=node.lineno))
        return node

    visit_Macro = visit_CallBlock = visit_Block = _body


class GenerationBlock(Extension):
    """`{% generation %}...{% endgeneration %}` marks assistant text for training; here it is just its content."""

    tags = {"generation"}  # noqa: RUF012

    def parse(self, parser: Parser) -> list[nodes.Node]:
        """The statements inside."""
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _filtered(node: Any, name: str) -> nodes.Filter:
    return nodes.Filter(node, name, [], [], None, None, lineno=node.lineno)
