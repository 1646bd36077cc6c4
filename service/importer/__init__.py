"""Books from files, by the million: the path that a record takes.

    sources.py    bytes: a file or standard input, plain or gzip
      -> csv_table.py, jsonl.py, marc.py    records of CSV, JSON Lines and MARC 21, damaged or not
      -> normalise.py    what can be mended without guessing; then the contract decides
      -> digest.py    how a later import knows the record again
      -> loader.py    a thousand at a time into the database, each record at most once
    importer.py walks the path, counts, and writes down what was refused.

Nothing here grows with the file: a record is at most MAX_RECORD long, and what was imported is
remembered by the database.
"""
