# docker build -t etb .                                          CPU
# docker build -t etb --build-arg BASE=pytorch/pytorch .         a GPU: a base that has torch for it; docker run --gpus all
#
# docker run etb                                                 the demo
# docker run -v $PWD/runs:/etb/runs etb compare --dataset digits --methods ibp,expected
ARG BASE=python:3.12-slim
FROM ${BASE} AS wheel
WORKDIR /source
COPY pyproject.toml README.md LICENSE CHANGELOG.md ./
COPY etb_plugin etb_plugin
RUN python -m pip wheel --no-cache-dir --no-deps --wheel-dir /dist .

FROM ${BASE}
# What pip is told where the base brings no torch; with --index-url of PyTorch's CPU builds it is gigabytes smaller.
ARG TORCH=torch
COPY --from=wheel /dist /dist
RUN python -c "import torch" 2>/dev/null || python -m pip install --no-cache-dir ${TORCH}
RUN python -m pip install --no-cache-dir /dist/*.whl
RUN useradd --create-home etb && mkdir -p /etb/runs && chown -R etb /etb
USER etb
WORKDIR /etb
ENTRYPOINT ["etb"]
CMD ["compare", "--dataset", "digits", "--methods", "ibp,expected,crown", "--out", "demo"]
