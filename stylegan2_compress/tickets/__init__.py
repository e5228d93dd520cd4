"""Strong lottery tickets: mask rules over time, the search, and the ticket file."""
