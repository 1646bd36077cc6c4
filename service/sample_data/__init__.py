"""Books to begin with.

shipped     the books in `books.csv`
generated   any number of made-up books, by a seed
"""
