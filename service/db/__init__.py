"""The database: connections, sessions, statements, migrations.

database       sessions for reads, and writes with their retries
engines        connection pools for PostgreSQL and SQLite
errors         which errors of the drivers mean that the database is unavailable
group_commit   creates that arrive together in one transaction
json_rows      rows as one JSON parameter
list_queries   the statements of pages and cursors
migrations     the revisions of Alembic
alter_table    changes of a table that keep SQLite's triggers
"""
