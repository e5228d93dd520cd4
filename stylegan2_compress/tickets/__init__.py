"""Strong lottery tickets: masks as few bytes, the ticket file, and generators with masks multiplied in."""
