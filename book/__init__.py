"""The book: lessons, reference, measurements and notes as pages that need no network."""
