# docs/serving.md describes the deployment.
# Build:    docker build -t octavo --build-arg REVISION=$(git rev-parse HEAD) .
# Migrate:  docker run --rm -e OCTAVO_ENV=production -e DATABASE_URL=... -e SECRET_KEY=... \
#               -e PUBLIC_URL=... octavo migrate
# Serve:    docker run -p 8000:8000 (the same settings) octavo

FROM python:3.13-slim AS build
WORKDIR /app
RUN python -m venv /app/.venv
COPY requirements.lock pyproject.toml README.md ./
RUN .venv/bin/pip install --no-cache-dir --require-hashes --no-deps -r requirements.lock
COPY service service
RUN .venv/bin/pip install --no-cache-dir --no-deps --no-build-isolation -e .

FROM python:3.13-slim
WORKDIR /app
RUN useradd --system --no-create-home octavo && install -d -o octavo /app/logs
COPY --from=build /app /app
COPY alembic.ini ./
COPY alembic alembic
ARG REVISION=
ENV REVISION=$REVISION
ENV PATH=/app/.venv/bin:$PATH PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 OCTAVO_ENV=production
USER octavo
EXPOSE 8000
HEALTHCHECK --interval=10s --timeout=3s --start-period=10s \
    CMD ["python", "-c", "import urllib.request as r; r.urlopen('http://127.0.0.1:8000/health/live', timeout=2)"]
ENTRYPOINT ["octavo"]
CMD ["serve", "--bind", "0.0.0.0:8000"]
