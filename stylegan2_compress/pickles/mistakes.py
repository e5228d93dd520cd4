"""Files that are given for network files by mistake, told by their beginnings."""

from io import BufferedIOBase

_BEGINNING = 512  # Bytes that are looked at.
_IMAGES = (b'\x89PNG', b'\xff\xd8\xff', b'GIF8', b'RIFF')  # Of WebP is the last.
_TICKET = b'\x89SG2TICKET'  # How a file of `tickets.ticket_file` begins; that is above this package.


def what_it_is(file: BufferedIOBase, may_be_zip: bool = False) -> str | None:
    """What a file is that is no network file, with the way to one; None if its beginning says nothing.

    A pickle of protocol 0 is text, too: only of use for a file that could not be read.

    Args:
        file: the file.
        may_be_zip: whether files of its kind are zip archives.
    """
    file.seek(0)
    beginning = file.read(_BEGINNING)
    text = beginning.lstrip().lower()
    if not beginning:
        return 'an empty file: copy or download it again'
    if text.startswith((b'<!doctype html', b'<html')):
        return 'an HTML page: a browser shows what the download said instead of the file'
    if beginning.startswith(b'version https://git-lfs.github.com/spec/'):
        return 'a Git LFS pointer: `git lfs pull` in its repository gets the file itself'
    if beginning.startswith(_TICKET):
        return 'a ticket: `stylegan2-compress ticket bake` makes a network file of it'
    if beginning.startswith(_IMAGES):
        return 'an image: name the network file that makes such images'
    if beginning.startswith(b'PK\x03\x04') and not may_be_zip:
        return 'a zip archive, such as a data set: name a pickle of networks, or call it .pt if torch.save wrote it'
    if _is_text(beginning):
        return 'a text file: name a pickle of networks'
    return None


def _is_text(beginning: bytes) -> bool:
    try:
        text = beginning[:-3].decode()  # Without a character that may be cut.
    except UnicodeDecodeError:
        return False
    return ' ' in text and all(character.isprintable() or character.isspace() for character in text)
