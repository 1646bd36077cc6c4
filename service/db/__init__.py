"""The database: connections, sessions, statements, migrations.

database       sessions for reads, and writes with their retries
engines        connection pools for PostgreSQL and SQLite
errors         which errors of the drivers mean that the database is unavailable
group_commit   one transaction for concurrent inserts
json_rows      any number of rows as one JSON parameter
list_queries   statements for lists, by page or by cursor
migrations     the revisions of Alembic
alter_table    changes of a table that keep SQLite's triggers
"""
