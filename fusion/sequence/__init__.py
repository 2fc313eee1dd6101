"""From messages to packed rows: documents, images, patches, tokens, rows and their attention mask."""
