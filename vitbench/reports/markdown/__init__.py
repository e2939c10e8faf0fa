"""Pages in Markdown: order, folds and escaping."""
