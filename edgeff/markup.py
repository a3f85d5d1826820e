"""HTML and SVG from Python, in which every text is escaped unless this module made it."""

from __future__ import annotations

from html import escape

_VOID = ("br", "link", "meta", "wbr")


class Safe(str):
    """Markup that needs no escaping any more."""

    __slots__ = ()


def element(tag: str, *content: str, **attributes: str | float | bool | None) -> Safe:
    """An element.

    Args:
        tag: Its name.
        content: Texts, which are escaped, and elements.
        attributes: By name, with `_` for `-` and one more `_` at the end of a word of Python's. True stands for an
            attribute without a value; False and None leave it out.

    >>> element("p", "1 < 2 ", element("b", "so"), class_="a", data_x=3, hidden=True, title=None)
    '<p class="a" data-x="3" hidden>1 &lt; 2 <b>so</b></p>'
    """
    start = f"<{tag}{''.join(_attribute(name, value) for name, value in attributes.items())}>"
    return Safe(start if tag in _VOID else f"{start}{join(*content)}</{tag}>")


def join(*content: str) -> Safe:
    """Texts and elements after one another.

    >>> join("a & ", element("br"))
    'a &amp; <br>'
    """
    return Safe("".join(part if isinstance(part, Safe) else escape(part) for part in content))


def _attribute(name: str, value: str | float | bool | None) -> str:
    if value is None or value is False:
        return ""
    plain = name.removesuffix("_").replace("_", "-")
    return f" {plain}" if value is True else f' {plain}="{escape(_text(value))}"'


def _text(value: str | float) -> str:
    """Numbers as short as a picture needs them."""
    return f"{value:.2f}".rstrip("0").rstrip(".") if isinstance(value, float) else str(value)
