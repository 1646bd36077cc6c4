"""Books for demonstrations and load tests.

shipped     the books in `books.csv`
generated   any number of generated books, determined by a seed
"""
