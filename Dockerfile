# The command, without TensorFlow: docker build -t mnv3-port . && docker run --rm -v "$PWD:/data" mnv3-port convert ckpt/
FROM python:3.11-slim
COPY . /src
RUN pip install --no-cache-dir --extra-index-url https://download.pytorch.org/whl/cpu /src && rm -rf /src
RUN useradd --create-home porter
USER porter
WORKDIR /data
ENTRYPOINT ["mnv3-port"]
