"""From rows of text to encoded rows."""
