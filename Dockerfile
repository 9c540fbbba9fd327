# A scanner without a network, a shell's rights or a file it may write to but its output folder:
#   docker build -t gifthorse .
#   docker compose run --rm scan /models/model.pt --images /images
FROM python:3.12-slim AS build
WORKDIR /build
COPY constraints.txt pyproject.toml README.md LICENSE ./
RUN python -m venv /opt/gifthorse \
 && /opt/gifthorse/bin/python -m pip install --no-cache-dir --disable-pip-version-check \
      --index-url https://download.pytorch.org/whl/cpu "$(grep '^torch==' constraints.txt)"
COPY src ./src
RUN /opt/gifthorse/bin/python -m pip install --no-cache-dir --disable-pip-version-check \
      -c constraints.txt .

FROM python:3.12-slim
COPY --from=build /opt/gifthorse /opt/gifthorse
ENV PATH=/opt/gifthorse/bin:$PATH HOME=/tmp MPLCONFIGDIR=/tmp PYTHONDONTWRITEBYTECODE=1
RUN mkdir /out && chown 65532:65532 /out
USER 65532:65532
WORKDIR /out
ENTRYPOINT ["gifthorse"]
CMD ["--help"]
