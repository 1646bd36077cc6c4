"""The settings that every peer reads from its environment."""

import os

DATABASE_URL = os.environ.get("DATABASE_URL", "postgresql://localhost/books")
REDIS_URL = os.environ.get("REDIS_URL", "redis://localhost:6379/0")
SECRET_KEY = os.environ.get("SECRET_KEY", "")
PUBLIC_URL = os.environ.get("PUBLIC_URL", "http://localhost:8000")
RATE = int(os.environ.get("RATE", "1000000"))  # requests per minute and client
ALGORITHM, ISSUER, AUDIENCE = "HS256", "octavo", "octavo"
# Permanent connections only: under load SQLAlchemy opens its overflow connections again and again,
# which the benchmark should not measure.
POOL = {"pool_size": 15, "max_overflow": 0}
ITEM_SECONDS, COUNT_SECONDS, PAGE_SECONDS = 300, 30, 30
