# The workbench in a container; docs/install.md says how to run it. Only pip uses the network while this is built.
FROM python:3.12-slim

WORKDIR /brickyard
COPY pyproject.toml README.md LICENSE NOTICE requirements.txt constraints.txt ./
COPY src src
RUN pip install --no-cache-dir --constraint constraints.txt --requirement requirements.txt \
    '.[onnx,parquet,plots,timm,torchvision,workbench]'

# Any user may run it: what libraries keep goes to a folder that all can write.
ENV HOME=/tmp
WORKDIR /
EXPOSE 8000
CMD ["brickyard", "workbench", "--yard", "/bricks", "--host", "0.0.0.0", "--port", "8000"]
