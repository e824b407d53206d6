# Two images from one file: `server` (API, worker, reaper) and `gpu` (a worker with the CUDA kernels).
#   docker build --target server -t bitwright-server .
# torch comes in many builds. For one without CUDA libraries, pass the index that holds it:
#   --build-arg PIP_EXTRA_INDEX_URL=<index of CPU wheels>
ARG PYTHON=python:3.11-slim-bookworm

FROM ${PYTHON} AS build
ARG PIP_EXTRA_INDEX_URL=""
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
WORKDIR /src
COPY pyproject.toml constraints.txt README.md LICENSE ./
COPY kernels kernels
COPY search search
COPY service service
COPY workers workers
RUN python -m venv /opt/bitwright \
    && /opt/bitwright/bin/pip install --constraint constraints.txt ".[s3]"

FROM build AS build-gpu
RUN /opt/bitwright/bin/pip install --constraint constraints.txt ".[s3,cuda13]"

FROM ${PYTHON} AS runtime
RUN apt-get update \
    && apt-get install --yes --no-install-recommends tini \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --uid 10001 --create-home --shell /usr/sbin/nologin bitwright \
    && install --directory --owner=bitwright --group=bitwright --mode=0700 /data
ENV PATH=/opt/bitwright/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    BITWRIGHT_DATA_FOLDER=/data \
    BITWRIGHT_HOST=0.0.0.0 \
    BITWRIGHT_AUTH=keys
USER 10001:10001
WORKDIR /data
VOLUME /data
EXPOSE 8300
ENTRYPOINT ["tini", "--", "bitwright-server"]
CMD ["up"]

FROM runtime AS gpu
COPY --from=build-gpu /opt/bitwright /opt/bitwright
# A CUDA process reserves far more address space than it uses.
ENV BITWRIGHT_STAGE_MEMORY_BYTES=0

FROM runtime AS server
COPY --from=build /opt/bitwright /opt/bitwright
