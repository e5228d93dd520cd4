"""HTML and SVG as trees: whatever text or attribute goes in comes out escaped."""

import re
from xml.etree import ElementTree
from xml.etree.ElementTree import Element

# Control characters, those that reverse the direction of what follows, and halves of characters.
_UNPRINTABLE = re.compile('[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff\ufffe\uffff]')

Child = Element | str | int | None


def element(tag: str, *children: Child, **attributes: object) -> Element:
    """`element('p', 'a < b', class_='note')`. None is left out, of children and attributes; `_` becomes `-`."""
    names = {name: name.rstrip('_').replace('_', '-') for name in attributes}
    node = Element(tag, {names[name]: printable(value) for name, value in attributes.items() if value is not None})
    last = None
    for child in children:
        if isinstance(child, Element):
            node.append(child)
            last = child
        elif child is not None:
            if last is None:
                node.text = (node.text or '') + printable(child)
            else:
                last.tail = (last.tail or '') + printable(child)
    return node


def document(root: Element) -> bytes:
    """The tree as an HTML file."""
    return b'<!DOCTYPE html>\n' + ElementTree.tostring(root, encoding='unicode', method='html').encode() + b'\n'


def printable(value: object) -> str:
    return _UNPRINTABLE.sub('\ufffd', str(value))
