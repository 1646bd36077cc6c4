"""The suite: it speaks HTTP to real servers, on SQLite and on PostgreSQL."""
