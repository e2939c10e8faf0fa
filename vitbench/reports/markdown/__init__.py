"""Tables of values as Markdown: digits, escaping and explanations."""
