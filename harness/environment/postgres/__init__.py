"""The database of the system under test: one PostgreSQL, with the harness as its superuser."""
