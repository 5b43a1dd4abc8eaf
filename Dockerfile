# hadmst-sc on CPUs, with the versions that the tests ran with:
#   docker build --tag hadmst-sc .
#   docker run --rm --user "$(id -u):$(id -g)" --volume "$PWD:/data" hadmst-sc demo
FROM python:3.13-slim

WORKDIR /opt/hadmst-sc
COPY pyproject.toml constraints.txt README.md LICENSE ./
COPY src src
RUN python -m pip install --no-cache-dir --extra-index-url https://download.pytorch.org/whl/cpu \
    --constraint constraints.txt '.[dask,io,train]'

# Caches of matplotlib and numba, for whoever runs it.
ENV MPLCONFIGDIR=/var/cache/hadmst-sc/matplotlib NUMBA_CACHE_DIR=/var/cache/hadmst-sc/numba
RUN mkdir --mode 1777 /var/cache/hadmst-sc && useradd --create-home user
USER user
WORKDIR /data
ENTRYPOINT ["hadmst-sc"]
CMD ["--help"]
