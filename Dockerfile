# NeuroSeg in a container, with the shipped model inside:
#
#   docker build -t neuroseg .
#   docker run --rm --read-only --tmpfs /tmp:size=2g --memory 6g -e NEUROSEG_MAX_UPLOAD_MB=300 \
#     -p 127.0.0.1:8501:8501 neuroseg
#
# Read-only, with uploads in a memory-backed /tmp that vanishes with the container; reachable from this machine only.
# Put a login in front before others may reach it: docs, "Serve the application".
FROM python:3.12-slim
WORKDIR /src
COPY pyproject.toml setup.py settings.ini README.md LICENSE NOTICE ./
COPY neuroseg neuroseg
RUN pip install --no-cache-dir '.[app]' && rm -rf /src/*
RUN useradd --create-home --uid 1000 neuroseg
USER neuroseg
WORKDIR /home/neuroseg
ENV PYTHONDONTWRITEBYTECODE=1
EXPOSE 8501
HEALTHCHECK --interval=30s --timeout=5s CMD python -c \
  "from urllib.request import urlopen; urlopen('http://localhost:8501/_stcore/health', timeout=4)"
CMD ["neuroseg", "app", "--port", "8501", "--address", "0.0.0.0"]
