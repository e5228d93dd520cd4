"""`export.json`: what an export is, and how it compares with its network."""

RECORD = 'export.json'
