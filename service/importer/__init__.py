"""Import books from files of millions of records. The path of a record:

    sources.py    bytes: a file or standard input, plain or gzip
      -> csv_table.py, jsonl.py, marc.py    records of CSV, JSON Lines and MARC 21, valid or damaged
      -> normalise.py    unambiguous repairs, then validation by the book's schema
      -> digest.py    the digest by which a later import recognises the record
      -> loader.py    inserts in batches of a thousand, each record at most once
    importer.py runs these steps, counts records, and writes the refused records to a file.

Memory use does not grow with the file: a record is at most MAX_RECORD long, and the database
stores which records were imported.
"""
