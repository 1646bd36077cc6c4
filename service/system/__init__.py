"""Routes for operators: health, metrics, and the front page.

health          `/health`, `/health/live`, `/health/ready`
metrics         `/metrics`, for Prometheus
metrics_files   the files in which worker processes share their metrics
home            the front page
"""
