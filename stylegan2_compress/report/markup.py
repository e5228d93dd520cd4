"""HTML and SVG as element trees, in which all texts and attributes are escaped."""

import re
from xml.etree import ElementTree
from xml.etree.ElementTree import Element

# Control characters, characters that change the direction of text, and surrogates.
_UNPRINTABLE = re.compile('[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff\ufffe\uffff]')

Child = Element | str | int | None


def element(tag: str, *children: Child, **attributes: object) -> Element:
    """An element: `element('p', 'a < b', class_='note')`.

    Children and attributes that are None are left out. In attribute names, `_` at the end is removed and others are
    replaced by `-`.
    """
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
    """The bytes of an HTML file."""
    return b'<!DOCTYPE html>\n' + ElementTree.tostring(root, encoding='unicode', method='html').encode() + b'\n'


def printable(value: object) -> str:
    """The value as text, with replacement characters for those that cannot be printed."""
    return _UNPRINTABLE.sub('\ufffd', str(value))
