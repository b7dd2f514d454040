# sglite on CPUs. Build:  docker build -t sglite .
# Run:    docker run --rm -p 127.0.0.1:30000:30000 -v /path/of/models:/models:ro -e SGLITE_API_KEY sglite /models/NAME
# What stands after the image's name are flags of `sglite serve`; without any the bundled model is served.
# Stop with `docker stop --time 40`: requests under way have 30 s to end.
#
# TORCH        the PyTorch requirement
# TORCH_INDEX  a package index to take it from; empty: pip's own. PyTorch keeps one with small CPU builds

FROM python:3.12 AS build
ARG TORCH="torch==2.13.0"
ARG TORCH_INDEX=""
RUN python -m venv /opt/sglite
ENV PATH=/opt/sglite/bin:$PATH PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
RUN pip install "$TORCH" ${TORCH_INDEX:+--index-url "$TORCH_INDEX"}
COPY pyproject.toml README.md LICENSE /src/
COPY sglite /src/sglite
RUN pip install "/src[runtime]"
# Native code is compiled here, where there is a compiler, and found beside its sources later.
RUN cd / && python -c "import shutil; from pathlib import Path; \
from sglite.constrained.engines.native_build import PREBUILT, build; shutil.copy(build(Path('/tmp/native')), PREBUILT)" && python -c "import shutil; from pathlib import Path; \
from sglite.runtime.backend.native_build import PREBUILT, build; shutil.copy(build(Path('/tmp/native')), PREBUILT)"

FROM python:3.12-slim
COPY --from=build /opt/sglite /opt/sglite
RUN useradd --create-home --uid 10001 sglite
USER sglite
WORKDIR /home/sglite
ENV PATH=/opt/sglite/bin:$PATH PYTHONUNBUFFERED=1
EXPOSE 30000
# /health is open, whatever keys are set, and costs nothing; a large model takes a while to load.
HEALTHCHECK --interval=10s --timeout=3s --start-period=10m --retries=3 \
    CMD ["python", "-c", "import urllib.request as u; u.urlopen('http://127.0.0.1:30000/health', timeout=2)"]
# Inside a container the port is reached from outside only where it is published.
ENTRYPOINT ["sglite", "serve", "--host", "0.0.0.0", "--port", "30000"]
