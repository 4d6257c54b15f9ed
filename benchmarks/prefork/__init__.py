"""Services under gunicorn, and what loads them: how much memory a worker has of its own, what ten times too much does."""
